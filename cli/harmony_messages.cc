#include "cli/harmony_messages.h"

#include <optional>
#include <string>
#include <utility>
#include <variant>

#include "absl/strings/ascii.h"
#include "absl/strings/str_cat.h"

#include "base/status_macros.h"
#include "coordinator/text/json_text.h"

namespace shoal {
namespace {

using nlohmann::ordered_json;

// One JSON object and where it stands, for errors.
class Fields {
 public:
  static absl::StatusOr<Fields> Of(const ordered_json& value, std::string path) {
    if (value.is_object()) return Fields(&value, std::move(path));
    return absl::InvalidArgumentError(
        absl::StrCat(path, " must be an object, not ", value.type_name()));
  }

  // Null if it is missing or null.
  const ordered_json* Find(const char* key) const {
    const auto at = value_.find(key);
    return at == value_.end() || at->is_null() ? nullptr : &*at;
  }

  std::string PathOf(absl::string_view key) const { return absl::StrCat(path_, ".", key); }

  absl::StatusOr<std::optional<std::string>> Text(const char* key) const {
    const ordered_json* const value = Find(key);
    if (value == nullptr) return std::nullopt;
    if (value->is_string()) return value->get<std::string>();
    return absl::InvalidArgumentError(
        absl::StrCat(PathOf(key), " must be a string, not ", value->type_name()));
  }

  absl::StatusOr<std::string> NeededText(const char* key) const {
    ASSIGN_OR_RETURN(std::optional<std::string> text, Text(key));
    if (text) return *std::move(text);
    return absl::InvalidArgumentError(absl::StrCat(PathOf(key), " is missing; it is a string"));
  }

  // Calls read(element, its path) for each element of a list, if there is one.
  template <typename Read>
  absl::Status ForEach(const char* key, Read read) const {
    const ordered_json* const list = Find(key);
    if (list == nullptr) return absl::OkStatus();
    if (!list->is_array()) {
      return absl::InvalidArgumentError(
          absl::StrCat(PathOf(key), " must be a list, not ", list->type_name()));
    }
    for (size_t i = 0; i < list->size(); ++i) {
      RETURN_IF_ERROR(read((*list)[i], absl::StrCat(PathOf(key), "[", i, "]")));
    }
    return absl::OkStatus();
  }

 private:
  Fields(const ordered_json* value, std::string path) : value_(*value), path_(std::move(path)) {}

