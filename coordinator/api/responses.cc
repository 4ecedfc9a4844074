#include "coordinator/api/responses.h"

#include <map>
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

class ItemsReader {
 public:
  explicit ItemsReader(History* history) : history_(*history) {}

  absl::Status Read(const JsonFields& item) {
    ASSIGN_OR_RETURN(const std::optional<std::string> given, item.Text("type"));
    const std::string type = given.value_or("message");
    if (type == "message") return ReadMessage(item);
    history_.EndInstructions();
    if (type == "reasoning") return ReadReasoning(item);
    if (type == "function_call") return ReadCall(item);
    if (type == "function_call_output") return ReadOutput(item);
    return BadFieldWithCode(item.PathOf("type"),
                            "unsupported_content",
                            absl::StrCat("unsupported input item: ",
                                         ShownJson(type),
                                         "; these are read: message, reasoning, function_call, "
                                         "function_call_output"));
  }

 private:
  absl::Status ReadMessage(const JsonFields& item) {
    ASSIGN_OR_RETURN(const std::string role, item.NeededText("role"));
    if (!item.json().contains("content")) {
      return BadField(item.PathOf("content"),
                      absl::StrCat(item.PathOf("content"),
                                   " is missing; it must be a string or a list of parts"));
    }
    const bool is_assistant = role == "assistant";
    ASSIGN_OR_RETURN(
        std::string text,
        is_assistant ? ReadText(item, "content", {"output_text", "refusal", "text", "input_text"})
                     : ReadText(item, "content", {"input_text", "text", "output_text"}));
    if (role == "system" || role == "developer") {
      history_.AddInstructions(std::move(text));
      return absl::OkStatus();
    }
    if (role == "user") {
      history_.Add(UserMessage(std::move(text)));
      return absl::OkStatus();
    }
    if (!is_assistant) {
      return BadField(item.PathOf("role"),
                      absl::StrCat("unknown role: ",
                                   ShownWord(role),
                                   "; it must be user, assistant, system or developer"));
    }
    ASSIGN_OR_RETURN(const std::optional<std::string> phase, item.Text("phase"));
    const std::string word = phase.value_or("final_answer");
    if (word != "final_answer" && word != "commentary") {
      return item.Bad("phase", R"("commentary" or "final_answer")");
    }
    history_.Add(AssistantMessage(word == "commentary" ? kCommentaryChannel : kFinalChannel,
                                  std::move(text)));
    return absl::OkStatus();
  }

  absl::Status ReadReasoning(const JsonFields& item) {
    size_t num_texts = 0;
    RETURN_IF_ERROR(item.ForEachObject("content", [&](const JsonFields& part) -> absl::Status {
      ASSIGN_OR_RETURN(const std::string type, part.NeededText("type"));
      if (type != "reasoning_text") return part.Bad("type", "\"reasoning_text\"");
      ASSIGN_OR_RETURN(std::string text, part.NeededText("text"));
      history_.Add(AssistantMessage(kAnalysisChannel, std::move(text)));
      ++num_texts;
      return absl::OkStatus();
    }));
    if (num_texts > 0 || item.Find("encrypted_content") == nullptr) return absl::OkStatus();
    return BadField(item.PathOf("encrypted_content"),
                    absl::StrCat(item.PathOf("encrypted_content"),
                                 " was not issued by this server and cannot be read; send the "
                                 "item's content, or leave the item out"));
  }

  absl::Status ReadCall(const JsonFields& item) {
    ASSIGN_OR_RETURN(std::string id, item.NeededText("call_id"));
    ASSIGN_OR_RETURN(const std::string name, item.NeededText("name"));
    RETURN_IF_ERROR(CheckFunctionName(item, name));
    ASSIGN_OR_RETURN(std::optional<std::string> arguments, item.Text("arguments"));
    history_.AddCall(std::move(id), name, std::move(arguments).value_or(""));
    return absl::OkStatus();
  }

