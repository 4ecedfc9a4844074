#include "coordinator/text/grammar_mask.h"

#include <vector>

#include "coordinator/text/trie_walk.h"

namespace shoal {
namespace {

using Phase = GrammarFrame::Phase;
using Top = GrammarStacks::Top;

// The name so far and `before` make a name that the schema has.
bool CompletesKnownName(const JsonNode& object, ByteTrie::Node place, absl::string_view before) {
  for (size_t i = 0; i < before.size() && place != ByteTrie::kNowhere; ++i) {
    place = object.names.Step(place, static_cast<uint8_t>(before[i]));
  }
  return place != ByteTrie::kNowhere && object.names.Step(place, '"') != ByteTrie::kNowhere;
}

class Masker {
 public:
  Masker(const GrammarState& state, const TokenIndex& index, TokenSet* allowed)
      : stacks_(state.stacks()), index_(index), allowed_(*allowed) {}

  void Add(Top top) {
    if (top == GrammarStacks::kEmpty) return;
    const GrammarFrame frame = stacks_.frame(top);
    const JsonNode& node = stacks_.node(top);
    const bool is_unlimited = node.max_size == JsonNode::kUnlimited && frame.count >= node.min_size;
    const bool is_plain = frame.string == StringState::kPlain;
    const StringTokens::Table* table = index_.strings().Find(frame.string);
    if (frame.phase == Phase::kInString && table != nullptr && (is_unlimited || is_plain)) {
      AddInString(top, frame, node, *table);
    } else if (frame.phase == Phase::kOtherKey && is_plain) {
      AddInOtherKey(top, frame, node, *table);
    } else {
      WalkTrie(index_.trie(), top, &stacks_, [this](int32_t id) { allowed_.Add(TokenId{id}); });
    }
  }

 private:
  void AddInString(Top top,
                   const GrammarFrame& frame,
                   const JsonNode& node,
                   const StringTokens::Table& table) {
    const bool is_limited = node.max_size != JsonNode::kUnlimited;
    const uint32_t left = is_limited ? node.max_size - frame.count : JsonNode::kUnlimited;
    allowed_.AddAll(is_limited ? index_.strings().InsideWithin(left) : table.inside);
    AddClosing(stacks_.below(top), table, [&](const StringTokens::Closing& closing) {
      return closing.num_characters <= left &&
             uint64_t{frame.count} + closing.num_characters >= node.min_size;
    });
  }

  void AddInOtherKey(Top top,
                     const GrammarFrame& frame,
                     const JsonNode& node,
                     const StringTokens::Table& table) {
    allowed_.AddAll(index_.strings().InsideWithoutEscapes());
    // What follows the quote follows any such name.
    GrammarStacks::Tops closed;
    const size_t size = stacks_.size();
    stacks_.CloseOtherKey(top, &closed);
    AddClosing(closed[0], table, [&](const StringTokens::Closing& closing) {
      return !closing.has_escape && !CompletesKnownName(node, frame.place, closing.before);
    });
    stacks_.CutTo(size);
  }

  // Tokens that end the string, of which `may_close` says whether they may end it there, and whose
  // rest can follow on the stack `after`.
  template <typename MayClose>
  void AddClosing(Top after, const StringTokens::Table& table, const MayClose& may_close) {
    const auto add = [&](int32_t index) {
      for (const StringTokens::Closing& closing : table.closing[static_cast<size_t>(index)]) {
        if (may_close(closing)) allowed_.Add(closing.token);
      }
    };
    add(0);
    WalkTrie(index_.strings().after_quote(), after, &stacks_, add);
  }

  GrammarStacks stacks_;
  const TokenIndex& index_;
  TokenSet& allowed_;
};

}  // namespace

void AddAllowedTokens(const GrammarState& state, const TokenIndex& index, TokenSet* allowed) {
  Masker masker(state, index, allowed);
  for (const Top top : state.tops()) masker.Add(top);
}

}  // namespace shoal