  const ordered_json& value_;
  std::string path_;
};

absl::StatusOr<HarmonyFunction> ReadFunction(const ordered_json& value, std::string path) {
  ASSIGN_OR_RETURN(const Fields fields, Fields::Of(value, std::move(path)));
  HarmonyFunction function;
  ASSIGN_OR_RETURN(function.name, fields.NeededText("name"));
  ASSIGN_OR_RETURN(const std::optional<std::string> description, fields.Text("description"));
  function.description = description.value_or("");
  if (const ordered_json* parameters = fields.Find("parameters")) {
    function.parameters = CompactJson(*parameters);
  }
  return function;
}

absl::StatusOr<ToolNamespaces> ReadNamespaces(const Fields& content) {
  ToolNamespaces namespaces;
  const ordered_json* const tools = content.Find("tools");
  if (tools == nullptr) return namespaces;
  if (!tools->is_object()) {
    return absl::InvalidArgumentError(
        absl::StrCat(content.PathOf("tools"), " must be an object, not ", tools->type_name()));
  }
  for (const auto& [key, value] : tools->items()) {
    ASSIGN_OR_RETURN(const Fields fields,
                     Fields::Of(value, absl::StrCat(content.PathOf("tools"), ".", key)));
    ToolNamespace& out = namespaces[key];
    ASSIGN_OR_RETURN(out.name, fields.NeededText("name"));
    ASSIGN_OR_RETURN(out.description, fields.Text("description"));
    RETURN_IF_ERROR(
        fields.ForEach("tools", [&](const ordered_json& tool, std::string path) -> absl::Status {
          ASSIGN_OR_RETURN(HarmonyFunction function, ReadFunction(tool, std::move(path)));
          out.functions.push_back(std::move(function));
          return absl::OkStatus();
        }));
  }
  return namespaces;
}

absl::StatusOr<SystemContent> ReadSystem(const Fields& fields) {
  SystemContent system;
  ASSIGN_OR_RETURN(system.model_identity, fields.Text("model_identity"));
  ASSIGN_OR_RETURN(system.knowledge_cutoff, fields.Text("knowledge_cutoff"));
  ASSIGN_OR_RETURN(system.conversation_start_date, fields.Text("conversation_start_date"));
  ASSIGN_OR_RETURN(const std::optional<std::string> effort, fields.Text("reasoning_effort"));
  if (effort) {
    for (const auto known :
         {ReasoningEffort::kLow, ReasoningEffort::kMedium, ReasoningEffort::kHigh}) {
      if (absl::AsciiStrToLower(*effort) == EffortName(known)) system.reasoning_effort = known;
    }
    if (!system.reasoning_effort) {
      return absl::InvalidArgumentError(absl::StrCat(
          fields.PathOf("reasoning_effort"), " must be Low, Medium or High, not ", *effort));
    }
  }
  ASSIGN_OR_RETURN(system.tools, ReadNamespaces(fields));
  const ordered_json* const config = fields.Find("channel_config");
  if (config == nullptr) return system;
  ASSIGN_OR_RETURN(const Fields channels, Fields::Of(*config, fields.PathOf("channel_config")));
  RETURN_IF_ERROR(channels.ForEach(
      "valid_channels", [&](const ordered_json& channel, const std::string& path) -> absl::Status {
        if (!channel.is_string()) {
          return absl::InvalidArgumentError(absl::StrCat(path, " must be a string"));
        }
        system.valid_channels.push_back(channel.get<std::string>());
        return absl::OkStatus();
      }));
  const ordered_json* const required = channels.Find("channel_required");
  system.is_channel_required =
      required != nullptr && required->is_boolean() && required->get<bool>();
  return system;
}

absl::StatusOr<DeveloperContent> ReadDeveloper(const Fields& fields) {
  DeveloperContent developer;
  ASSIGN_OR_RETURN(developer.instructions, fields.Text("instructions"));
  ASSIGN_OR_RETURN(developer.tools, ReadNamespaces(fields));
  RETURN_IF_ERROR(fields.ForEach(
      "response_formats", [&](const ordered_json& value, std::string path) -> absl::Status {
        ASSIGN_OR_RETURN(const Fields format, Fields::Of(value, std::move(path)));
        ResponseFormat& out = developer.response_formats.emplace_back();
        ASSIGN_OR_RETURN(out.name, format.NeededText("name"));
        ASSIGN_OR_RETURN(out.description, format.Text("description"));
        const ordered_json* const schema = format.Find("schema");
        out.schema = schema == nullptr ? "{}" : CompactJson(*schema);
        return absl::OkStatus();
      }));
  return developer;
}

absl::StatusOr<HarmonyPart> ReadPart(const ordered_json& value, std::string path) {
  ASSIGN_OR_RETURN(const Fields fields, Fields::Of(value, std::move(path)));
  ASSIGN_OR_RETURN(const std::string type, fields.NeededText("type"));
  if (type == "text") return fields.NeededText("text");
  if (type == "system_content") return ReadSystem(fields);
  if (type == "developer_content") return ReadDeveloper(fields);
  return absl::InvalidArgumentError(absl::StrCat(
      fields.PathOf("type"), " must be text, system_content or developer_content, not ", type));
}

absl::StatusOr<HarmonyMessage> ReadMessage(const ordered_json& value, std::string path) {
  ASSIGN_OR_RETURN(const Fields fields, Fields::Of(value, std::move(path)));
  HarmonyMessage message;
  ASSIGN_OR_RETURN(const std::string role, fields.NeededText("role"));
  const std::optional<Role> known = ParseRole(role);
  if (!known) {
    return absl::InvalidArgumentError(absl::StrCat(
        fields.PathOf("role"), " must be system, developer, user, assistant or tool, not ", role));
  }
  message.role = *known;
  ASSIGN_OR_RETURN(message.name, fields.Text("name"));
  ASSIGN_OR_RETURN(message.recipient, fields.Text("recipient"));
  ASSIGN_OR_RETURN(message.channel, fields.Text("channel"));
  ASSIGN_OR_RETURN(message.content_type, fields.Text("content_type"));
  const ordered_json* const content = fields.Find("content");
  if (content != nullptr && content->is_string()) {
    message.content.emplace_back(content->get<std::string>());
    return message;
  }
  if (content == nullptr) {
    return absl::InvalidArgumentError(
        absl::StrCat(fields.PathOf("content"), " is missing; it is a string or a list of parts"));
  }
  RETURN_IF_ERROR(
      fields.ForEach("content", [&](const ordered_json& part, std::string at) -> absl::Status {
        ASSIGN_OR_RETURN(HarmonyPart read, ReadPart(part, std::move(at)));
        message.content.push_back(std::move(read));
        return absl::OkStatus();
      }));
  return message;
}

ordered_json SchemaTree(const std::string& schema) {
  return ParseJson(schema).value_or(ordered_json());
}

ordered_json OrNull(const std::optional<std::string>& text) {
  return text ? ordered_json(*text) : ordered_json();
}

void WriteNamespaces(const ToolNamespaces& namespaces, ordered_json* out) {
  if (namespaces.empty()) return;
  ordered_json& tools = (*out)["tools"];
  for (const auto& [key, value] : namespaces) {
    ordered_json functions = ordered_json::array();
    for (const HarmonyFunction& function : value.functions) {
      functions.push_back(
          {{"name", function.name},
           {"description", function.description},
           {"parameters",
            function.parameters ? SchemaTree(*function.parameters) : ordered_json()}});
    }
    tools[key] = {{"name", value.name},
                  {"description", OrNull(value.description)},
                  {"tools", std::move(functions)}};
  }
}

struct PartWriter {
  ordered_json operator()(const std::string& text) const {
    return {{"type", "text"}, {"text", text}};
  }

