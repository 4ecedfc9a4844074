#include "cli/harmony_messages.h"

#include <optional>
#include <string>
#include <utility>
#include <variant>

#include "absl/strings/ascii.h"

#include "base/status_macros.h"
#include "coordinator/api/json_fields.h"
#include "coordinator/text/json_text.h"

namespace shoal {
namespace {

using nlohmann::ordered_json;

absl::StatusOr<HarmonyFunction> ReadDeclaration(const JsonFields& fields) {
  HarmonyFunction function;
  ASSIGN_OR_RETURN(function.name, fields.NeededText("name"));
  ASSIGN_OR_RETURN(const std::optional<std::string> description, fields.Text("description"));
  function.description = description.value_or("");
  if (const ordered_json* parameters = fields.Find("parameters")) {
    function.parameters = CompactJson(*parameters);
  }
  return function;
}

absl::StatusOr<ToolNamespaces> ReadNamespaces(const JsonFields& content) {
  ASSIGN_OR_RETURN(const JsonFields tools, content.Object("tools"));
  ToolNamespaces namespaces;
  for (const auto& [key, value] : tools.json().items()) {
    ASSIGN_OR_RETURN(const JsonFields fields, JsonFields::Of(value, tools.PathOf(key)));
    ToolNamespace& out = namespaces[key];
    ASSIGN_OR_RETURN(out.name, fields.NeededText("name"));
    ASSIGN_OR_RETURN(out.description, fields.Text("description"));
    RETURN_IF_ERROR(fields.ForEachObject("tools", [&](const JsonFields& tool) -> absl::Status {
      ASSIGN_OR_RETURN(HarmonyFunction function, ReadDeclaration(tool));
      out.functions.push_back(std::move(function));
      return absl::OkStatus();
    }));
  }
  return namespaces;
}

absl::StatusOr<std::optional<ReasoningEffort>> ReadEffortWord(const JsonFields& fields) {
  ASSIGN_OR_RETURN(const std::optional<std::string> word, fields.Text("reasoning_effort"));
  if (!word) return std::nullopt;
  for (const auto known :
       {ReasoningEffort::kLow, ReasoningEffort::kMedium, ReasoningEffort::kHigh}) {
    if (absl::AsciiStrToLower(*word) == EffortName(known)) return known;
  }
  return fields.Bad("reasoning_effort", "Low, Medium or High");
}

absl::StatusOr<SystemContent> ReadSystem(const JsonFields& fields) {
  SystemContent system;
  ASSIGN_OR_RETURN(system.model_identity, fields.Text("model_identity"));
  ASSIGN_OR_RETURN(system.knowledge_cutoff, fields.Text("knowledge_cutoff"));
  ASSIGN_OR_RETURN(system.conversation_start_date, fields.Text("conversation_start_date"));
  ASSIGN_OR_RETURN(system.reasoning_effort, ReadEffortWord(fields));
  ASSIGN_OR_RETURN(system.tools, ReadNamespaces(fields));
  ASSIGN_OR_RETURN(const JsonFields config, fields.Object("channel_config"));
  ASSIGN_OR_RETURN(const ordered_json* channels, config.List("valid_channels"));
  if (channels == nullptr) return system;
  for (const ordered_json& channel : *channels) {
    if (!channel.is_string()) return config.Bad("valid_channels", "a list of names");
    system.valid_channels.push_back(channel.get<std::string>());
  }
  ASSIGN_OR_RETURN(const std::optional<bool> is_required, config.Flag("channel_required"));
  system.is_channel_required = is_required.value_or(false);
  return system;
}

absl::StatusOr<DeveloperContent> ReadDeveloper(const JsonFields& fields) {
  DeveloperContent developer;
  ASSIGN_OR_RETURN(developer.instructions, fields.Text("instructions"));
  ASSIGN_OR_RETURN(developer.tools, ReadNamespaces(fields));
  RETURN_IF_ERROR(
      fields.ForEachObject("response_formats", [&](const JsonFields& format) -> absl::Status {
        ResponseFormat& out = developer.response_formats.emplace_back();
        ASSIGN_OR_RETURN(out.name, format.NeededText("name"));
        ASSIGN_OR_RETURN(out.description, format.Text("description"));
        const ordered_json* const schema = format.Find("schema");
        out.schema = schema == nullptr ? "{}" : CompactJson(*schema);
        return absl::OkStatus();
      }));
  return developer;
}

absl::StatusOr<HarmonyPart> ReadPart(const JsonFields& fields) {
  ASSIGN_OR_RETURN(const std::string type, fields.NeededText("type"));
  if (type == "text") return fields.NeededText("text");
  if (type == "system_content") return ReadSystem(fields);
  if (type == "developer_content") return ReadDeveloper(fields);
  return fields.Bad("type", "text, system_content or developer_content");
}

absl::StatusOr<HarmonyMessage> ReadMessage(const JsonFields& fields) {
  HarmonyMessage message;
  ASSIGN_OR_RETURN(const std::string role, fields.NeededText("role"));
  const std::optional<Role> known = ParseRole(role);
  if (!known) return fields.Bad("role", "system, developer, user, assistant or tool");
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
  if (content == nullptr) return fields.Bad("content", "a string or a list of parts");
  RETURN_IF_ERROR(fields.ForEachObject("content", [&](const JsonFields& part) -> absl::Status {
    ASSIGN_OR_RETURN(HarmonyPart read, ReadPart(part));
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

absl::StatusOr<std::vector<HarmonyMessage>> ReadMessages(const ordered_json& row) {
  ASSIGN_OR_RETURN(const JsonFields fields, JsonFields::Of(row, ""));
  std::vector<HarmonyMessage> messages;
  RETURN_IF_ERROR(fields.ForEachObject("messages", [&](const JsonFields& value) -> absl::Status {
    ASSIGN_OR_RETURN(HarmonyMessage message, ReadMessage(value));
    messages.push_back(std::move(message));
    return absl::OkStatus();
  }));
  return messages;
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
