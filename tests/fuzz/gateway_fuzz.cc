// Whatever a client sends to the HTTP door: bytes -> requests -> conversations -> prompts. Over a
// real socket, because that is where half a request, two requests and no end come from. Each input
// is what one client sends before it closes its side.

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <string>

#include "base/check.h"
#include "base/serve/http_server.h"
#include "coordinator/api/chat_completions.h"
#include "coordinator/api/errors.h"
#include "coordinator/api/responses.h"
#include "coordinator/text/harmony_writer.h"
#include "tests/coordinator/text/tokenizer_json.h"
#include "tests/support/raw_client.h"

namespace shoal {
namespace {

absl::StatusOr<ApiRequest> Parse(const HttpRequest& request) {
  if (request.path == "/v1/responses") {
    absl::StatusOr<ResponsesRequest> parsed = ParseResponsesRequest(request.body, "2026-01-01");
    if (!parsed.ok()) return parsed.status();
    return std::move(parsed->request);
  }
  return ParseChatRequest(request.body, "2026-01-01");
}

class Door {
 public:
  Door() {
    absl::StatusOr<std::unique_ptr<Tokenizer>> tokenizer = Tokenizer::Parse(TokenizerText(
        MakeTestVocabulary({}, {std::begin(kHarmonySpecials), std::end(kHarmonySpecials)}),
        PairForm::kList));
    CHECK(tokenizer.ok());
    tokenizer_ = *std::move(tokenizer);
    absl::StatusOr<HarmonyTokens> tokens = HarmonyTokens::Find(tokenizer_.get());
    CHECK(tokens.ok());
    tokens_ = *std::move(tokens);
    HttpServerOptions options;
    options.limits.max_body_bytes = 64 << 10;
    options.limits.linger_time = absl::Milliseconds(1);
    options.handler = [this](HttpRequest request, HttpExchange* exchange) {
      exchange->Respond({.status = 200, .fields = {}, .body = Answer(request)});
    };
    options.refusal = [](int status, absl::string_view why) {
      return HttpResponse{.status = status, .fields = {}, .body = std::string(why)};
    };
    absl::StatusOr<std::unique_ptr<HttpServer>> server = HttpServer::Start(std::move(options));
    CHECK(server.ok());
    server_ = *std::move(server);
  }

  int port() const { return server_->port(); }

 private:
  // Errors are answers, too; every one has its text.
  std::string Answer(const HttpRequest& request) const {
    absl::StatusOr<ApiRequest> asked = Parse(request);
    if (!asked.ok()) return ErrorBody(ApiErrorOf(asked.status()));
    const auto prompt = RenderHarmony(MessagesOf(asked->conversation), tokens_, {});
    if (!prompt.ok()) return ErrorBody(ApiErrorOf(prompt.status()));
    return HarmonyText(*prompt, *tokenizer_);
  }

  std::unique_ptr<Tokenizer> tokenizer_;
  HarmonyTokens tokens_;
  std::unique_ptr<HttpServer> server_;
};

}  // namespace
}  // namespace shoal

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  static const auto* const door = new shoal::Door;
  shoal::RawClient client(door->port());
  client.Send(absl::string_view(reinterpret_cast<const char*>(data), size));
  client.EndSending();
  client.ReadToEnd();
  return 0;
}
