#include "coordinator/text/header_trie.h"

#include <algorithm>
#include <cstddef>

namespace shoal {
namespace {

constexpr absl::string_view kSpellings[kNumMarkers] = {"<|start|>",
                                                       "<|message|>",
                                                       "<|end|>",
                                                       "<|channel|>",
                                                       "<|constrain|>",
                                                       "<|call|>",
                                                       "<|return|>"};

}  // namespace

Markers::Markers(const Tokenizer& tokenizer) {
  for (size_t i = 0; i < ids_.size(); ++i) ids_[i] = tokenizer.Special(kSpellings[i]).value();
}

std::optional<Marker> Markers::Find(TokenId id) const {
  const auto found = std::find(ids_.begin(), ids_.end(), id);
  if (found == ids_.end()) return std::nullopt;
  return static_cast<Marker>(found - ids_.begin());
}

HeaderTrie::Node HeaderTrie::AddRoot() {
  nodes_.emplace_back();
  return static_cast<Node>(nodes_.size() - 1);
}

std::optional<HeaderTrie::Node> HeaderTrie::Follow(Node node, Symbol symbol) const {
  for (const auto& [s, next] : nodes_[node].next) {
    if (s == symbol) return next;
  }
  return std::nullopt;
}

HeaderTrie::Node HeaderTrie::FollowOrAdd(Node node, Symbol symbol) {
  if (const std::optional<Node> next = Follow(node, symbol)) return *next;
  const Node added = AddRoot();
  nodes_[node].next.emplace_back(symbol, added);
  return added;
}

void HeaderTrie::Add(Node root, const std::vector<Part>& parts, int32_t content) {
  Node node = root;
  for (const Part& part : parts) {
    for (const char c : part.text) node = FollowOrAdd(node, static_cast<uint8_t>(c));
    node = FollowOrAdd(node, SymbolOf(part.marker));
  }
  nodes_[node].content = content;
}

void HeaderTrie::AddWay(Node from, Marker marker, absl::string_view text, Node to) {
  Node node = FollowOrAdd(from, SymbolOf(marker));
  for (const char c : text.substr(0, text.size() - 1)) {
    node = FollowOrAdd(node, static_cast<uint8_t>(c));
  }
  nodes_[node].next.emplace_back(static_cast<uint8_t>(text.back()), to);
}

std::optional<HeaderTrie::Node> HeaderTrie::Step(Node node, Marker marker) const {
  return Follow(node, SymbolOf(marker));
}

std::optional<HeaderTrie::Node> HeaderTrie::Step(Node node, absl::string_view bytes) const {
  std::optional<Node> at = node;
  for (size_t i = 0; i < bytes.size() && at.has_value(); ++i) {
    at = Follow(*at, static_cast<uint8_t>(bytes[i]));
  }
  return at;
}

void HeaderTrie::AddAllowedTokens(Node node,
                                  const Markers& markers,
                                  const TokenIndex& index,
                                  TokenSet* allowed) const {
  for (const auto& [symbol, next] : nodes_[node].next) {
    if (symbol >= kFirstMarker) {
      allowed->Add(markers.id(static_cast<Marker>(symbol - kFirstMarker)));
    }
  }
  std::vector<Node> levels(index.trie().max_depth() + 1, node);
  const std::vector<TokenTrie::Node>& tokens = index.trie().nodes();
  for (size_t i = 0; i < tokens.size();) {
    const TokenTrie::Node& token = tokens[i];
    const std::optional<Node> next = Follow(levels[token.depth - 1u], token.byte);
    if (!next.has_value()) {
      i = token.end;
      continue;
    }
    levels[token.depth] = *next;
    if (token.value != TokenTrie::kNone) allowed->Add(TokenId{token.value});
    ++i;
  }
}

}  // namespace shoal
