#include "coordinator/api/request_fields.h"

#include <algorithm>
#include <utility>

#include "absl/strings/ascii.h"
#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"

#include "coordinator/text/json_text.h"

namespace shoal {
namespace {

using nlohmann::ordered_json;

absl::Status ReadInRange(const JsonFields& body,
                         absl::string_view key,
                         double low,
                         double high,
                         std::optional<double>* out) {
  ASSIGN_OR_RETURN(*out, body.Number(key));
  if (!*out || (**out >= low && **out <= high)) return absl::OkStatus();
  return body.Bad(key, absl::StrCat("between ", low, " and ", high));
}

absl::Status ReadLogitBias(const JsonFields& body, GenerationSettings* out) {
  ASSIGN_OR_RETURN(const JsonFields bias, body.Object("logit_bias"));
  if (bias.json().size() > kMaxApiLogitBias) {
    return BadField("logit_bias",
                    absl::StrCat("logit_bias has ",
                                 bias.json().size(),
                                 " entries; at most ",
                                 kMaxApiLogitBias,
                                 " are possible"));
  }
  for (const auto& [key, value] : bias.json().items()) {
    int32_t id = 0;
    if (!absl::SimpleAtoi(key, &id) || id < 0) {
      return BadField(
          "logit_bias",
          absl::StrCat("logit_bias has the key ", ShownJson(key), ", which is not a token id"));
    }
    std::optional<double> amount;
    RETURN_IF_ERROR(ReadInRange(bias, key, -100, 100, &amount));
    if (amount) out->logit_bias.emplace_back(TokenId{id}, *amount);
  }
  return absl::OkStatus();
}

// The names of {"type": "function", ...} objects, in either API's spelling; each must be declared.
absl::StatusOr<std::string> ChosenFunction(const JsonFields& choice, const ApiRequest& request) {
  const bool is_nested = choice.Find("function") != nullptr;
  ASSIGN_OR_RETURN(const JsonFields inner, choice.Object("function"));
  const JsonFields& holder = is_nested ? inner : choice;
  ASSIGN_OR_RETURN(std::string name, holder.NeededText("name"));
  if (request.functions.contains(name)) return name;
  return BadField(
      holder.PathOf("name"),
      absl::StrCat(
          "tool_choice names an unknown function: ", ShownJson(name), " is not among tools"));
}

absl::StatusOr<ToolChoice::Mode> ReadMode(const JsonFields& fields, absl::string_view key) {
  const ordered_json* const word = fields.Find(key);
  if (word == nullptr || *word == "auto") return ToolChoice::Mode::kAuto;
  if (*word == "none") return ToolChoice::Mode::kNone;
  if (*word == "required") return ToolChoice::Mode::kRequired;
  return fields.Bad(
      key, R"("none", "auto", "required" or an object with type "function" or "allowed_tools")");
}

absl::Status ReadAllowedTools(const JsonFields& choice, ApiRequest* out) {
  ASSIGN_OR_RETURN(const JsonFields nested, choice.Object("allowed_tools"));
  const JsonFields& holder = choice.Find("allowed_tools") == nullptr ? choice : nested;
  ASSIGN_OR_RETURN(out->tool_choice.mode, ReadMode(holder, "mode"));
  RETURN_IF_ERROR(holder.ForEachObject("tools", [&](const JsonFields& tool) -> absl::Status {
    ASSIGN_OR_RETURN(const std::string type, tool.NeededText("type"));
    if (type != "function") return tool.Bad("type", "\"function\"");
    ASSIGN_OR_RETURN(std::string name, ChosenFunction(tool, *out));
    out->tool_choice.allowed.push_back(std::move(name));
    return absl::OkStatus();
  }));
  if (!out->tool_choice.allowed.empty()) return absl::OkStatus();
  return BadField(holder.PathOf("tools"),
                  absl::StrCat(holder.PathOf("tools"),
                               " is empty; name at least one function, or set tool_choice to "
                               "\"none\""));
}

absl::StatusOr<std::string> PartText(const JsonFields& part,
                                     std::initializer_list<absl::string_view> kinds) {
  ASSIGN_OR_RETURN(const std::string type, part.NeededText("type"));
  if (std::find(kinds.begin(), kinds.end(), type) != kinds.end()) {
    return part.NeededText(type == "refusal" ? "refusal" : "text");
  }
  const bool is_image = absl::StrContains(type, "image");
  return BadFieldWithCode(
      part.PathOf("type"),
      "unsupported_content",
      absl::StrCat(part.PathOf("type"),
                   ": content of type ",
                   ShownJson(type),
                   is_image ? " (an image) cannot be read; these models read text only: "
                            : " is not supported here; these are: ",
                   absl::StrJoin(kinds, ", ")));
}

}  // namespace

absl::Status ReadSampling(const JsonFields& body, GenerationSettings* out) {
  RETURN_IF_ERROR(ReadInRange(body, "temperature", 0, 2, &out->temperature));
  RETURN_IF_ERROR(ReadInRange(body, "top_p", 0, 1, &out->top_p));
  if (out->top_p == 0.0) return body.Bad("top_p", "above 0 and at most 1");
  RETURN_IF_ERROR(ReadInRange(body, "min_p", 0, 1, &out->min_p));
  RETURN_IF_ERROR(ReadInRange(body, "frequency_penalty", -2, 2, &out->frequency_penalty));
  RETURN_IF_ERROR(ReadInRange(body, "presence_penalty", -2, 2, &out->presence_penalty));
  RETURN_IF_ERROR(ReadInRange(body, "repetition_penalty", 0, 100, &out->repetition_penalty));
  if (out->repetition_penalty == 0.0) {
    return body.Bad("repetition_penalty", "above 0; 1 is off");
  }
  ASSIGN_OR_RETURN(out->top_k, body.Integer("top_k"));
  constexpr int64_t kMaxTopK = std::numeric_limits<int32_t>::max();
  if (out->top_k && (*out->top_k < -1 || *out->top_k > kMaxTopK)) {
    return body.Bad("top_k", "at least 1, or 0 for off");
  }
  ASSIGN_OR_RETURN(out->seed, body.Integer("seed"));
  return ReadLogitBias(body, out);
}

absl::Status ReadStop(const JsonFields& body, GenerationSettings* out) {
  const ordered_json* const value = body.Find("stop");
  if (value == nullptr) return absl::OkStatus();
  const absl::Status bad = body.Bad("stop",
                                    absl::StrCat("a string or a list of 1 to ",
                                                 kMaxApiStopStrings,
                                                 " strings, each of 1 to ",
                                                 kMaxApiStopBytes,
                                                 " bytes"));
  const ordered_json list = value->is_array() ? *value : ordered_json::array({*value});
  if (list.empty() || list.size() > kMaxApiStopStrings) return bad;
  for (const ordered_json& stop : list) {
    if (!stop.is_string()) return bad;
    const std::string& text = stop.get_ref<const std::string&>();
    if (text.empty() || text.size() > kMaxApiStopBytes) return bad;
    out->stop.push_back(text);
  }
  return absl::OkStatus();
}

absl::StatusOr<std::optional<int64_t>> ReadTokenLimit(const JsonFields& body,
                                                      absl::string_view key) {
  ASSIGN_OR_RETURN(const std::optional<int64_t> limit, body.Integer(key));
  if (limit && *limit < 1) {
    return body.Bad(key, "at least 1; leave it out for all that the context holds");
  }
  return limit;
}

absl::StatusOr<std::optional<int32_t>> ReadTopLogprobs(const JsonFields& body) {
  ASSIGN_OR_RETURN(const std::optional<int64_t> top, body.Integer("top_logprobs"));
  if (!top) return std::nullopt;
  if (*top < 0 || *top > kMaxApiTopLogprobs) {
    return body.Bad("top_logprobs", absl::StrCat("between 0 and ", kMaxApiTopLogprobs));
  }
  return static_cast<int32_t>(*top);
}

absl::StatusOr<ReasoningEffort> ReadEffort(const JsonFields& fields, absl::string_view key) {
  ASSIGN_OR_RETURN(const std::optional<std::string> word, fields.Text(key));
  if (!word || *word == "medium") return ReasoningEffort::kMedium;
  if (*word == "low" || *word == "minimal" || *word == "none") return ReasoningEffort::kLow;
  if (*word == "high" || *word == "xhigh" || *word == "max") return ReasoningEffort::kHigh;
  return fields.Bad(key, R"("low", "medium" or "high" (or "none", "minimal", "xhigh", "max"))");
}

absl::Status CheckFunctionName(const JsonFields& fields, const std::string& name) {
  const bool is_fine =
      !name.empty() && name.size() <= kMaxFunctionNameBytes &&
      std::all_of(name.begin(), name.end(), [](char c) {
        return absl::ascii_isalnum(static_cast<unsigned char>(c)) || c == '_' || c == '-';
      });
  if (is_fine) return absl::OkStatus();
  return fields.Bad("name",
                    absl::StrCat("1 to ", kMaxFunctionNameBytes, " letters, digits, '_' or '-'"));
}

absl::StatusOr<HarmonyFunction> ReadFunction(const JsonFields& fields) {
  HarmonyFunction function;
  ASSIGN_OR_RETURN(function.name, fields.NeededText("name"));
  RETURN_IF_ERROR(CheckFunctionName(fields, function.name));
  ASSIGN_OR_RETURN(const std::optional<std::string> description, fields.Text("description"));
  function.description = description.value_or("");
  ASSIGN_OR_RETURN(const JsonFields parameters, fields.Object("parameters"));
  if (fields.Find("parameters") != nullptr) function.parameters = CompactJson(parameters.json());
  ASSIGN_OR_RETURN(const std::optional<bool> strict, fields.Flag("strict"));
  function.is_strict = strict.value_or(false);
  return function;
}

absl::Status Declare(const JsonFields& tool, HarmonyFunction function, ApiRequest* out) {
  if (!out->functions.insert(function.name).second) {
    return BadField(tool.path(),
                    absl::StrCat(tool.path(),
                                 ": a function named \"",
                                 function.name,
                                 "\" was declared before; names must differ"));
  }
  out->conversation.functions.push_back(std::move(function));
  return absl::OkStatus();
}

absl::Status ReadToolChoice(const JsonFields& body, ApiRequest* out) {
  using Mode = ToolChoice::Mode;
  const ordered_json* const value = body.Find("tool_choice");
  if (value != nullptr && value->is_object()) {
    ASSIGN_OR_RETURN(const JsonFields choice, body.Object("tool_choice"));
    ASSIGN_OR_RETURN(const std::string type, choice.NeededText("type"));
    if (type == "function") {
      ASSIGN_OR_RETURN(std::string name, ChosenFunction(choice, *out));
      out->tool_choice = {Mode::kRequired, {std::move(name)}};
    } else if (type == "allowed_tools") {
      RETURN_IF_ERROR(ReadAllowedTools(choice, out));
    } else {
      return choice.Bad("type", R"("function" or "allowed_tools")");
    }
  } else {
    ASSIGN_OR_RETURN(out->tool_choice.mode, ReadMode(body, "tool_choice"));
  }
  if (out->functions.empty() && out->tool_choice.mode == Mode::kRequired) {
    return BadField("tool_choice",
                    "tool_choice is \"required\" and there are no tools; declare a function");
  }
  if (out->functions.empty()) out->tool_choice.mode = Mode::kNone;
  if (out->tool_choice.mode == Mode::kNone) {
    out->functions.clear();
    out->conversation.functions.clear();
  }
  return absl::OkStatus();
}

absl::Status ReadOutputFormat(const JsonFields& format, const JsonFields& schema, ApiRequest* out) {
  using Kind = OutputFormat::Kind;
  ASSIGN_OR_RETURN(const std::optional<std::string> type, format.Text("type"));
  if (!type || *type == "text") {
    if (type || format.json().empty()) return absl::OkStatus();
    return format.NeededText("type").status();
  }
  if (*type == "json_object") {
    out->format.kind = Kind::kJsonObject;
    return absl::OkStatus();
  }
  if (*type != "json_schema")
    return format.Bad("type", R"("text", "json_object" or "json_schema")");
  ResponseFormat shown;
  ASSIGN_OR_RETURN(shown.name, schema.NeededText("name"));
  RETURN_IF_ERROR(CheckFunctionName(schema, shown.name));
  ASSIGN_OR_RETURN(shown.description, schema.Text("description"));
  ASSIGN_OR_RETURN(const JsonFields tree, schema.Object("schema"));
  shown.schema = CompactJson(tree.json());
  ASSIGN_OR_RETURN(const std::optional<bool> strict, schema.Flag("strict"));
  out->format = {Kind::kJsonSchema, shown.schema, strict.value_or(false)};
  out->conversation.response_format = std::move(shown);
  return absl::OkStatus();
}

absl::StatusOr<std::string> ReadText(const JsonFields& fields,
                                     absl::string_view key,
                                     std::initializer_list<absl::string_view> kinds) {
  const ordered_json* const value = fields.Find(key);
  if (value == nullptr) return "";
  if (value->is_string()) return value->get<std::string>();
  if (!value->is_array()) return fields.Bad(key, "a string or a list of parts");
  std::string text;
  RETURN_IF_ERROR(fields.ForEachObject(key, [&](const JsonFields& part) -> absl::Status {
    ASSIGN_OR_RETURN(const std::string piece, PartText(part, kinds));
    absl::StrAppend(&text, piece);
    return absl::OkStatus();
  }));
  return text;
}

absl::Status RefuseUnsupported(const JsonFields& body, std::initializer_list<Unsupported> keys) {
  for (const Unsupported& unsupported : keys) {
    if (body.Find(unsupported.key) == nullptr) continue;
    return BadFieldWithCode(
        body.PathOf(unsupported.key),
        "unsupported_parameter",
        absl::StrCat(body.PathOf(unsupported.key), " is not supported; ", unsupported.advice));
  }
  return absl::OkStatus();
}

std::vector<std::string> OtherKeys(const JsonFields& body,
                                   std::initializer_list<absl::string_view> known) {
  std::vector<std::string> others;
  for (const auto& [key, value] : body.json().items()) {
    if (std::find(known.begin(), known.end(), key) == known.end()) others.push_back(key);
  }
  return others;
}

}  // namespace shoal
