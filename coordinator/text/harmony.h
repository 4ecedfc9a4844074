// The values of the harmony format, in which gpt-oss models are trained to talk.
//
// A conversation is a row of messages, <|start|>{header}<|message|>{content}<|end|>, without
// anything between them. The header names the role, the channel (analysis: thinking; commentary:
// tool calls, their results and words before them; final: the answer), the recipient of a call and
// the type of the content. harmony_writer.h makes a prompt of messages; harmony_reader.h makes
// events of what a model wrote. No JSON here: schemas are JSON text whose key order counts.
// Next: coordinator/text/harmony_reader.h
#pragma once

#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <variant>
#include <vector>

#include "absl/container/flat_hash_set.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"

#include "base/ids.h"
#include "coordinator/text/tokenizer.h"

namespace shoal {

// ---- Names

inline constexpr absl::string_view kAnalysisChannel = "analysis";
inline constexpr absl::string_view kCommentaryChannel = "commentary";
inline constexpr absl::string_view kFinalChannel = "final";
// In this order they stand in the system message.
inline constexpr absl::string_view kHarmonyChannels[] = {
    kAnalysisChannel, kCommentaryChannel, kFinalChannel};
bool IsHarmonyChannel(absl::string_view word);

inline constexpr absl::string_view kFunctionsPrefix = "functions.";  // Of a call's recipient

// A content type that begins so is written with the marker. No client's text becomes one.
inline constexpr absl::string_view kConstrainPrefix = "<|constrain|>";

enum class Role : uint8_t { kSystem, kDeveloper, kUser, kAssistant, kTool };
absl::string_view RoleName(Role role);
std::optional<Role> ParseRole(absl::string_view name);

// Names of the functions that a request declared, without their namespace.
using FunctionNames = absl::flat_hash_set<std::string>;

// ---- The markers' ids, which differ between vocabularies

struct HarmonyTokens {
  // kInvalidArgument names the markers that `tokenizer`, which outlives this, does not have.
  static absl::StatusOr<HarmonyTokens> Find(const Tokenizer* tokenizer);

  const Tokenizer* tokenizer = nullptr;
  TokenId start, message, end, channel, constrain, call, end_of_answer, end_of_text;
  std::vector<TokenId> assistant;  // The word, as a prompt ends with it after <|start|>
  // Of a header whose <|message|> did not come: 64, or what a vocabulary of short tokens needs for
  // a call to a function with a long name.
  int32_t max_header_tokens = 64;

  // <|end|>, and what ends generation: <|return|>, <|call|>, <|endoftext|>.
  bool EndsMessage(TokenId id) const { return id == end || EndsGeneration(id); }

  bool EndsGeneration(TokenId id) const {
    return id == end_of_answer || id == call || id == end_of_text;
  }

  // The token's bytes if it is text; nullopt for markers, padding and ids that do not exist.
  std::optional<absl::string_view> Text(TokenId id) const;
};

// ---- What stands in messages

struct HarmonyFunction {
  std::string name;
  std::string description;                // Empty: no line for it
  std::optional<std::string> parameters;  // A JSON schema; nullopt: `() => any`
  bool is_strict = false;                 // Arguments must fit the schema; not in the prompt

  friend bool operator==(const HarmonyFunction&, const HarmonyFunction&) = default;
};

struct ToolNamespace {
  std::string name;
  std::optional<std::string> description;
  std::vector<HarmonyFunction> functions;

  friend bool operator==(const ToolNamespace&, const ToolNamespace&) = default;
};

using ToolNamespaces = std::map<std::string, ToolNamespace>;

struct ResponseFormat {
  std::string name;
  std::optional<std::string> description;
  std::string schema;  // JSON

  friend bool operator==(const ResponseFormat&, const ResponseFormat&) = default;
};

enum class ReasoningEffort : uint8_t { kLow, kMedium, kHigh };
absl::string_view EffortName(ReasoningEffort effort);  // "low", "medium", "high"

// Of the system message. What is not there is not written.
struct SystemContent {
  std::optional<std::string> model_identity;
  std::optional<std::string> knowledge_cutoff;         // YYYY-MM
  std::optional<std::string> conversation_start_date;  // YYYY-MM-DD
  std::optional<ReasoningEffort> reasoning_effort;
  ToolNamespaces tools;                     // Built-in ones
  std::vector<std::string> valid_channels;  // Empty: no line about channels
  bool is_channel_required = true;

  friend bool operator==(const SystemContent&, const SystemContent&) = default;
};

// Of a developer message: what users of the API call the system prompt, and the tools.
struct DeveloperContent {
  std::optional<std::string> instructions;
  ToolNamespaces tools;
  std::vector<ResponseFormat> response_formats;

