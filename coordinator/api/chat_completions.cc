#include "coordinator/api/chat_completions.h"

#include <algorithm>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"

#include "coordinator/api/history.h"
#include "coordinator/api/json_fields.h"
#include "coordinator/api/request_fields.h"
#include "coordinator/text/json_text.h"

namespace shoal {
namespace {

using nlohmann::ordered_json;

class MessagesReader {
 public:
  explicit MessagesReader(History* history) : history_(*history) {}

  absl::Status Read(const JsonFields& message) {
    ASSIGN_OR_RETURN(const std::string role, message.NeededText("role"));
    if (role == "system" || role == "developer") {
      ASSIGN_OR_RETURN(std::string text, ReadContent(message));
      history_.AddInstructions(std::move(text));
      return absl::OkStatus();
    }
    if (role == "user") {
      ASSIGN_OR_RETURN(std::string text, ReadContent(message));
      history_.Add(UserMessage(std::move(text)));
      return absl::OkStatus();
    }
    if (role == "assistant") return ReadAssistant(message);
    if (role == "tool") return ReadResult(message);
    return BadField(message.PathOf("role"),
                    absl::StrCat("unknown role: ",
                                 ShownWord(role),
                                 "; it must be system, developer, user, assistant or tool"));
  }

 private:
  static absl::StatusOr<std::string> ReadContent(const JsonFields& message) {
    if (!message.json().contains("content")) {
      return BadField(message.PathOf("content"),
                      absl::StrCat(message.PathOf("content"),
                                   " is missing; it must be a string or a list of parts"));
    }
    return ReadText(message, "content", {"text", "input_text", "output_text"});
  }

  absl::Status ReadAssistant(const JsonFields& message) {
    history_.EndInstructions();
    for (const char* const key : {"reasoning", "reasoning_content", "thinking"}) {
      ASSIGN_OR_RETURN(std::optional<std::string> thinking, message.Text(key));
      if (!thinking || thinking->empty()) continue;
      history_.Add(AssistantMessage(kAnalysisChannel, *std::move(thinking)));
      break;
    }
    ASSIGN_OR_RETURN(std::string text,
                     ReadText(message, "content", {"text", "refusal", "output_text"}));
    ASSIGN_OR_RETURN(const ordered_json* calls, message.List("tool_calls"));
    const bool has_calls = calls != nullptr && !calls->empty();
    if (!text.empty()) {
      history_.Add(
          AssistantMessage(has_calls ? kCommentaryChannel : kFinalChannel, std::move(text)));
    }
    RETURN_IF_ERROR(RefuseUnsupported(
        message,
        {{"audio", "send its transcript as content"}, {"function_call", "use tool_calls"}}));
    return message.ForEachObject("tool_calls",
                                 [this](const JsonFields& call) { return ReadCall(call); });
  }

  absl::Status ReadCall(const JsonFields& call) {
    ASSIGN_OR_RETURN(const std::optional<std::string> type, call.Text("type"));
    if (type.value_or("function") != "function") return call.Bad("type", "\"function\"");
    ASSIGN_OR_RETURN(std::string id, call.NeededText("id"));
    ASSIGN_OR_RETURN(const JsonFields function, call.Object("function"));
    ASSIGN_OR_RETURN(const std::string name, function.NeededText("name"));
    RETURN_IF_ERROR(CheckFunctionName(function, name));
    ASSIGN_OR_RETURN(std::optional<std::string> arguments, function.Text("arguments"));
    history_.AddCall(std::move(id), name, std::move(arguments).value_or(""));
    return absl::OkStatus();
  }

  absl::Status ReadResult(const JsonFields& message) {
    ASSIGN_OR_RETURN(const std::string id, message.NeededText("tool_call_id"));
    ASSIGN_OR_RETURN(std::string output, ReadContent(message));
    const std::string path = message.PathOf("tool_call_id");
    switch (history_.AddResult(id, std::move(output))) {
      case History::Result::kAdded:
        break;
      case History::Result::kWithoutCall:
        return BadField(path,
                        absl::StrCat("tool message without a matching call: no assistant message "
                                     "before it has a tool call with the id ",
                                     ShownJson(id)));
      case History::Result::kSecond:
        return BadField(
            path, absl::StrCat("the tool call ", ShownJson(id), " has two results; one would do"));
    }
    return absl::OkStatus();
  }

