// The HTTP door and the chat calls, in front of a worker that writes what the test says: who may
// come in, what a client that leaves or does not read costs, and that both doors say the same.

#include <fstream>
#include <iterator>
#include <memory>
#include <string>
#include <vector>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"

#include "coordinator/text/harmony.h"
#include "tests/coordinator/serve/service_rig.h"
#include "tests/coordinator/text/tokenizer_json.h"
#include "tests/support/raw_client.h"
#include "tests/support/temp_folder.h"

namespace shoal {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;
using testing::Not;
using testing::StartsWith;

std::string Post(const std::string& path, const std::string& body, const std::string& fields = "") {
  return absl::StrCat("POST ",
                      path,
                      " HTTP/1.1\r\ncontent-type: application/json\r\n",
                      fields,
                      "content-length: ",
                      body.size(),
                      "\r\n\r\n",
                      body);
}

std::string Get(const std::string& path, const std::string& fields = "") {
  return absl::StrCat("GET ", path, " HTTP/1.1\r\n", fields, "\r\n");
}

void WriteFile(const std::string& path, const std::string& text) {
  std::ofstream(path) << text;
}

class GatewayTest : public ServiceTest {
 protected:
  GatewayTest() {
    harmony_tokenizer_ = *Tokenizer::Parse(TokenizerText(
        MakeTestVocabulary({}, {std::begin(kHarmonySpecials), std::end(kHarmonySpecials)}),
        PairForm::kList));
    options_.tokenizer = harmony_tokenizer_.get();
    options_.config.vocab = harmony_tokenizer_->size();
    options_.config.eos_token_ids = {Id("<|return|>").value};
    options_.http_listen = "127.0.0.1:0";
  }

  TokenId Id(const std::string& marker) const { return *harmony_tokenizer_->Special(marker); }

  // The tokens of `text`, markers included: what the model is to write.
  std::vector<int32_t> Tokens(const std::string& text) const {
    std::vector<int32_t> ids;
    const auto tokens = harmony_tokenizer_->Encode(text, {SpecialTokens::Mode::kAll, {}});
    EXPECT_TRUE(tokens.ok()) << tokens.status();
    for (const TokenId id : *tokens) ids.push_back(id.value);
    return ids;
  }

  void StartWriting(const std::string& text) { StartWithWorker(Script(Tokens(text))); }

  std::string Ask(const std::string& request) {
    RawClient client(server_->http_port());
    EXPECT_TRUE(client.Send(request));
    return client.ReadResponse();
  }

  static constexpr char kChat[] = R"({"messages":[{"role":"user","content":"hi"}],"seed":1})";
  static constexpr char kStream[] =
      R"({"messages":[{"role":"user","content":"hi"}],"seed":1,"stream":true})";
  static constexpr char kAnswer[] =
      "<|channel|>analysis<|message|>think<|end|><|start|>assistant<|channel|>final<|message|>"
      "fish<|return|>";

