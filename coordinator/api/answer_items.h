// What a model wrote, as clients see it: items of reasoning, text and calls. One level above
// HarmonyReader, below every API's spelling (Chat Completions, Responses, gRPC Chat).
//
// - A message of the assistant to a function is a call; on the analysis channel, or to a tool that
//   was not offered, reasoning; anything else text. Messages of other roles are no items.
// - A call's arguments end with their first complete JSON value; a complete call without any has
// {}.
// - Stop strings are searched in text items only, each on its own, and are cut off.
#pragma once

#include <cstdint>
#include <deque>
#include <optional>
#include <string>
#include <variant>
#include <vector>

#include "base/ids.h"
#include "coordinator/text/harmony.h"
#include "coordinator/text/harmony_reader.h"
#include "coordinator/text/stop_strings.h"
#include "proto/step.h"

namespace shoal {

enum class ItemKind : uint8_t { kReasoning, kText, kCall };

struct ItemStart {
  ItemKind kind = ItemKind::kText;
  std::string function;      // Of a call
  bool is_preamble = false;  // Text on the commentary channel: said before calls
};

// A sampled token with the raw distribution's logprobs.
struct ScoredToken {
  TokenId id;
  float logprob = 0.0f;
  std::vector<TopLogprob> top;
};

struct ItemDelta {
  std::string text;                 // Never empty
  std::vector<ScoredToken> tokens;  // Of text items: those whose text is complete with this delta
};

struct ItemEnd {
  bool is_complete = true;  // false: the answer ended within it
};

// Start, deltas, End; then the next item. Repairs stand where they were made.
using ItemEvent = std::variant<ItemStart, ItemDelta, ItemEnd, Repair>;

// A value; its state is a function of the tokens so far.
class ItemReader {
 public:
  // `tokens` and `functions` outlive this and its copies. Begins behind a prompt's
  // <|start|>assistant.
  ItemReader(const HarmonyTokens* tokens,
             const FunctionNames* functions,
             std::vector<std::string> stop);

  // Appends what this token gives. Nothing follows a stop string.
  void Push(const ScoredToken& token, std::vector<ItemEvent>* events);
  // After the last token, however the answer ended.
  void Finish(std::vector<ItemEvent>* events);

  // A stop string that ended the answer, in the token pushed last: the engine must stop there.
  const std::optional<std::string>& found_stop() const { return found_stop_; }

  // A call ended with <|end|>, so the engine had better stop although no stop token came.
  bool has_unanswered_call() const { return has_unanswered_call_; }

  bool has_called() const { return has_called_; }

  int32_t num_reasoning_tokens() const { return num_reasoning_tokens_; }

  const HarmonyReader& reader() const { return reader_; }

 private:
  // The brackets of a call's arguments, to find where the first value ends.
  struct Json {
    int depth = 0;
    bool is_in_string = false, is_escaped = false, is_complete = false;

    // How much of `text` belongs to the first value.
    size_t Advance(absl::string_view text);
  };

  struct Item {
    explicit Item(ItemKind k) : kind(k) {}

    ItemKind kind;
    bool is_empty = true;  // No delta so far
    Json arguments;
    bool has_trailing_text = false;

    // Of text items: where the token's text ends (+1 while a character is incomplete), until shown.
    struct Waiting {
      size_t begin, end;
      ScoredToken token;
    };

    std::deque<Waiting> waiting;
    size_t num_read = 0, num_shown = 0;  // Bytes of text from the reader, and given out
    std::optional<StopStrings> stops;
  };

  void Convert(std::vector<HarmonyEvent> heard, std::vector<ItemEvent>* events);
  void On(const MessageStart& start, std::vector<ItemEvent>* events);
  void On(const MessageDelta& delta, std::vector<ItemEvent>* events);
  void On(const MessageEnd& end, std::vector<ItemEvent>* events);

  void On(Repair repair, std::vector<ItemEvent>* events) { events->emplace_back(repair); }

  void ReadArguments(absl::string_view text, std::vector<ItemEvent>* events);
  void ReadText(const std::string& text, std::vector<ItemEvent>* events);
  void TakeToken();
  void ShowText(std::string text, std::vector<ItemEvent>* events);

  const HarmonyTokens* tokens_;
  HarmonyReader reader_;
  std::vector<std::string> stop_;
  std::optional<ScoredToken> token_;  // The one at hand, if it is text that no item has yet
  std::optional<Item> item_;          // Open
  std::optional<std::string> found_stop_;
  bool has_called_ = false, has_unanswered_call_ = false;
  int32_t num_reasoning_tokens_ = 0;
};

}  // namespace shoal
