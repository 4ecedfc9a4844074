// Any bytes as a request's body: refused with a sentence, or a prompt whose markers are the
// writer's own.
#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "absl/strings/string_view.h"

#include "base/check.h"
#include "coordinator/api/chat_completions.h"
#include "coordinator/api/errors.h"
#include "coordinator/api/responses.h"
#include "coordinator/text/harmony.h"
#include "coordinator/text/harmony_writer.h"
#include "tests/coordinator/text/harmony_streams.h"

namespace {

void CheckConversation(const shoal::ApiRequest& request) {
  using namespace shoal;
  static const Tokenizer* const tokenizer = MakeHarmonyTokenizer().release();
  static const HarmonyTokens* const tokens = new HarmonyTokens(*HarmonyTokens::Find(tokenizer));
  CHECK_EQ(request.functions.size(), request.conversation.functions.size());
  const std::vector<HarmonyMessage> messages = MessagesOf(request.conversation);
  const auto ids = RenderHarmony(messages, *tokens, {});
  CHECK(ids.ok());
  size_t num_starts = 0;
  for (const TokenId id : *ids) num_starts += id == tokens->start ? 1 : 0;
  CHECK_EQ(num_starts, messages.size() + 1);
}

void CheckRefusal(const absl::Status& status) {
  const shoal::ApiError error = shoal::ApiErrorOf(status);
  CHECK_EQ(error.http_status, 400);
  CHECK(!error.message.empty());
  CHECK(!shoal::ErrorBody(error).empty());
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const absl::string_view body(reinterpret_cast<const char*>(data), size);
  const auto chat = shoal::ParseChatRequest(body, "2025-06-28");
  chat.ok() ? CheckConversation(*chat) : CheckRefusal(chat.status());
  const auto responses = shoal::ParseResponsesRequest(body, "2025-06-28");
  responses.ok() ? CheckConversation(responses->request) : CheckRefusal(responses.status());
  return 0;
}
