// Which prefixes of token ids one rank's blocks already hold: a trie whose edges are the tokens of
// whole blocks. It compares tokens, not hashes of them, so two prefixes are never mistaken for each
// other.
#pragma once

#include <cstdint>
#include <map>
#include <span>
#include <string>
#include <vector>

#include "absl/strings/string_view.h"

#include "base/ids.h"
#include "proto/step.h"

namespace shoal {

// A node is a prefix of whole blocks, in one scope (a tenant with its cache salt). Its blocks are
// those of its last kPlanBlockTokens positions: one of the full layers, one of the window layers,
// either of which may be unknown. Nodes without blocks and children disappear; ids are never
// reused, so an id of a vanished node is harmless.
class PrefixIndex {
 public:
  using NodeId = uint64_t;
  static constexpr NodeId kNone = 0;

  struct Match {
    NodeId node = kNone;
    BlockId full = kNoBlock;
    BlockId window = kNoBlock;
  };

  // The nodes of the leading whole blocks of `tokens`, as far as full blocks are known.
  std::vector<Match> Find(absl::string_view scope, std::span<const TokenId> tokens) const;

  // The empty prefix of `scope`.
  NodeId Root(absl::string_view scope);

  // The prefix one block longer than `parent`; kNone if `parent` has vanished.
  // REQUIRES: tokens.size() == kPlanBlockTokens.
  NodeId Extend(NodeId parent, std::span<const TokenId> tokens);

  // Makes the block known at the node. False if another one is known there or the node vanished.
  bool SetFull(NodeId node, BlockId block);
  bool SetWindow(NodeId node, BlockId block);

  // The block's content is lost. REQUIRES: it is known.
  void ForgetFull(BlockId block);
  void ForgetWindow(BlockId block);

  size_t size() const { return nodes_.size(); }

 private:
  struct Node {
    NodeId parent = kNone;
    std::string scope;            // Of a root
    std::vector<TokenId> tokens;  // Edge from the parent
    std::map<std::vector<TokenId>, NodeId> children;
    BlockId full = kNoBlock;
    BlockId window = kNoBlock;
  };

  void Prune(NodeId node);

  std::map<std::string, NodeId, std::less<>> roots_;
  std::map<NodeId, Node> nodes_;
  std::map<BlockId, NodeId> node_of_full_;
  std::map<BlockId, NodeId> node_of_window_;
  NodeId last_node_ = kNone;
};

}  // namespace shoal