  std::unique_ptr<Tokenizer> harmony_tokenizer_;
};

TEST_F(GatewayTest, AnswersAChat) {
  StartWriting(kAnswer);

  const std::string answer = Ask(Post("/v1/chat/completions", kChat));

  EXPECT_THAT(answer, StartsWith("HTTP/1.1 200 OK\r\n"));
  EXPECT_THAT(answer, HasSubstr("x-request-id: req_"));
  EXPECT_THAT(answer, HasSubstr(R"("content":"fish")"));
  EXPECT_THAT(answer, HasSubstr(R"("reasoning":"think")"));
  EXPECT_THAT(answer, HasSubstr(R"("finish_reason":"stop")"));
  EXPECT_THAT(answer, HasSubstr(R"("reasoning_tokens":5)"));
}

TEST_F(GatewayTest, StreamsAChat) {
  StartWriting(kAnswer);
  RawClient client(server_->http_port());

  client.Send(Post("/v1/chat/completions", kStream));
  const std::string stream = client.ReadUntil("0\r\n\r\n");

  EXPECT_THAT(stream, HasSubstr("content-type: text/event-stream"));
  EXPECT_THAT(stream, HasSubstr(R"("role":"assistant")"));
  EXPECT_THAT(stream, HasSubstr("data: [DONE]\n\n\r\n0\r\n\r\n"));
  client.Send(Get("/health"));
  EXPECT_THAT(client.ReadResponse(), HasSubstr("200 OK")) << "the connection goes on";
}

TEST_F(GatewayTest, AStopStringCountsInVisibleTextOnly) {
  StartWriting(
      "<|channel|>analysis<|message|>stop here<|end|><|start|>assistant<|channel|>final<|message|>"
      "fish stop chips<|return|>");

  const std::string answer = Ask(Post("/v1/chat/completions",
                                      R"({"messages":[{"role":"user","content":"hi"}],)"
                                      R"("stop":"stop","max_completion_tokens":200})"));

  EXPECT_THAT(answer, HasSubstr(R"("reasoning":"stop here")"));
  EXPECT_THAT(answer, HasSubstr(R"("content":"fish ")"));
  EXPECT_THAT(answer, HasSubstr(R"("finish_reason":"stop")"));
  WaitUntilAllIsFree();
}

TEST_F(GatewayTest, ACallEndsAsACall) {
  StartWriting(
      "<|channel|>commentary to=functions.look <|constrain|>json<|message|>{\"a\":1}<|call|>");

  const std::string answer =
      Ask(Post("/v1/responses",
               R"({"input":"hi","tools":)"
               R"([{"type":"function","name":"look","parameters":{"type":"object"}}]})"));

  EXPECT_THAT(answer, HasSubstr(R"("type":"function_call")"));
  EXPECT_THAT(answer, HasSubstr(R"("name":"look")"));
  EXPECT_THAT(answer, HasSubstr(R"("status":"completed")"));
}

TEST_F(GatewayTest, GrpcChatSaysTheSame) {
  StartWriting(kAnswer);
  v1::ChatRequest request;
  request.add_messages()->set_role(v1::ROLE_USER);
  request.mutable_messages(0)->set_text("hi");
  request.set_request_id("chat-1");
  const auto read = [](auto reader, std::vector<v1::ChatEvent>* events) {
    v1::ChatEvent event;
    while (reader->Read(&event)) events->push_back(event);
    return reader->Finish();
  };
  std::vector<v1::ChatEvent> events;
  grpc::ClientContext context;
  const grpc::Status status = read(stub_->Chat(&context, request), &events);
  ASSERT_TRUE(status.ok()) << status.error_message();
  std::vector<std::string> texts;
  for (const v1::ChatEvent& event : events) {
    if (event.has_item_started()) texts.emplace_back();
    if (event.has_delta()) texts.back() += event.delta().text();
  }

  EXPECT_THAT(texts, ElementsAre("think", "fish"));
  ASSERT_TRUE(events.back().has_finished());
  EXPECT_EQ(events.back().finished().reason(), v1::ChatFinished::STOP);
  EXPECT_EQ(events.back().finished().usage().reasoning_tokens(), 5u);

  // From any event on, the rest is the same.
  for (size_t from = 1; from < events.size(); ++from) {
    v1::AttachRequest attach;
    attach.set_request_id("chat-1");
    attach.set_next_index(events[from].next_index());
    attach.set_prefix_hash(events[from].prefix_hash());
    std::vector<v1::ChatEvent> rest;
    grpc::ClientContext attach_context;
    ASSERT_TRUE(read(stub_->AttachChat(&attach_context, attach), &rest).ok());
    std::string expected, actual;
    for (size_t i = from + 1; i < events.size(); ++i) {
      if (events[i].next_index() > events[from].next_index()) {
        expected += events[i].delta().text();
      }
    }
    for (const v1::ChatEvent& event : rest) actual += event.delta().text();
    EXPECT_EQ(actual, expected) << "from event " << from;
  }
}

TEST_F(GatewayTest, RenderShowsThePromptThatAChatHas) {
  StartWriting(kAnswer);
  v1::ChatRequest request;
  request.add_messages()->set_role(v1::ROLE_USER);
  request.mutable_messages(0)->set_text("hi <|end|>");
  request.set_current_date("2026-01-02");
  grpc::ClientContext context;
  v1::RenderResponse prompt;
  ASSERT_TRUE(stub_->Render(&context, request, &prompt).ok());

  EXPECT_THAT(prompt.text(), HasSubstr("Current date: 2026-01-02"));
  EXPECT_TRUE(
      absl::EndsWith(prompt.text(), "<|start|>user<|message|>hi <|end|><|end|><|start|>assistant"));
  EXPECT_EQ(prompt.count(), static_cast<uint32_t>(prompt.token_ids_size()));
  request.mutable_messages(0)->set_role(static_cast<v1::Role>(77));
  grpc::ClientContext bad_context;
  const grpc::Status bad = stub_->Render(&bad_context, request, &prompt);
  EXPECT_EQ(bad.error_code(), grpc::StatusCode::INVALID_ARGUMENT);
  EXPECT_THAT(bad.error_message(), HasSubstr("role"));
}

TEST_F(GatewayTest, AClientThatLeavesEndsItsRequest) {
  StartWriting("fish");  // And so on, for as long as somebody reads
  for (const char* body : {kChat, kStream}) {
    worker_->Hold(3);
    RawClient client(server_->http_port());
    client.Send(Post("/v1/chat/completions", body));
    WaitUntil([](const FleetStatus& status) { return status.running == 1; });

    client.Close();

    WaitUntil([this](const FleetStatus&) { return server_->delivery_counters().readers == 0; });
    worker_->Hold(0x7fffffff);
    WaitUntilAllIsFree();
  }
}

TEST_F(GatewayTest, AClientThatDoesNotReadIsParkedAndMissesNothing) {
  options_.http.send_buffer_bytes = 4096;
  options_.delivery.max_unread_tokens = 64;
  StartWriting("fish");
  RawClient client(server_->http_port(), /*receive_buffer=*/4096);

  client.Send(Post("/v1/completions",
                   R"({"prompt":"hi","max_tokens":2000,"ignore_eos":true,"stream":true})"));
  WaitUntil([this](const FleetStatus& status) {
    return status.finished == 1 && server_->delivery_counters().parked > 0;
  });
  const std::string stream = client.ReadUntil("[DONE]");

  std::string text;
  const std::string mark = "\"text\":\"";
  for (size_t at = stream.find(mark); at != std::string::npos; at = stream.find(mark, at + 1)) {
    const size_t begin = at + mark.size();
    text += stream.substr(begin, stream.find('"', begin) - begin);
  }
  std::string expected;
  for (int i = 0; i < 500; ++i) expected += "fish";
  EXPECT_EQ(text, expected);
  EXPECT_GT(server_->delivery_counters().resumed, 0);
}

TEST_F(GatewayTest, KeysOpenTheDoorForTheirTenantOnly) {
  const TempFolder folder;
  const std::string path = folder / "keys";
  WriteFile(path,
            "acme key-of-acme\nother sha256:"
            "2c26b46b68ffc68ff99b453c1d30413413422d706483bfa0f98a5e886266e7ae\n");
  options_.api_keys = path;
  StartWriting(kAnswer);
  const auto models = [this](const std::string& key) {
    return Ask(Get("/v1/models", absl::StrCat("authorization: Bearer ", key, "\r\n")));
  };

  EXPECT_THAT(models("key-of-acme"), HasSubstr("200 OK"));
  EXPECT_THAT(models("foo"), HasSubstr("200 OK")) << "the second key is given by its hash";
  EXPECT_THAT(models("key-of-acmf"), HasSubstr("401 Unauthorized"));
  EXPECT_THAT(models("key-of-acmf"), HasSubstr("invalid_api_key"));
  EXPECT_THAT(Ask(Get("/v1/models")), HasSubstr("401 Unauthorized"));
  EXPECT_THAT(Ask(Get("/nothing")), HasSubstr("401 Unauthorized"));
  EXPECT_THAT(Ask(Get("/health")), HasSubstr("200 OK"));
}

TEST_F(GatewayTest, AKeyFileThatCannotBeUsedIsAnErrorWithoutTheKey) {
  const TempFolder folder;
  const std::string path = folder / "keys";
  WriteFile(path, "acme secret-key extra\n");
  options_.api_keys = path;

  const auto server = CoordinatorServer::Start(options_);

  EXPECT_TRUE(absl::IsInvalidArgument(server.status())) << server.status();
  EXPECT_THAT(std::string(server.status().message()), HasSubstr("keys:1: 3 words"));
  EXPECT_THAT(std::string(server.status().message()), Not(HasSubstr("secret")));
}

TEST_F(GatewayTest, SaysWhetherItIsReady) {
  StartServer();
  EXPECT_THAT(Ask(Get("/readyz")), HasSubstr("503"));
  EXPECT_THAT(Ask(Get("/livez")), HasSubstr("200 OK"));
  worker_ = MakeWorker();
  WaitUntil([](const FleetStatus& status) { return status.is_ready; });

  EXPECT_THAT(Ask(Get("/readyz")), HasSubstr("200 OK"));
}

TEST_F(GatewayTest, RefusesByTheRightStatus) {
  StartWriting(kAnswer);

  struct Case {
    std::string request;
    std::string status;
    std::string says;
  };

  const std::vector<Case> cases = {
      {Get("/v1/chat/completions"), "405", "POST"},
      {Get("/v1/nothing"), "404", "/v1/nothing"},
      {Post("/v1/chat/completions", "{\"messages\":\n[}"), "400", "line 2"},
      {Post("/v1/chat/completions", R"({"messages":[{"role":"wizard","content":""}]})"),
       "400",
       "wizard"},
      {Post("/v1/chat/completions",
            R"({"model":"gpt-9","messages":[{"role":"user","content":"a"}]})"),
       "404",
       "gpt-9"},
      {Post(
           "/v1/chat/completions",
           absl::StrCat(
               R"({"messages":[{"role":"user","content":")", std::string(100'000, 'x'), R"("}]})")),
       "400",
       "context_length_exceeded"},
      {Post("/v1/completions", R"({"prompt":"a","n":99})"), "400", "99"},
      {"POST /v1/completions HTTP/1.1\r\ncontent-type: text/html\r\ncontent-length: 2\r\n\r\n{}",
       "415",
       "application/json"},
      {"POST /v1/completions HTTP/1.1\r\ncontent-length: 104857600\r\n\r\n", "413", "at most"},
  };

  for (const Case& c : cases) {
    const std::string answer = Ask(c.request);
    EXPECT_THAT(answer, StartsWith("HTTP/1.1 " + c.status)) << c.request.substr(0, 100);
    EXPECT_THAT(answer, HasSubstr(c.says));
    EXPECT_THAT(answer, HasSubstr(R"({"error":{"message":)"));
    EXPECT_THAT(answer, HasSubstr("x-request-id: "));
  }
}

TEST_F(GatewayTest, MetricsCountWhatHappened) {
  StartWriting(kAnswer);
  Ask(Post("/v1/chat/completions", kChat));

  const std::string metrics = Ask(Get("/metrics"));

  EXPECT_THAT(metrics, HasSubstr("shoal_choices_finished_total{finish_reason=\"stop\"} 1\n"));
  EXPECT_THAT(metrics, HasSubstr("shoal_ttft_seconds_count 1\n"));
  EXPECT_THAT(metrics, HasSubstr("shoal_requests_accepted_total 1\n"));
  EXPECT_THAT(metrics, HasSubstr("shoal_ready 1\n"));
}

TEST_F(GatewayTest, AnIdempotencyKeyMakesOneRequestOfTwo) {
  StartWriting(kAnswer);
  const std::string key = "idempotency-key: once\r\n";

  const std::string first = Ask(Post("/v1/chat/completions", kChat, key));
  const std::string second = Ask(Post("/v1/chat/completions", kChat, key));
  const std::string other = Ask(Post("/v1/chat/completions", kStream, key));

  EXPECT_THAT(second, HasSubstr(R"("content":"fish")"));
  EXPECT_EQ(server_->Status().accepted, 1);
  EXPECT_THAT(
      Ask(Post("/v1/chat/completions", R"({"messages":[{"role":"user","content":"other"}]})", key)),
      StartsWith("HTTP/1.1 409 "));
}

}  // namespace
}  // namespace shoal
