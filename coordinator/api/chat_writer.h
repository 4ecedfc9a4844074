// POST /v1/chat/completions: the answer, as a stream of chunks or as one object. Values; pure: ids
// and times come in. Every string that is returned is one JSON object.
//
// A stream: Begin(), then Write() for each token's items, then End(); for every choice. Then
// ChatUsageChunk() if the request asked for it, then the caller's [DONE]. One object: the same
// items go to a ChatChoice for each choice, and those to ChatCompletionBody(). Both ways give the
// same text.
#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "coordinator/api/answer_items.h"
#include "coordinator/text/tokenizer.h"

namespace shoal {

// Why generation ended; the engine's word.
enum class AnswerEnd : uint8_t { kStopToken, kStopString, kLength };

// "length", "tool_calls" or "stop".
std::string ChatFinishReason(AnswerEnd end, bool has_called);

struct ApiUsage {
  int32_t prompt_tokens = 0;      // Once, whatever the number of choices
  int32_t cached_tokens = 0;      // Of the prompt
  int32_t completion_tokens = 0;  // Of all choices; every sampled token, markers too
  int32_t reasoning_tokens = 0;   // Of those
};

struct ChatAnswerArgs {
  std::string id;       // "chatcmpl-..."
  std::string model;    // As the request named it
  int64_t created = 0;  // Seconds since 1970
  std::string system_fingerprint;
  bool includes_usage = false;            // Chunks say "usage": null until the last one
  bool includes_reasoning = true;         // ApiRequest::includes_reasoning
  bool repeats_reasoning_content = true;  // Beside "reasoning", for older clients
  const Tokenizer* logprobs = nullptr;    // Spells the tokens; null: none were asked for
};

// Items as deltas of one message. Texts of one kind are joined by a newline, which begins the later
// one's first delta.
struct ChatDelta {
  enum class Kind : uint8_t { kContent, kReasoning, kCall, kArguments };
  Kind kind = Kind::kContent;
  std::string text;    // Of all but kCall, which has the function's name
  int call_index = 0;  // Of kCall and kArguments
  std::vector<ScoredToken> tokens;
};

class ChatDeltas {
 public:
  // nullopt: nothing to send.
  std::optional<ChatDelta> Next(const ItemEvent& event);

 private:
  ItemKind kind_ = ItemKind::kText;  // Of the open item
  int num_calls_ = 0;
  bool has_content_ = false, has_reasoning_ = false;
  bool is_first_delta_ = false;
};

class ChatStreamWriter {
 public:
  // `call_ids`: call c has the id <call_ids><c>, which must be unique in its conversation: begin it
  // with "call_" and 24 random characters. `args` outlives this.
  ChatStreamWriter(const ChatAnswerArgs* args, int32_t choice, std::string call_ids);

  std::string Begin() const;
  // Appends chunks.
  void Write(std::span<const ItemEvent> events, std::vector<std::string>* chunks);
  std::string End(AnswerEnd end) const;

 private:
  const ChatAnswerArgs* args_;
  int32_t choice_;
  std::string call_ids_;
  ChatDeltas deltas_;
  bool has_called_ = false;
};

// The chunk without choices that ends a stream with includes_usage.
std::string ChatUsageChunk(const ChatAnswerArgs& args, const ApiUsage& usage);

class ChatChoice {
 public:
  // As ChatStreamWriter.
  explicit ChatChoice(std::string call_ids) : call_ids_(std::move(call_ids)) {}

  void Write(std::span<const ItemEvent> events);

  void End(AnswerEnd end) { end_ = end; }

 private:
  friend std::string ChatCompletionBody(const ChatAnswerArgs& args,
                                        std::span<const ChatChoice> choices,
                                        const ApiUsage& usage);

  struct Call {
    std::string function, arguments;
  };

  std::string call_ids_;
  ChatDeltas deltas_;
  std::optional<std::string> content_;  // nullopt: no text item
  std::string reasoning_;
  std::vector<Call> calls_;
  std::vector<ScoredToken> tokens_;
  AnswerEnd end_ = AnswerEnd::kLength;
};

std::string ChatCompletionBody(const ChatAnswerArgs& args,
                               std::span<const ChatChoice> choices,
                               const ApiUsage& usage);

}  // namespace shoal