  absl::Status ReadOutput(const JsonFields& item) {
    ASSIGN_OR_RETURN(const std::string id, item.NeededText("call_id"));
    ASSIGN_OR_RETURN(std::string output,
                     ReadText(item, "output", {"input_text", "output_text", "text"}));
    switch (history_.AddResult(id, std::move(output))) {
      case History::Result::kAdded:
        break;
      case History::Result::kWithoutCall:
        return BadField(item.PathOf("call_id"),
                        absl::StrCat("function_call_output without its function_call: no item "
                                     "before it has the call_id ",
                                     ShownJson(id)));
      case History::Result::kSecond:
        return BadField(item.PathOf("call_id"),
                        absl::StrCat("the call ", ShownJson(id), " has two outputs; one would do"));
    }
    return absl::OkStatus();
  }

  History& history_;
};

absl::Status ReadInput(const JsonFields& body, Conversation* out) {
  ASSIGN_OR_RETURN(const std::optional<std::string> instructions, body.Text("instructions"));
  out->instructions = instructions.value_or("");
  const ordered_json* const input = body.Find("input");
  if (input != nullptr && input->is_string()) {
    out->history.push_back(UserMessage(input->get<std::string>()));
    return absl::OkStatus();
  }
  if (input == nullptr || (input->is_array() && input->empty())) {
    return BadField("input", "input is empty; a string or at least one item is needed");
  }
  if (!input->is_array()) return body.Bad("input", "a string or a list of items");
  History history(out);
  ItemsReader reader(&history);
  RETURN_IF_ERROR(
      body.ForEachObject("input", [&](const JsonFields& item) { return reader.Read(item); }));
  history.Finish();
  return absl::OkStatus();
}

absl::Status ReadTools(const JsonFields& body, ApiRequest* out) {
  RETURN_IF_ERROR(body.ForEachObject("tools", [&](const JsonFields& tool) -> absl::Status {
    ASSIGN_OR_RETURN(const std::string type, tool.NeededText("type"));
    if (type != "function") return tool.Bad("type", "\"function\"; other tools cannot be served");
    ASSIGN_OR_RETURN(HarmonyFunction function, ReadFunction(tool));
    return Declare(tool, std::move(function), out);
  }));
  RETURN_IF_ERROR(body.Flag("parallel_tool_calls").status());
  return ReadToolChoice(body, out);
}

absl::Status ReadSettings(const JsonFields& body, GenerationSettings* out) {
  RETURN_IF_ERROR(ReadSampling(body, out));
  ASSIGN_OR_RETURN(out->max_tokens, ReadTokenLimit(body, "max_output_tokens"));
  ASSIGN_OR_RETURN(const std::optional<int32_t> top, ReadTopLogprobs(body));
  if (top && *top > 0) out->num_top_logprobs = top;
  ASSIGN_OR_RETURN(const ordered_json* include, body.List("include"));
  if (include == nullptr) return absl::OkStatus();
  for (const ordered_json& what : *include) {
    if (what == "message.output_text.logprobs") {
      out->num_top_logprobs = top.value_or(0);
    } else if (what != "reasoning.encrypted_content") {  // Reasoning is sent in the clear anyway
      return BadField("include",
                      absl::StrCat("include names ",
                                   ShownJson(what),
                                   "; \"message.output_text.logprobs\" and "
                                   "\"reasoning.encrypted_content\" are possible"));
    }
  }
  return absl::OkStatus();
}

absl::Status RefuseStored(const JsonFields& body) {
  RETURN_IF_ERROR(RefuseUnsupported(
      body,
      {{"previous_response_id", "nothing is stored here; send the whole conversation as input"},
       {"conversation", "nothing is stored here; send the whole conversation as input"},
       {"prompt", "no prompt templates are stored here; send instructions and input"}}));
  ASSIGN_OR_RETURN(const std::optional<bool> is_background, body.Flag("background"));
  if (is_background.value_or(false)) {
    return body.Bad("background", "false; answers are not kept for later, use stream");
  }
  ASSIGN_OR_RETURN(const std::optional<std::string> truncation, body.Text("truncation"));
  if (truncation.value_or("disabled") != "disabled") {
    return body.Bad("truncation", "\"disabled\"; leave out old items instead");
  }
  return body.Flag("store").status();  // Accepted; the response says store: false
}

