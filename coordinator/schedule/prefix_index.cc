#include "coordinator/schedule/prefix_index.h"

#include <utility>

#include "base/check.h"

namespace shoal {
namespace {

constexpr size_t kBlock = static_cast<size_t>(kPlanBlockTokens);

}  // namespace

std::vector<PrefixIndex::Match> PrefixIndex::Find(absl::string_view scope,
                                                  std::span<const TokenId> tokens) const {
  std::vector<Match> matches;
  const auto root = roots_.find(std::string(scope));
  if (root == roots_.end()) return matches;
  const Node* node = &nodes_.at(root->second);
  std::vector<TokenId> edge(kBlock);
  for (size_t begin = 0; begin + kBlock <= tokens.size(); begin += kBlock) {
    const auto first = tokens.begin() + static_cast<ptrdiff_t>(begin);
    edge.assign(first, first + static_cast<ptrdiff_t>(kBlock));
    const auto child = node->children.find(edge);
    if (child == node->children.end()) break;
    node = &nodes_.at(child->second);
    if (node->full == kNoBlock) break;
    matches.push_back({.node = child->second, .full = node->full, .window = node->window});
  }
  return matches;
}

PrefixIndex::NodeId PrefixIndex::Root(absl::string_view scope) {
  const auto [root, is_new] = roots_.try_emplace(std::string(scope), kNone);
  if (is_new) {
    root->second = ++last_node_;
    nodes_[root->second].scope = std::string(scope);
  }
  return root->second;
}

PrefixIndex::NodeId PrefixIndex::Extend(NodeId parent, std::span<const TokenId> tokens) {
  CHECK_EQ(tokens.size(), kBlock);
  const auto found = nodes_.find(parent);
  if (found == nodes_.end()) return kNone;
  std::vector<TokenId> edge(tokens.begin(), tokens.end());
  const auto [child, is_new] = found->second.children.try_emplace(edge, kNone);
  if (is_new) {
    child->second = ++last_node_;
    Node& node = nodes_[child->second];
    node.parent = parent;
    node.tokens = std::move(edge);
  }
  return child->second;
}

bool PrefixIndex::SetFull(NodeId id, BlockId block) {
  const auto node = nodes_.find(id);
  if (node == nodes_.end() || node->second.full != kNoBlock) return false;
  node->second.full = block;
  CHECK(node_of_full_.emplace(block, id).second);
  return true;
}

bool PrefixIndex::SetWindow(NodeId id, BlockId block) {
  const auto node = nodes_.find(id);
  if (node == nodes_.end() || node->second.window != kNoBlock) return false;
  node->second.window = block;
  CHECK(node_of_window_.emplace(block, id).second);
  return true;
}

void PrefixIndex::ForgetFull(BlockId block) {
  const auto found = node_of_full_.find(block);
  CHECK(found != node_of_full_.end());
  const NodeId id = found->second;
  node_of_full_.erase(found);
  nodes_.at(id).full = kNoBlock;
  Prune(id);
}

void PrefixIndex::ForgetWindow(BlockId block) {
  const auto found = node_of_window_.find(block);
  CHECK(found != node_of_window_.end());
  const NodeId id = found->second;
  node_of_window_.erase(found);
  nodes_.at(id).window = kNoBlock;
  Prune(id);
}

void PrefixIndex::Prune(NodeId id) {
  while (id != kNone) {
    const auto found = nodes_.find(id);
    const Node& node = found->second;
    if (!node.children.empty() || node.full != kNoBlock || node.window != kNoBlock) return;
    const NodeId parent = node.parent;
    if (parent == kNone) {
      roots_.erase(node.scope);
    } else {
      nodes_.at(parent).children.erase(node.tokens);
    }
    nodes_.erase(found);
    id = parent;
  }
}

}  // namespace shoal