  friend bool operator==(const DeveloperContent&, const DeveloperContent&) = default;
};

using HarmonyPart = std::variant<std::string, SystemContent, DeveloperContent>;

struct HarmonyMessage {
  Role role = Role::kUser;
  std::optional<std::string> name;  // Of a tool message: who speaks, "functions.f"
  std::optional<std::string> recipient;
  std::optional<std::string> channel;
  std::optional<std::string> content_type;
  std::vector<HarmonyPart> content;

  friend bool operator==(const HarmonyMessage&, const HarmonyMessage&) = default;
};

// ---- What a client asks, as all our APIs mean it

struct Conversation {
  ReasoningEffort effort = ReasoningEffort::kMedium;
  std::optional<std::string> current_date;  // YYYY-MM-DD; nullopt: no such line
  std::string instructions;                 // The leading system and developer texts
  std::vector<HarmonyFunction> functions;   // Offered: in the prompt
  std::optional<ResponseFormat> response_format;
  std::vector<HarmonyMessage> history;  // Everything after that, in order
};

HarmonyMessage UserMessage(std::string text);
HarmonyMessage DeveloperMessage(std::string instructions);
// What the assistant thought, answered (final) or said before its calls (commentary).
HarmonyMessage AssistantMessage(absl::string_view channel, std::string text);
// Empty arguments become {}.
HarmonyMessage CallMessage(absl::string_view function, std::string arguments);
HarmonyMessage ResultMessage(absl::string_view function, std::string output);

// System message, developer message (if it says anything), history; without the thinking that
// precedes the last answer, which the model was trained not to see again.
std::vector<HarmonyMessage> MessagesOf(const Conversation& conversation);

// ---- What a model wrote

struct MessageHeader {
  Role role = Role::kAssistant;
  std::optional<std::string> name;       // Of a tool message
  std::optional<std::string> recipient;  // "functions.f": a call
  std::optional<std::string> channel;
  std::optional<std::string> content_type;

  // The function that is called; nullopt: this is no call.
  std::optional<absl::string_view> CalledFunction() const;

  friend bool operator==(const MessageHeader&, const MessageHeader&) = default;
};

// How malformed output was understood. Many of them mean a wrong kernel, checkpoint or prompt
// rather than a bad model; so they are counted by kind.
enum class Repair : uint8_t {
  kCallOnFinal,           // A call on the final channel: taken as commentary
  kDirtyChannel,          // "finalx": taken as final
  kDuplicateStart,        // <|start|> twice, or the prompt's end again: ignored
  kEmptyChannel,          // <|channel|> without a word
  kEosInHeader,           // The answer ended within a header
  kExtraHeaderWords,      // Words that mean nothing: dropped
  kGluedRecipient,        // "functions.fjson": taken as functions.f
  kGluedRole,             // "assistantfinal"
  kHiddenMessage,         // Of a role that is not the assistant: clients do not see it
  kMarkerInContent,       // A marker, padding or unknown id within text: dropped
  kMissingChannelMarker,  // "assistant final" without <|channel|>
  kMissingEnd,            // <|start|> within text: a new message
  kMissingEndStart,       // <|channel|> within text: a new message
  kMissingMessage,        // Text in a header: <|message|> was forgotten
  kMissingNamespace,      // "to=f": taken as functions.f
  kMissingRole,           // <|start|> without a role: the assistant
  kMissingStart,          // A message without <|start|>
  kMissingTo,             // "functions.f" without "to="
  kRecipientAfterConstrain,
  kRecipientInConstrain,
  kReservedInHeader,    // Padding or an unknown id in a header: dropped
  kSecondChannel,       // The last channel counts
  kSecondConstrain,     // The last content type counts
  kStartInHeader,       // <|start|> in a header that had text: the text is a message
  kStopInHeader,        // The message ended in its header: what is no header is its text
  kStrayTextDropped,    // Text between <|end|> and <|start|>
  kTextAfterArguments,  // Behind the first JSON value of a call: dropped
  kUnknownChannel,      // Kept as it is
  kUnknownRole,         // Taken as the assistant
};
inline constexpr int kNumRepairs = static_cast<int>(Repair::kUnknownRole) + 1;
absl::string_view RepairName(Repair repair);  // "call_on_final"

struct MessageStart {
  MessageHeader header;

  friend bool operator==(const MessageStart&, const MessageStart&) = default;
};

struct MessageDelta {
  std::string text;  // Never empty; whole characters

  friend bool operator==(const MessageDelta&, const MessageDelta&) = default;
};

struct MessageEnd {
  std::optional<TokenId> stop;  // What ended it; nullopt: the end of the answer, or a new message

  friend bool operator==(const MessageEnd&, const MessageEnd&) = default;
};

// Start, deltas, End; then the next message. A Repair stands before what it led to.
using HarmonyEvent = std::variant<MessageStart, MessageDelta, MessageEnd, Repair>;

}  // namespace shoal