  History& history_;
};

absl::Status ReadChatMessages(const JsonFields& body, Conversation* out) {
  ASSIGN_OR_RETURN(const ordered_json* messages, body.List("messages"));
  if (messages == nullptr || messages->empty()) {
    return BadField("messages", "messages is empty; at least one message is needed");
  }
  History history(out);
  MessagesReader reader(&history);
  RETURN_IF_ERROR(body.ForEachObject(
      "messages", [&](const JsonFields& message) { return reader.Read(message); }));
  history.Finish();
  return absl::OkStatus();
}

absl::Status ReadTools(const JsonFields& body, ApiRequest* out) {
  RETURN_IF_ERROR(body.ForEachObject("tools", [&](const JsonFields& tool) -> absl::Status {
    ASSIGN_OR_RETURN(const std::string type, tool.NeededText("type"));
    if (type != "function") return tool.Bad("type", "\"function\"; other tools cannot be served");
    ASSIGN_OR_RETURN(const JsonFields fields, tool.Object("function"));
    ASSIGN_OR_RETURN(HarmonyFunction function, ReadFunction(fields));
    return Declare(tool, std::move(function), out);
  }));
  RETURN_IF_ERROR(body.Flag("parallel_tool_calls").status());  // The model makes one call a turn
  return ReadToolChoice(body, out);
}

// reasoning_effort, or OpenRouter's {"reasoning": {"effort", "exclude", "enabled"}}.
absl::Status ReadReasoning(const JsonFields& body, ApiRequest* out) {
  ASSIGN_OR_RETURN(const JsonFields reasoning, body.Object("reasoning"));
  const bool has_word = body.Find("reasoning_effort") != nullptr;
  ASSIGN_OR_RETURN(
      out->conversation.effort,
      has_word ? ReadEffort(body, "reasoning_effort") : ReadEffort(reasoning, "effort"));
  ASSIGN_OR_RETURN(const std::optional<bool> is_enabled, reasoning.Flag("enabled"));
  if (is_enabled == false) out->conversation.effort = ReasoningEffort::kLow;
  ASSIGN_OR_RETURN(const std::optional<bool> excludes, reasoning.Flag("exclude"));
  ASSIGN_OR_RETURN(const std::optional<bool> includes, body.Flag("include_reasoning"));
  out->includes_reasoning = !excludes.value_or(false) && includes.value_or(true);
  return absl::OkStatus();
}

absl::Status ReadSettings(const JsonFields& body, GenerationSettings* out) {
  RETURN_IF_ERROR(ReadSampling(body, out));
  RETURN_IF_ERROR(ReadStop(body, out));
  for (const char* const key : {"max_tokens", "max_completion_tokens"}) {
    ASSIGN_OR_RETURN(const std::optional<int64_t> limit, ReadTokenLimit(body, key));
    if (limit) out->max_tokens = std::min(*limit, out->max_tokens.value_or(*limit));
  }
  ASSIGN_OR_RETURN(const std::optional<int64_t> choices, body.Integer("n"));
  if (choices && (*choices < 1 || *choices > kMaxApiChoices)) {
    return body.Bad("n", absl::StrCat("between 1 and ", kMaxApiChoices));
  }
  out->num_choices = static_cast<int32_t>(choices.value_or(1));
  ASSIGN_OR_RETURN(const std::optional<bool> logprobs, body.Flag("logprobs"));
  ASSIGN_OR_RETURN(const std::optional<int32_t> top, ReadTopLogprobs(body));
  if (top && !logprobs.value_or(false)) {
    return BadField("top_logprobs", "top_logprobs needs logprobs to be true");
  }
  if (logprobs.value_or(false)) out->num_top_logprobs = top.value_or(0);
  return absl::OkStatus();
}

absl::Status ReadStream(const JsonFields& body, ApiRequest* out) {
  ASSIGN_OR_RETURN(const std::optional<bool> is_stream, body.Flag("stream"));
  out->is_stream = is_stream.value_or(false);
  if (body.Find("stream_options") != nullptr && !out->is_stream) {
    return BadField("stream_options", "stream_options needs stream to be true");
  }
  ASSIGN_OR_RETURN(const JsonFields options, body.Object("stream_options"));
  ASSIGN_OR_RETURN(const std::optional<bool> usage, options.Flag("include_usage"));
  out->includes_usage = usage.value_or(false);
  return options.Flag("include_obfuscation").status();
}

absl::Status ReadModalities(const JsonFields& body) {
  const ordered_json* const modalities = body.Find("modalities");
  if (modalities == nullptr || *modalities == ordered_json::array({"text"})) {
    return absl::OkStatus();
  }
  return body.Bad("modalities", "[\"text\"]; nothing else can be made");
}

}  // namespace

absl::StatusOr<ApiRequest> ParseChatRequest(absl::string_view body_text,
                                            const std::optional<std::string>& today) {
  ASSIGN_OR_RETURN(const ordered_json tree, ParseJson(body_text));
  ASSIGN_OR_RETURN(const JsonFields body, JsonFields::Of(tree, ""));
  ApiRequest request;
  request.conversation.current_date = today;
  RETURN_IF_ERROR(RefuseUnsupported(body,
                                    {{"functions", "use tools"},
                                     {"function_call", "use tool_choice"},
                                     {"audio", "only text can be made"},
                                     {"web_search_options", "declare a function that searches"}}));
  RETURN_IF_ERROR(ReadModalities(body));
  ASSIGN_OR_RETURN(const std::optional<std::string> model, body.Text("model"));
  request.model = model.value_or("");
  RETURN_IF_ERROR(ReadChatMessages(body, &request.conversation));
  RETURN_IF_ERROR(ReadTools(body, &request));
  RETURN_IF_ERROR(ReadReasoning(body, &request));
  ASSIGN_OR_RETURN(const JsonFields format, body.Object("response_format"));
  ASSIGN_OR_RETURN(const JsonFields schema, format.Object("json_schema"));
  RETURN_IF_ERROR(ReadOutputFormat(format, schema, &request));
  RETURN_IF_ERROR(ReadSettings(body, &request.settings));
  RETURN_IF_ERROR(ReadStream(body, &request));
  ASSIGN_OR_RETURN(const std::optional<std::string> cache_key, body.Text("prompt_cache_key"));
  request.cache_key = cache_key.value_or("");
  request.ignored = OtherKeys(body,
                              {"messages",
                               "model",
                               "tools",
                               "tool_choice",
                               "temperature",
                               "top_p",
                               "top_k",
                               "min_p",
                               "frequency_penalty",
                               "presence_penalty",
                               "repetition_penalty",
                               "seed",
                               "logit_bias",
                               "stop",
                               "max_tokens",
                               "max_completion_tokens",
                               "n",
                               "logprobs",
                               "top_logprobs",
                               "stream",
                               "stream_options",
                               "reasoning",
                               "reasoning_effort",
                               "include_reasoning",
                               "response_format",
                               "modalities",
                               "prompt_cache_key",
                               "parallel_tool_calls",
                               "functions",
                               "function_call",
                               "audio",
                               "web_search_options"});
  return request;
}

}  // namespace shoal
