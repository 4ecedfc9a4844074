#include "coordinator/text/byte_trie.h"

namespace shoal {

void ByteTrie::Insert(absl::string_view bytes, int32_t value) {
  Node node = kRoot;
  nodes_[node].values.push_back(value);
  for (const char c : bytes) {
    const auto byte = static_cast<uint8_t>(c);
    Node next = Step(node, byte);
    if (next == kNowhere) {
      next = static_cast<Node>(nodes_.size());
      nodes_[node].children.emplace_back(byte, next);
      nodes_.emplace_back();
    }
    node = next;
    nodes_[node].values.push_back(value);
  }
  if (nodes_[node].value < 0) nodes_[node].value = value;
}

ByteTrie::Node ByteTrie::Step(Node node, uint8_t byte) const {
  for (const auto& [b, child] : nodes_[node].children) {
    if (b == byte) return child;
  }
  return kNowhere;
}

}  // namespace shoal
