// A chat that is asked for by any door -> a request to the core: prompt, settings, and an envelope
// that holds what its answer's text depends on.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/time/time.h"

#include "coordinator/api/generation.h"
#include "coordinator/serve/request.h"
#include "proto/inference.pb.h"

namespace shoal {

// The date that a prompt shows: in UTC, YYYY-MM-DD.
std::string DateOf(absl::Time now);

// kFailedPrecondition: the model has no tokenizer, or one without harmony's markers. kOutOfRange:
// longer than the context.
absl::StatusOr<std::vector<TokenId>> RenderPrompt(const Conversation& conversation,
                                                  const ServedModel& model);

// The prompt of a body of /v1/chat/completions.
absl::StatusOr<std::vector<TokenId>> ChatPrompt(absl::string_view body, const ServedModel& model);

// All but the stop strings, which a chat looks for in visible text only.
void SetSettings(const GenerationSettings& settings, v1::GenerateRequest* out);

// `request_id` may be empty. The tenant is left to the caller. `entropy`: as for ParseRequest.
absl::StatusOr<Request> MakeChatRequest(const ApiRequest& asked,
                                        absl::string_view request_id,
                                        const ServedModel& model,
                                        absl::Time now,
                                        uint64_t entropy);

}  // namespace shoal