ordered_json OrNull(const JsonFields& body, const char* key) {
  const ordered_json* const value = body.Find(key);
  return value == nullptr ? ordered_json() : *value;
}

ordered_json Or(const JsonFields& body, const char* key, ordered_json fallback) {
  const ordered_json* const value = body.Find(key);
  return value == nullptr ? std::move(fallback) : *value;
}

std::string Echo(const JsonFields& body, const ApiRequest& request) {
  const ordered_json text = Or(body, "text", ordered_json::object());
  const ordered_json format = text.value("format", ordered_json());
  const ordered_json echo = {
      {"instructions", OrNull(body, "instructions")},
      {"max_output_tokens", OrNull(body, "max_output_tokens")},
      {"metadata", Or(body, "metadata", ordered_json::object())},
      {"parallel_tool_calls", Or(body, "parallel_tool_calls", true)},
      {"previous_response_id", nullptr},
      {"reasoning",
       {{"effort", std::string(EffortName(request.conversation.effort))}, {"summary", nullptr}}},
      {"store", false},
      {"temperature", Or(body, "temperature", 1.0)},
      {"text", {{"format", format.is_null() ? ordered_json{{"type", "text"}} : format}}},
      {"tool_choice", Or(body, "tool_choice", "auto")},
      {"tools", Or(body, "tools", ordered_json::array())},
      {"top_logprobs", Or(body, "top_logprobs", 0)},
      {"top_p", Or(body, "top_p", 1.0)},
      {"truncation", "disabled"}};
  return echo.dump();
}

}  // namespace

absl::StatusOr<ResponsesRequest> ParseResponsesRequest(absl::string_view body_text,
                                                       const std::optional<std::string>& today) {
  ASSIGN_OR_RETURN(const ordered_json tree, ParseJson(body_text));
  ASSIGN_OR_RETURN(const JsonFields body, JsonFields::Of(tree, ""));
  ResponsesRequest out;
  ApiRequest& request = out.request;
  request.conversation.current_date = today;
  RETURN_IF_ERROR(RefuseStored(body));
  ASSIGN_OR_RETURN(const std::optional<std::string> model, body.Text("model"));
  request.model = model.value_or("");
  RETURN_IF_ERROR(ReadInput(body, &request.conversation));
  RETURN_IF_ERROR(ReadTools(body, &request));
  ASSIGN_OR_RETURN(const JsonFields reasoning, body.Object("reasoning"));
  ASSIGN_OR_RETURN(request.conversation.effort, ReadEffort(reasoning, "effort"));
  ASSIGN_OR_RETURN(const JsonFields text, body.Object("text"));
  ASSIGN_OR_RETURN(const JsonFields format, text.Object("format"));
  RETURN_IF_ERROR(ReadOutputFormat(format, format, &request));
  RETURN_IF_ERROR(ReadSettings(body, &request.settings));
  ASSIGN_OR_RETURN(const std::optional<bool> is_stream, body.Flag("stream"));
  request.is_stream = is_stream.value_or(false);
  ASSIGN_OR_RETURN(const std::optional<std::string> cache_key, body.Text("prompt_cache_key"));
  request.cache_key = cache_key.value_or("");
  request.ignored = OtherKeys(body,
                              {"model",
                               "input",
                               "instructions",
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
                               "max_output_tokens",
                               "top_logprobs",
                               "include",
                               "reasoning",
                               "text",
                               "stream",
                               "store",
                               "truncation",
                               "background",
                               "parallel_tool_calls",
                               "metadata",
                               "prompt_cache_key",
                               "previous_response_id",
                               "conversation",
                               "prompt"});
  out.echo = Echo(body, request);
  return out;
}

}  // namespace shoal
