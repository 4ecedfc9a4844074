#include "coordinator/text/harmony_writer.h"

#include <algorithm>
#include <optional>
#include <utility>
#include <variant>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/strings/strip.h"

#include "base/status_macros.h"
#include "coordinator/text/json_text.h"
#include "coordinator/text/typescript.h"
#include "coordinator/text/utf8.h"

namespace shoal {
namespace {

using Piece = std::variant<TokenId, std::string>;

// As Rust's str::lines: "\n" or "\r\n" ends a line, and there is no empty last one. Views of text.
std::vector<absl::string_view> Lines(absl::string_view text) {
  std::vector<absl::string_view> lines;
  while (!text.empty()) {
    const size_t newline = text.find('\n');
    absl::string_view line = text.substr(0, newline);
    text.remove_prefix(newline == absl::string_view::npos ? text.size() : newline + 1);
    absl::ConsumeSuffix(&line, "\r");
    lines.push_back(line);
  }
  return lines;
}

absl::Status InContext(absl::string_view where, const absl::Status& status) {
  return {status.code(), absl::StrCat(where, ": ", status.message())};
}

absl::StatusOr<std::string> NamespaceSection(const ToolNamespace& tools) {
  // Joined by newlines; the items that end with one leave an empty line.
  std::vector<std::string> items = {absl::StrCat("## ", tools.name, "\n")};
  const std::string description = tools.description.value_or("");
  for (const absl::string_view line : Lines(description)) {
    items.push_back(absl::StrCat(tools.functions.empty() ? "" : "// ", line));
  }
  if (tools.functions.empty()) return absl::StrJoin(items, "\n");
  items.push_back(absl::StrCat("namespace ", tools.name, " {\n"));
  for (const HarmonyFunction& function : tools.functions) {
    for (const absl::string_view line : Lines(function.description)) {
      items.push_back(absl::StrCat("// ", line));
    }
    std::string parameters;
    if (function.parameters) {
      const absl::StatusOr<std::string> type = TypeScriptType(*function.parameters);
      if (!type.ok()) {
        return InContext(absl::StrCat("the parameters of ", function.name), type.status());
      }
      parameters = absl::StrCat("_: ", *type);
    }
    items.push_back(absl::StrCat("type ", function.name, " = (", parameters, ") => any;\n"));
  }
  items.push_back(absl::StrCat("} // namespace ", tools.name));
  return absl::StrJoin(items, "\n");
}

absl::StatusOr<std::string> ToolsSection(const ToolNamespaces& namespaces) {
  std::vector<std::string> sections = {"# Tools"};
  for (const auto& [key, tools] : namespaces) {
    ASSIGN_OR_RETURN(std::string section, NamespaceSection(tools));
    sections.push_back(std::move(section));
  }
  return absl::StrJoin(sections, "\n\n");
}

absl::StatusOr<std::string> SystemText(const SystemContent& content, bool has_functions) {
  std::vector<std::string> lines;
  if (content.model_identity) lines.push_back(*content.model_identity);
  if (content.knowledge_cutoff) {
    lines.push_back(absl::StrCat("Knowledge cutoff: ", *content.knowledge_cutoff));
  }
  if (content.conversation_start_date) {
    lines.push_back(absl::StrCat("Current date: ", *content.conversation_start_date));
  }
  std::vector<std::string> sections;
  if (!lines.empty()) sections.push_back(absl::StrJoin(lines, "\n"));
  if (content.reasoning_effort) {
    sections.push_back(absl::StrCat("Reasoning: ", EffortName(*content.reasoning_effort)));
  }
  if (!content.tools.empty()) {
    ASSIGN_OR_RETURN(std::string tools, ToolsSection(content.tools));
    sections.push_back(std::move(tools));
  }
  if (!content.valid_channels.empty()) {
    sections.push_back(absl::StrCat(
        "# Valid channels: ",
        absl::StrJoin(content.valid_channels, ", "),
        ".",
        content.is_channel_required ? " Channel must be included for every message." : "",
        has_functions ? "\nCalls to these tools must go to the commentary channel: 'functions'."
                      : ""));
  }
  return absl::StrJoin(sections, "\n\n");
}

// Not in openai-harmony; laid out as its guide shows.
absl::StatusOr<std::string> FormatSection(const ResponseFormat& format) {
  std::string section = absl::StrCat("## ", format.name, "\n\n");
  const std::string description = format.description.value_or("");
  for (const absl::string_view line : Lines(description)) {
    absl::StrAppend(&section, "// ", line, "\n");
  }
  const auto schema = ParseJson(format.schema);
  if (!schema.ok()) {
    return InContext(absl::StrCat("the schema of ", format.name), schema.status());
  }
  absl::StrAppend(&section, CompactJson(*schema));
  return section;
}

absl::StatusOr<std::string> DeveloperText(const DeveloperContent& content) {
  std::vector<std::string> sections;
  if (content.instructions) {
    sections.push_back("# Instructions");
    sections.push_back(*content.instructions);
  }
  if (!content.tools.empty()) {
    ASSIGN_OR_RETURN(std::string tools, ToolsSection(content.tools));
    sections.push_back(std::move(tools));
  }
  if (!content.response_formats.empty()) sections.push_back("# Response Formats");
  for (const ResponseFormat& format : content.response_formats) {
    ASSIGN_OR_RETURN(std::string section, FormatSection(format));
    sections.push_back(std::move(section));
  }
  return absl::StrJoin(sections, "\n\n");
}

absl::StatusOr<std::string> PartText(const HarmonyPart& part, Role role, bool has_functions) {
  if (const auto* system = std::get_if<SystemContent>(&part)) {
    if (role == Role::kSystem) return SystemText(*system, has_functions);
    return absl::InvalidArgumentError(
        absl::StrCat("system_content belongs into a system message, not ", RoleName(role)));
  }
  if (const auto* developer = std::get_if<DeveloperContent>(&part)) {
    if (role == Role::kDeveloper) return DeveloperText(*developer);
    return absl::InvalidArgumentError(
        absl::StrCat("developer_content belongs into a developer message, not ", RoleName(role)));
  }
  return std::get<std::string>(part);
}

absl::Status AppendMessage(const HarmonyMessage& message,
                           const HarmonyTokens& tokens,
                           bool has_functions,
                           std::vector<Piece>* out) {
  out->emplace_back(tokens.start);
  if (message.role == Role::kTool) {
    if (!message.name) {
      return absl::InvalidArgumentError("a tool message needs a name, the tool's");
    }
    out->emplace_back(*message.name);
  } else {
    out->emplace_back(std::string(RoleName(message.role)));
    if (message.name) out->emplace_back(absl::StrCat(":", *message.name));
  }
  if (message.recipient && *message.recipient != "all") {
    out->emplace_back(absl::StrCat(" to=", *message.recipient));
  }
  if (message.channel) {
    out->emplace_back(tokens.channel);
    out->emplace_back(*message.channel);
  }
  if (message.content_type) {
    absl::string_view type = *message.content_type;
    if (absl::ConsumePrefix(&type, kConstrainPrefix)) {
      out->emplace_back(" ");
      out->emplace_back(tokens.constrain);
      out->emplace_back(std::string(type));
    } else {
      out->emplace_back(absl::StrCat(" ", type));
    }
  }
  out->emplace_back(tokens.message);
  for (const HarmonyPart& part : message.content) {
    ASSIGN_OR_RETURN(std::string text, PartText(part, message.role, has_functions));
    out->emplace_back(std::move(text));
  }
  const bool is_call = message.role == Role::kAssistant && message.recipient.has_value();
  out->emplace_back(is_call ? tokens.call : tokens.end);
  return absl::OkStatus();
}

bool DeclaresFunctions(const HarmonyMessage& message) {
  return std::any_of(message.content.begin(), message.content.end(), [](const HarmonyPart& part) {
    const auto* developer = std::get_if<DeveloperContent>(&part);
    if (developer == nullptr) return false;
    const auto functions = developer->tools.find("functions");
    return functions != developer->tools.end() && !functions->second.functions.empty();
  });
}

// The messages before this index lose their thinking; 0: none does.
size_t FirstAnswerIfLastIsOne(std::span<const HarmonyMessage> messages) {
  const auto last = std::find_if(messages.rbegin(), messages.rend(), [](const HarmonyMessage& m) {
    return m.role == Role::kAssistant;
  });
  if (last == messages.rend() || last->channel != kFinalChannel) return 0;
  const auto first = std::find_if(messages.begin(), messages.end(), [](const HarmonyMessage& m) {
    return m.channel == kFinalChannel;
  });
  return static_cast<size_t>(first - messages.begin());
}

absl::StatusOr<std::vector<Piece>> Pieces(std::span<const HarmonyMessage> messages,
                                          const HarmonyTokens& tokens,
                                          const RenderOptions& options) {
  const bool has_functions = std::any_of(messages.begin(), messages.end(), DeclaresFunctions);
  const size_t first_answer = options.drops_analysis ? FirstAnswerIfLastIsOne(messages) : 0;
  std::vector<Piece> pieces;
  for (size_t i = 0; i < messages.size(); ++i) {
    if (i < first_answer && messages[i].channel == kAnalysisChannel) continue;
    const absl::Status status = AppendMessage(messages[i], tokens, has_functions, &pieces);
    if (!status.ok()) return InContext(absl::StrCat("messages[", i, "]"), status);
  }
  if (options.ending == RenderOptions::Ending::kPrompt) {
    pieces.emplace_back(tokens.start);
    pieces.emplace_back(std::string(RoleName(Role::kAssistant)));
  } else if (options.ending == RenderOptions::Ending::kTraining && !messages.empty() &&
             messages.back().role == Role::kAssistant && messages.back().channel == kFinalChannel) {
    pieces.back() = tokens.end_of_answer;
  }
  return pieces;
}

}  // namespace

absl::StatusOr<std::vector<TokenId>> RenderHarmony(std::span<const HarmonyMessage> messages,
                                                   const HarmonyTokens& tokens,
                                                   const RenderOptions& options) {
  ASSIGN_OR_RETURN(const std::vector<Piece> pieces, Pieces(messages, tokens, options));
  size_t num_bytes = 0;
  for (const Piece& piece : pieces) {
    if (const auto* text = std::get_if<std::string>(&piece)) num_bytes += text->size();
  }
  if (num_bytes > options.max_text_bytes) {
    return absl::OutOfRangeError(absl::StrCat("the conversation has ",
                                              num_bytes,
                                              " bytes of text; at most ",
                                              options.max_text_bytes,
                                              " can fit the context"));
  }
  std::vector<TokenId> ids;
  for (const Piece& piece : pieces) {
    if (const auto* marker = std::get_if<TokenId>(&piece)) {
      ids.push_back(*marker);
      continue;
    }
    ASSIGN_OR_RETURN(const std::vector<TokenId> encoded,
                     tokens.tokenizer->Encode(std::get<std::string>(piece), {}));
    ids.insert(ids.end(), encoded.begin(), encoded.end());
  }
  return ids;
}

std::string HarmonyText(std::span<const TokenId> ids, const Tokenizer& tokenizer) {
  std::string bytes;
  for (const TokenId id : ids) absl::StrAppend(&bytes, tokenizer.Bytes(id).value_or(""));
  return WellFormedUtf8(bytes);
}

}  // namespace shoal