  ordered_json operator()(const SystemContent& system) const {
    ordered_json out = {{"type", "system_content"}};
    if (system.model_identity) out["model_identity"] = *system.model_identity;
    if (system.reasoning_effort) {
      std::string effort(EffortName(*system.reasoning_effort));
      effort[0] = absl::ascii_toupper(static_cast<unsigned char>(effort[0]));
      out["reasoning_effort"] = std::move(effort);
    }
    if (system.knowledge_cutoff) out["knowledge_cutoff"] = *system.knowledge_cutoff;
    if (!system.valid_channels.empty()) {
      out["channel_config"] = {{"valid_channels", system.valid_channels},
                               {"channel_required", system.is_channel_required}};
    }
    if (system.conversation_start_date) {
      out["conversation_start_date"] = *system.conversation_start_date;
    }
    WriteNamespaces(system.tools, &out);
    return out;
  }

  ordered_json operator()(const DeveloperContent& developer) const {
    ordered_json out = {{"type", "developer_content"}};
    if (developer.instructions) out["instructions"] = *developer.instructions;
    WriteNamespaces(developer.tools, &out);
    for (const ResponseFormat& format : developer.response_formats) {
      out["response_formats"].push_back({{"name", format.name},
                                         {"description", OrNull(format.description)},
                                         {"schema", SchemaTree(format.schema)}});
    }
    return out;
  }
};

}  // namespace

absl::StatusOr<std::vector<HarmonyMessage>> ReadMessages(const ordered_json& messages) {
  if (!messages.is_array()) {
    return absl::InvalidArgumentError(
        absl::StrCat("messages must be a list, not ", messages.type_name()));
  }
  std::vector<HarmonyMessage> result;
  for (const ordered_json& value : messages) {
    ASSIGN_OR_RETURN(HarmonyMessage message,
                     ReadMessage(value, absl::StrCat("messages[", result.size(), "]")));
    result.push_back(std::move(message));
  }
  return result;
}

ordered_json WriteMessages(const std::vector<HarmonyMessage>& messages) {
  ordered_json result = ordered_json::array();
  for (const HarmonyMessage& message : messages) {
    ordered_json out = {{"role", RoleName(message.role)}};
    if (message.name) out["name"] = *message.name;
    if (message.recipient) out["recipient"] = *message.recipient;
    if (message.channel) out["channel"] = *message.channel;
    if (message.content_type) out["content_type"] = *message.content_type;
    const auto* text =
        message.content.size() == 1 ? std::get_if<std::string>(&message.content.front()) : nullptr;
    if (text != nullptr) {
      out["content"] = *text;
    } else {
      out["content"] = ordered_json::array();
      for (const HarmonyPart& part : message.content) {
        out["content"].push_back(std::visit(PartWriter{}, part));
      }
    }
    result.push_back(std::move(out));
  }
  return result;
}

}  // namespace shoal
