#include "coordinator/text/harmony.h"

#include <algorithm>
#include <iterator>
#include <utility>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/strip.h"

#include "base/status_macros.h"

namespace shoal {
namespace {

constexpr absl::string_view kModelIdentity =
    "You are ChatGPT, a large language model trained by OpenAI.";
constexpr absl::string_view kKnowledgeCutoff = "2024-06";

constexpr absl::string_view kRoleNames[] = {"system", "developer", "user", "assistant", "tool"};
constexpr absl::string_view kEffortNames[] = {"low", "medium", "high"};
constexpr absl::string_view kRepairNames[kNumRepairs] = {"call_on_final",
                                                         "dirty_channel",
                                                         "duplicate_start",
                                                         "empty_channel",
                                                         "eos_in_header",
                                                         "extra_header_words",
                                                         "glued_recipient",
                                                         "glued_role",
                                                         "hidden_message",
                                                         "marker_in_content",
                                                         "missing_channel_marker",
                                                         "missing_end",
                                                         "missing_end_start",
                                                         "missing_message",
                                                         "missing_namespace",
                                                         "missing_role",
                                                         "missing_start",
                                                         "missing_to",
                                                         "recipient_after_constrain",
                                                         "recipient_in_constrain",
                                                         "reserved_in_header",
                                                         "second_channel",
                                                         "second_constrain",
                                                         "start_in_header",
                                                         "stop_in_header",
                                                         "stray_text_dropped",
                                                         "text_after_arguments",
                                                         "unknown_channel",
                                                         "unknown_role"};

// The words of a header as long as honest ones come: the longest name that the APIs accept has 64
// bytes. Some tokens more, because other names may merge less.
constexpr absl::string_view kLongHeader =
    "assistant to=functions."
    "search_the_archives_for_documents_by_authors_titles_and_subjects"
    "commentary json";
constexpr int32_t kHeaderSlack = 16;

HarmonyMessage Message(Role role, HarmonyPart part) {
  HarmonyMessage message;
  message.role = role;
  message.content.push_back(std::move(part));
  return message;
}

SystemContent SystemOf(const Conversation& conversation) {
  SystemContent system;
  system.model_identity = std::string(kModelIdentity);
  system.knowledge_cutoff = std::string(kKnowledgeCutoff);
  system.conversation_start_date = conversation.current_date;
  system.reasoning_effort = conversation.effort;
  for (const absl::string_view channel : kHarmonyChannels) {
    system.valid_channels.emplace_back(channel);
  }
  return system;
}

std::optional<DeveloperContent> DeveloperOf(const Conversation& conversation) {
  DeveloperContent developer;
  if (!conversation.instructions.empty()) developer.instructions = conversation.instructions;
  if (!conversation.functions.empty()) {
    developer.tools["functions"] = {"functions", std::nullopt, conversation.functions};
  }
  if (conversation.response_format) {
    developer.response_formats.push_back(*conversation.response_format);
  }
  if (developer == DeveloperContent{}) return std::nullopt;
  return developer;
}

void DropOldAnalysis(std::vector<HarmonyMessage>* messages) {
  const auto last_answer =
      std::find_if(messages->rbegin(), messages->rend(), [](const HarmonyMessage& message) {
        return message.role == Role::kAssistant && message.channel == kFinalChannel;
      });
  if (last_answer == messages->rend()) return;
  const auto end = std::prev(last_answer.base());
  const auto kept = std::remove_if(messages->begin(), end, [](const HarmonyMessage& message) {
    return message.channel == kAnalysisChannel;
  });
  messages->erase(kept, end);
}

}  // namespace

bool IsHarmonyChannel(absl::string_view word) {
  return std::find(std::begin(kHarmonyChannels), std::end(kHarmonyChannels), word) !=
         std::end(kHarmonyChannels);
}

absl::string_view RoleName(Role role) {
  return kRoleNames[static_cast<size_t>(role)];
}

std::optional<Role> ParseRole(absl::string_view name) {
  const auto at = std::find(std::begin(kRoleNames), std::end(kRoleNames), name);
  if (at == std::end(kRoleNames)) return std::nullopt;
  return static_cast<Role>(at - std::begin(kRoleNames));
}

absl::string_view EffortName(ReasoningEffort effort) {
  return kEffortNames[static_cast<size_t>(effort)];
}

absl::string_view RepairName(Repair repair) {
  return kRepairNames[static_cast<size_t>(repair)];
}

absl::StatusOr<HarmonyTokens> HarmonyTokens::Find(const Tokenizer* tokenizer) {
  RETURN_IF_ERROR(RequireHarmonySpecials(*tokenizer));
  const auto id = [&](absl::string_view marker) { return *tokenizer->Special(marker); };
  HarmonyTokens tokens;
  tokens.tokenizer = tokenizer;
  tokens.start = id("<|start|>");
  tokens.message = id("<|message|>");
  tokens.end = id("<|end|>");
  tokens.channel = id("<|channel|>");
  tokens.constrain = id("<|constrain|>");
  tokens.call = id("<|call|>");
  tokens.end_of_answer = id("<|return|>");
  tokens.end_of_text = id("<|endoftext|>");
  ASSIGN_OR_RETURN(tokens.assistant, tokenizer->Encode("assistant", {}));
  ASSIGN_OR_RETURN(const std::vector<TokenId> header, tokenizer->Encode(kLongHeader, {}));
  tokens.max_header_tokens =
      std::max(tokens.max_header_tokens, static_cast<int32_t>(header.size()) + kHeaderSlack);
  return tokens;
}

std::optional<absl::string_view> HarmonyTokens::Text(TokenId id) const {
  if (id >= tokenizer->FirstSpecial()) return std::nullopt;
  return tokenizer->Bytes(id);
}

std::optional<absl::string_view> MessageHeader::CalledFunction() const {
  if (role != Role::kAssistant || !recipient) return std::nullopt;
  absl::string_view function = *recipient;
  if (!absl::ConsumePrefix(&function, kFunctionsPrefix)) return std::nullopt;
  return function;
}

HarmonyMessage UserMessage(std::string text) {
  return Message(Role::kUser, std::move(text));
}

HarmonyMessage DeveloperMessage(std::string instructions) {
  DeveloperContent content;
  content.instructions = std::move(instructions);
  return Message(Role::kDeveloper, std::move(content));
}

HarmonyMessage AssistantMessage(absl::string_view channel, std::string text) {
  HarmonyMessage message = Message(Role::kAssistant, std::move(text));
  message.channel = std::string(channel);
  return message;
}

HarmonyMessage CallMessage(absl::string_view function, std::string arguments) {
  HarmonyMessage message =
      AssistantMessage(kCommentaryChannel, arguments.empty() ? "{}" : std::move(arguments));
  message.recipient = absl::StrCat(kFunctionsPrefix, function);
  message.content_type = absl::StrCat(kConstrainPrefix, "json");
  return message;
}

HarmonyMessage ResultMessage(absl::string_view function, std::string output) {
  HarmonyMessage message = Message(Role::kTool, std::move(output));
  message.name = absl::StrCat(kFunctionsPrefix, function);
  message.recipient = "assistant";
  message.channel = std::string(kCommentaryChannel);
  return message;
}

std::vector<HarmonyMessage> MessagesOf(const Conversation& conversation) {
  std::vector<HarmonyMessage> messages;
  messages.push_back(Message(Role::kSystem, SystemOf(conversation)));
  if (std::optional<DeveloperContent> developer = DeveloperOf(conversation)) {
    messages.push_back(Message(Role::kDeveloper, *std::move(developer)));
  }
  messages.insert(messages.end(), conversation.history.begin(), conversation.history.end());
  DropOldAnalysis(&messages);
  return messages;
}

}  // namespace shoal
