// What may stand before a message's content: the few headers that a request allows, as a tree over
// bytes and markers. A header's words may be one token or many.
#pragma once

#include <array>
#include <cstdint>
#include <optional>
#include <utility>
#include <vector>

#include "absl/strings/string_view.h"

#include "base/ids.h"
#include "coordinator/text/token_index.h"
#include "coordinator/text/token_set.h"

namespace shoal {

// The markers of the harmony format.
enum class Marker : uint8_t { kStart, kMessage, kEnd, kChannel, kConstrain, kCall, kReturn };
inline constexpr int kNumMarkers = 7;

class Markers {
 public:
  // REQUIRES: RequireHarmonySpecials(tokenizer).
  explicit Markers(const Tokenizer& tokenizer);

  TokenId id(Marker marker) const { return ids_[static_cast<size_t>(marker)]; }

  std::optional<Marker> Find(TokenId id) const;

 private:
  std::array<TokenId, kNumMarkers> ids_;
};

class HeaderTrie {
 public:
  using Node = uint32_t;

  struct Part {  // Of a header: text, then a marker
    absl::string_view text;
    Marker marker;
  };

  Node AddRoot();

  // A header from `root` that ends with the last part's marker, where content number `content`
  // begins.
  void Add(Node root, const std::vector<Part>& parts, int32_t content);

  // A way from `from`, begun by `marker`, of the bytes of `text`, whose last one leads to `to`.
  // REQUIRES: `from` is a root and has no such way.
  void AddWay(Node from, Marker marker, absl::string_view text, Node to);

  // What begins here; -1: nothing, the header goes on.
  int32_t content(Node node) const { return nodes_[node].content; }

  std::optional<Node> Step(Node node, Marker marker) const;
  std::optional<Node> Step(Node node, absl::string_view bytes) const;

  void AddAllowedTokens(Node node,
                        const Markers& markers,
                        const TokenIndex& index,
                        TokenSet* allowed) const;

 private:
  using Symbol = uint16_t;  // A byte, or kFirstMarker + a marker
  static constexpr Symbol kFirstMarker = 256;

  struct Entry {
    int32_t content = -1;
    std::vector<std::pair<Symbol, Node>> next;
  };

  static Symbol SymbolOf(Marker marker) {
    return static_cast<Symbol>(kFirstMarker + static_cast<int>(marker));
  }

  std::optional<Node> Follow(Node node, Symbol symbol) const;
  Node FollowOrAdd(Node node, Symbol symbol);

  std::vector<Entry> nodes_;
};

}  // namespace shoal
