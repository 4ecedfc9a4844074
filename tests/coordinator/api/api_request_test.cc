// What the APIs make of requests, and what they refuse. The recorded mappings are in
// tests/cli/harmony_command_test.cc.
#include <string>
#include <variant>
#include <vector>

#include "absl/strings/str_cat.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "nlohmann/json.hpp"

#include "coordinator/api/chat_completions.h"
#include "coordinator/api/errors.h"
#include "coordinator/api/responses.h"

namespace shoal {
namespace {

using nlohmann::json;
using testing::ElementsAre;
using testing::HasSubstr;
using testing::IsEmpty;
using testing::UnorderedElementsAre;

// A request with one user message and more fields, which begin with a comma.
std::string Chat(const std::string& fields) {
  return absl::StrCat(R"({"messages":[{"role":"user","content":"Hi"}])", fields, "}");
}

std::string Responses(const std::string& fields) {
  return absl::StrCat(R"({"input":"Hi")", fields, "}");
}

constexpr char kTools[] =
    R"(,"tools":[{"type":"function","function":{"name":"f"}},)"
    R"({"type":"function","function":{"name":"g","strict":true,"parameters":{"type":"object"}}}])";

ApiRequest Parsed(const std::string& body) {
  const auto request = ParseChatRequest(body, "2025-06-28");
  EXPECT_TRUE(request.ok()) << request.status() << " of " << body;
  return request.ok() ? *request : ApiRequest{};
}

std::string TextOf(const HarmonyMessage& message) {
  return message.content.size() == 1 ? std::get<std::string>(message.content[0]) : "";
}

struct Refusal {
  const char* name;
  std::string body;
  const char* param;    // "" for none
  const char* message;  // A part of it
};

void ExpectRefused(const Refusal& refusal, const absl::Status& status) {
  SCOPED_TRACE(refusal.name);
  ASSERT_FALSE(status.ok());
  const json body = json::parse(ErrorBody(ApiErrorOf(status)))["error"];
  EXPECT_EQ(ApiErrorOf(status).http_status, 400);
  EXPECT_EQ(body["type"], "invalid_request_error");
  EXPECT_EQ(body["param"], *refusal.param == '\0' ? json() : json(refusal.param));
  EXPECT_THAT(body["message"].get<std::string>(), HasSubstr(refusal.message));
}

TEST(ChatRequestTest, EveryRefusalNamesTheFieldItsValueAndWhatWouldDo) {
  const auto with_message = [](const std::string& message) {
    return absl::StrCat(R"({"messages":[)", message, "]}");
  };
  const std::string call = R"({"role":"assistant","tool_calls":[{"id":"a","type":"function",)"
                           R"("function":{"name":"f","arguments":"{}"}}]})";
  const Refusal refusals[] = {
      {"nothing", "", "", "not valid JSON in UTF-8 at byte 0"},
      {"no JSON", "{\n  \"messages\": oops}", "", "byte 16 (line 2, column 15)"},
      {"no object", "[1]", "", "the body must be an object, not a list"},
      {"bad UTF-8", "{\"messages\":\"\xFF\"}", "", "not valid JSON in UTF-8 at byte 13"},
      {"duplicate key", R"({"n":1,"n":2})", "", "the key \"n\" appears twice"},
      {"deep", std::string(200, '['), "", "nested deeper than 128"},
      {"huge number", R"({"temperature":1e999})", "", "number out of range at byte"},
      {"no messages", "{}", "messages", "messages is empty"},
      {"messages no list", R"({"messages":"Hi"})", "messages", "must be a list, not \"Hi\""},
      {"message no object", with_message("1"), "messages[0]", "must be an object, not 1"},
      {"no role", with_message(R"({"content":"x"})"), "messages[0].role", "is missing"},
      {"unknown role",
       with_message(R"({"role":"robot","content":"x"})"),
       "messages[0].role",
       "unknown role: robot; it must be system"},
      {"no content", with_message(R"({"role":"user"})"), "messages[0].content", "is missing"},
      {"image",
       with_message(R"({"role":"user","content":[{"type":"text","text":"x"},)"
                    R"({"type":"image_url","image_url":{"url":"u"}}]})"),
       "messages[0].content[1].type",
       "\"image_url\" (an image) cannot be read"},
      {"audio",
       with_message(R"({"role":"user","content":[{"type":"input_audio"}]})"),
       "messages[0].content[0].type",
       "\"input_audio\" is not supported"},
      {"result without call",
       with_message(R"({"role":"tool","tool_call_id":"a","content":"x"})"),
       "messages[0].tool_call_id",
       "no assistant message before it has a tool call with the id \"a\""},
      {"result before call",
       with_message(R"({"role":"tool","tool_call_id":"a","content":"x"},)" + call),
       "messages[0].tool_call_id",
       "without a matching call"},
      {"two results",
       with_message(call + R"(,{"role":"tool","tool_call_id":"a","content":"x"},)" +
                    R"({"role":"tool","tool_call_id":"a","content":"y"})"),
       "messages[2].tool_call_id",
       "has two results"},
      {"arguments as object",
       with_message(R"({"role":"assistant","tool_calls":[{"id":"a","function":)"
                    R"({"name":"f","arguments":{}}}]})"),
       "messages[0].tool_calls[0].function.arguments",
       "must be a string, not an object"},
      {"call with a bad name",
       with_message(R"({"role":"assistant","tool_calls":[{"id":"a","function":)"
                    R"({"name":"f<|end|>","arguments":"{}"}}]})"),
       "messages[0].tool_calls[0].function.name",
       "1 to 64 letters, digits, '_' or '-', not \"f<|end|>\""},
      {"other tool", Chat(R"(,"tools":[{"type":"web_search"}])"), "tools[0].type", "web_search"},
      {"tool's name",
       Chat(R"(,"tools":[{"type":"function","function":{"name":"a b"}}])"),
       "tools[0].function.name",
       "not \"a b\""},
      {"same tool twice",
       Chat(R"(,"tools":[{"type":"function","function":{"name":"f"}},)"
            R"({"type":"function","function":{"name":"f"}}])"),
       "tools[1]",
       "\"f\" was declared before"},
      {"choice of nothing", Chat(R"(,"tool_choice":"required")"), "tool_choice", "no tools"},
      {"unknown choice", Chat(R"(,"tool_choice":"maybe")"), "tool_choice", "not \"maybe\""},
      {"choice of a stranger",
       Chat(absl::StrCat(kTools, R"(,"tool_choice":{"type":"function","function":{"name":"h"}})")),
       "tool_choice.function.name",
       "unknown function: \"h\""},
      {"allowed stranger",
       Chat(absl::StrCat(kTools,
                         R"(,"tool_choice":{"type":"allowed_tools","allowed_tools":{"mode":"auto",)"
                         R"("tools":[{"type":"function","function":{"name":"h"}}]}})")),
       "tool_choice.allowed_tools.tools[0].function.name",
       "unknown function: \"h\""},
      {"effort", Chat(R"(,"reasoning_effort":"huge")"), "reasoning_effort", "not \"huge\""},
      {"format", Chat(R"(,"response_format":{"type":"xml"})"), "response_format.type", "\"xml\""},
      {"schema without a name",
       Chat(R"(,"response_format":{"type":"json_schema","json_schema":{}})"),
       "response_format.json_schema.name",
       "is missing"},
      {"temperature", Chat(R"(,"temperature":2.5)"), "temperature", "between 0 and 2, not 2.5"},
      {"temperature's type", Chat(R"(,"temperature":"1")"), "temperature", "a number, not \"1\""},
      {"top_p", Chat(R"(,"top_p":0)"), "top_p", "above 0"},
      {"n", Chat(R"(,"n":9)"), "n", "between 1 and 8, not 9"},
      {"n's type", Chat(R"(,"n":1.5)"), "n", "an integer of 64 bits, not 1.5"},
      {"seed", Chat(R"(,"seed":18446744073709551615)"), "seed", "an integer of 64 bits"},
      {"max_tokens", Chat(R"(,"max_tokens":0)"), "max_tokens", "at least 1"},
      {"stop", Chat(R"(,"stop":["a","b","c","d","e"])"), "stop", "1 to 4 strings"},
      {"empty stop", Chat(R"(,"stop":"")"), "stop", "of 1 to 256 bytes"},
      {"stop's type", Chat(R"(,"stop":[1])"), "stop", "a string or a list"},
      {"logit_bias key", Chat(R"(,"logit_bias":{"x":1})"), "logit_bias", "\"x\""},
      {"logit_bias value", Chat(R"(,"logit_bias":{"5":101})"), "logit_bias.5", "not 101"},
      {"top_logprobs alone", Chat(R"(,"top_logprobs":2)"), "top_logprobs", "needs logprobs"},
      {"top_logprobs",
       Chat(R"(,"logprobs":true,"top_logprobs":21)"),
       "top_logprobs",
       "between 0 and 20"},
      {"stream_options", Chat(R"(,"stream_options":{})"), "stream_options", "needs stream"},
      {"modalities", Chat(R"(,"modalities":["audio"])"), "modalities", "[\"text\"]"},
      {"functions", Chat(R"(,"functions":[])"), "functions", "use tools"},
      {"stream's type", Chat(R"(,"stream":1)"), "stream", "true or false, not 1"},
  };
  for (const Refusal& refusal : refusals) {
    ExpectRefused(refusal, ParseChatRequest(refusal.body, "2025-06-28").status());
  }
}

TEST(ChatRequestTest, CarriesEverySetting) {
  const ApiRequest request = Parsed(Chat(
      R"(,"model":"m","temperature":0.5,"top_p":0.9,"top_k":40,"min_p":0.1,)"
      R"("frequency_penalty":0.25,"presence_penalty":-1,"repetition_penalty":1.1,"seed":-7,)"
      R"("logit_bias":{"5":-100,"6":2.5},"n":3,"max_tokens":20,"max_completion_tokens":10,)"
      R"("stop":["a","bc"],"logprobs":true,"top_logprobs":4,"stream":true,)"
      R"("stream_options":{"include_usage":true},"prompt_cache_key":"k","user":"u","store":true)"));
  const GenerationSettings& settings = request.settings;
  EXPECT_EQ(request.model, "m");
  EXPECT_EQ(settings.temperature, 0.5);
  EXPECT_EQ(settings.top_p, 0.9);
  EXPECT_EQ(settings.top_k, 40);
  EXPECT_EQ(settings.min_p, 0.1);
  EXPECT_EQ(settings.frequency_penalty, 0.25);
  EXPECT_EQ(settings.presence_penalty, -1);
  EXPECT_EQ(settings.repetition_penalty, 1.1);
  EXPECT_EQ(settings.seed, -7);
  EXPECT_THAT(settings.logit_bias,
              ElementsAre(std::pair(TokenId{5}, -100.0), std::pair(TokenId{6}, 2.5)));
  EXPECT_EQ(settings.num_choices, 3);
  EXPECT_EQ(settings.max_tokens, 10);  // The smaller one
  EXPECT_THAT(settings.stop, ElementsAre("a", "bc"));
  EXPECT_EQ(settings.num_top_logprobs, 4);
  EXPECT_TRUE(request.is_stream);
  EXPECT_TRUE(request.includes_usage);
  EXPECT_TRUE(request.includes_reasoning);
  EXPECT_EQ(request.cache_key, "k");
  EXPECT_THAT(request.ignored, UnorderedElementsAre("user", "store"));
}

TEST(ChatRequestTest, AnAbsentFieldAndNullAreTheSame) {
  const ApiRequest request = Parsed(
      Chat(R"(,"temperature":null,"stop":null,"n":null,"tools":null,"tool_choice":null,)"
           R"("response_format":null,"reasoning_effort":null,"stream_options":null,"seed":null)"));
  EXPECT_EQ(request.settings.temperature, std::nullopt);
  EXPECT_EQ(request.settings.seed, std::nullopt);
  EXPECT_EQ(request.settings.num_choices, 1);
  EXPECT_THAT(request.settings.stop, IsEmpty());
  EXPECT_EQ(request.format.kind, OutputFormat::Kind::kText);
  EXPECT_EQ(request.tool_choice.mode, ToolChoice::Mode::kNone);
  EXPECT_EQ(request.conversation.effort, ReasoningEffort::kMedium);
}

TEST(ChatRequestTest, ToolChoicesSayWhatMayBeCalled) {
  using Mode = ToolChoice::Mode;
  const auto choice = [](const std::string& fields) {
    return Parsed(Chat(absl::StrCat(kTools, fields))).tool_choice;
  };
  EXPECT_EQ(choice("").mode, Mode::kAuto);
  EXPECT_EQ(choice(R"(,"tool_choice":"required")").mode, Mode::kRequired);
  const ToolChoice named = choice(R"(,"tool_choice":{"type":"function","function":{"name":"g"}})");
  EXPECT_EQ(named.mode, Mode::kRequired);
  EXPECT_THAT(named.allowed, ElementsAre("g"));
  const ToolChoice allowed =
      choice(R"(,"tool_choice":{"type":"allowed_tools","allowed_tools":{"mode":"required",)"
             R"("tools":[{"type":"function","function":{"name":"f"}}]}})");
  EXPECT_EQ(allowed.mode, Mode::kRequired);
  EXPECT_THAT(allowed.allowed, ElementsAre("f"));

  const ApiRequest all = Parsed(Chat(kTools));
  EXPECT_EQ(all.functions.size(), 2u);
  EXPECT_FALSE(all.conversation.functions[0].is_strict);
  EXPECT_TRUE(all.conversation.functions[1].is_strict);
  const ApiRequest none = Parsed(Chat(absl::StrCat(kTools, R"(,"tool_choice":"none")")));
  EXPECT_TRUE(none.functions.empty());
  EXPECT_THAT(none.conversation.functions, IsEmpty());
}

TEST(ChatRequestTest, AnIdThatIsUsedAgainNamesTheLaterCall) {
  const std::string call =
      R"({"role":"assistant","tool_calls":[{"id":"a","function":{"name":"f","arguments":"1"}}]})";
  const ApiRequest request =
      Parsed(absl::StrCat(R"({"messages":[)",
                          call,
                          R"(,{"role":"tool","tool_call_id":"a","content":"first"},)",
                          call,
                          R"(,{"role":"tool","tool_call_id":"a","content":"second"}]})"));
  ASSERT_EQ(request.conversation.history.size(), 4u);
  EXPECT_EQ(TextOf(request.conversation.history[1]), "first");
  EXPECT_EQ(TextOf(request.conversation.history[3]), "second");
}

TEST(ChatRequestTest, ReasoningIsReadInEverySpelling) {
  const auto hides = [](const std::string& fields) {
    return !Parsed(Chat(fields)).includes_reasoning;
  };
  EXPECT_FALSE(hides(""));
  EXPECT_TRUE(hides(R"(,"reasoning":{"exclude":true})"));
  EXPECT_TRUE(hides(R"(,"include_reasoning":false)"));
  EXPECT_EQ(Parsed(Chat(R"(,"reasoning":{"enabled":false})")).conversation.effort,
            ReasoningEffort::kLow);
  EXPECT_EQ(Parsed(Chat(R"(,"reasoning_effort":"xhigh")")).conversation.effort,
            ReasoningEffort::kHigh);
  for (const std::string key : {"reasoning", "reasoning_content", "thinking"}) {
    const ApiRequest request = Parsed(
        absl::StrCat(R"({"messages":[{"role":"assistant","content":"x",")", key, R"(":"t"}]})"));
    ASSERT_EQ(request.conversation.history.size(), 2u) << key;
    EXPECT_EQ(request.conversation.history[0], AssistantMessage(kAnalysisChannel, "t"));
  }
}

TEST(ChatRequestTest, PartsAreJoinedBeforeTheyAreEncoded) {
  const ApiRequest request =
      Parsed(R"({"messages":[{"role":"user","content":[{"type":"text","text":"<|en"},)"
             R"({"type":"text","text":"d|>"}]},{"role":"assistant","content":[)"
             R"({"type":"refusal","refusal":"No."}]}]})");
  EXPECT_THAT(request.conversation.history,
              ElementsAre(UserMessage("<|end|>"), AssistantMessage(kFinalChannel, "No.")));
}

TEST(ResponsesRequestTest, EveryRefusalNamesTheFieldItsValueAndWhatWouldDo) {
  const auto with_item = [](const std::string& item) {
    return absl::StrCat(R"({"input":[)", item, "]}");
  };
  const Refusal refusals[] = {
      {"nothing", "{}", "input", "input is empty"},
      {"input's type", R"({"input":1})", "input", "a string or a list of items, not 1"},
      {"unknown item",
       with_item(R"({"type":"web_search_call"})"),
       "input[0].type",
       "unsupported input item: \"web_search_call\""},
      {"unknown role",
       with_item(R"({"role":"tool","content":"x"})"),
       "input[0].role",
       "unknown role: tool"},
      {"output without call",
       with_item(R"({"type":"function_call_output","call_id":"c","output":"x"})"),
       "input[0].call_id",
       "function_call_output without its function_call"},
      {"image",
       with_item(R"({"role":"user","content":[{"type":"input_image","image_url":"u"}]})"),
       "input[0].content[0].type",
       "an image"},
      {"phase",
       with_item(R"({"role":"assistant","content":"x","phase":"third"})"),
       "input[0].phase",
       "not \"third\""},
      {"foreign reasoning",
       with_item(R"({"type":"reasoning","summary":[],"encrypted_content":"zzz"})"),
       "input[0].encrypted_content",
       "was not issued by this server"},
      {"stored", Responses(R"(,"previous_response_id":"r")"), "previous_response_id", "stored"},
      {"background", Responses(R"(,"background":true)"), "background", "not true"},
      {"truncation", Responses(R"(,"truncation":"auto")"), "truncation", "not \"auto\""},
      {"include", Responses(R"(,"include":["x"])"), "include", "\"x\""},
      {"tool", Responses(R"(,"tools":[{"type":"mcp"}])"), "tools[0].type", "mcp"},
      {"effort", Responses(R"(,"reasoning":{"effort":"x"})"), "reasoning.effort", "not \"x\""},
      {"format", Responses(R"(,"text":{"format":{"type":"x"}})"), "text.format.type", "\"x\""},
      {"tokens", Responses(R"(,"max_output_tokens":0)"), "max_output_tokens", "at least 1"},
      {"choice",
       Responses(R"(,"tools":[{"type":"function","name":"f"}],)"
                 R"("tool_choice":{"type":"function","name":"g"})"),
       "tool_choice.name",
       "unknown function: \"g\""},
  };
  for (const Refusal& refusal : refusals) {
    ExpectRefused(refusal, ParseResponsesRequest(refusal.body, "2025-06-28").status());
  }
}

TEST(ResponsesRequestTest, ReadsItsOwnItemsAgain) {
  const auto request = ParseResponsesRequest(
      R"({"instructions":"I","input":[{"role":"developer","content":"D"},)"
      R"({"role":"user","content":[{"type":"input_text","text":"u"}]},)"
      R"({"type":"reasoning","id":"rs_0","summary":[],"content":[{"type":"reasoning_text",)"
      R"("text":"r"}],"status":"completed"},)"
      R"({"type":"message","id":"msg_1","role":"assistant","content":[{"type":"output_text",)"
      R"("text":"p","annotations":[],"logprobs":[]}],"status":"completed","phase":"commentary"},)"
      R"({"type":"function_call","id":"fc_2","call_id":"call_2","name":"f","arguments":"{}",)"
      R"("status":"completed"},)"
      R"({"type":"function_call_output","call_id":"call_2","output":"o"}],)"
      R"("tools":[{"type":"function","name":"f","strict":true}]})",
      std::nullopt);
  ASSERT_TRUE(request.ok()) << request.status();
  EXPECT_EQ(request->request.conversation.instructions, "I\n\nD");
  EXPECT_THAT(request->request.conversation.history,
              ElementsAre(UserMessage("u"),
                          AssistantMessage(kAnalysisChannel, "r"),
                          AssistantMessage(kCommentaryChannel, "p"),
                          CallMessage("f", "{}"),
                          ResultMessage("f", "o")));
}

TEST(ResponsesRequestTest, EchoesWhatWasAsked) {
  const auto request = ParseResponsesRequest(
      Responses(R"(,"store":true,"temperature":0.5,"metadata":{"k":"v"},"tools":[],)"
                R"("max_output_tokens":9,"text":{"format":{"type":"json_object"}})"),
      std::nullopt);
  ASSERT_TRUE(request.ok()) << request.status();
  EXPECT_EQ(request->request.format.kind, OutputFormat::Kind::kJsonObject);
  EXPECT_EQ(request->request.settings.max_tokens, 9);
  const json echo = json::parse(request->echo);
  EXPECT_EQ(echo["store"], false);  // Nothing is kept
  EXPECT_EQ(echo["temperature"], 0.5);
  EXPECT_EQ(echo["metadata"], json({{"k", "v"}}));
  EXPECT_EQ(echo["text"]["format"]["type"], "json_object");
  EXPECT_EQ(echo["reasoning"]["effort"], "medium");
  for (const char* const key : {"parallel_tool_calls", "tool_choice", "tools"}) {
    EXPECT_TRUE(echo.contains(key)) << key;
  }
}

TEST(ErrorsTest, StatusCodesBecomeHttp) {
  const struct {
    absl::Status status;
    int http_status;
    const char* type;
    const char* code;
  } cases[] = {
      {absl::InvalidArgumentError("x"), 400, "invalid_request_error", nullptr},
      {BadFieldWithCode("p", "c", "x"), 400, "invalid_request_error", "c"},
      {absl::OutOfRangeError("x"), 400, "invalid_request_error", "context_length_exceeded"},
      {absl::UnauthenticatedError("x"), 401, "authentication_error", "invalid_api_key"},
      {absl::PermissionDeniedError("x"), 403, "permission_error", nullptr},
      {ModelNotFound("a", "b"), 404, "not_found_error", "model_not_found"},
      {absl::ResourceExhaustedError("x"), 429, "rate_limit_error", "rate_limit_exceeded"},
      {absl::UnavailableError("x"), 503, "overloaded_error", "server_overloaded"},
      {absl::DeadlineExceededError("x"), 504, "timeout_error", nullptr},
      {absl::DataLossError("x"), 500, "server_error", nullptr},
  };

  for (const auto& c : cases) {
    const ApiError error = ApiErrorOf(c.status);
    EXPECT_EQ(error.http_status, c.http_status) << c.status;
    EXPECT_EQ(error.type, c.type) << c.status;
    EXPECT_EQ(error.code, c.code == nullptr ? std::nullopt : std::optional<std::string>(c.code));
  }
}

}  // namespace
}  // namespace shoal
