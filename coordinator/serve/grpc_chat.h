// shoal.v1.Inference.Chat: the same chat as the HTTP door's, asked and answered in protobuf.
#pragma once

#include <memory>

#include "absl/status/statusor.h"
#include "absl/time/time.h"

#include "coordinator/api/generation.h"
#include "coordinator/serve/chat_answer.h"
#include "proto/inference.pb.h"

namespace shoal {

// By way of OpenAI's JSON, so that both doors mean the same by the same words and refuse the same
// with the same text.
absl::StatusOr<ApiRequest> ReadChatRequest(const v1::ChatRequest& wire, absl::Time now);

// v1::ChatEvent. `started` holds what is not known from the answer itself.
std::unique_ptr<ChatForm> MakeGrpcChatForm(const v1::Started& started, const Tokenizer* tokenizer);

}  // namespace shoal
