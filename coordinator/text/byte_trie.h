// Byte strings that share their beginnings: the names of an object's properties, the values of an
// enum.
#pragma once

#include <cstdint>
#include <span>
#include <utility>
#include <vector>

#include "absl/strings/string_view.h"

namespace shoal {

class ByteTrie {
 public:
  using Node = uint32_t;
  static constexpr Node kRoot = 0;
  static constexpr Node kNowhere = 0xffffffff;

  ByteTrie() : nodes_(1) {}

  // Of two equal strings the first one counts. REQUIRES: values rise from call to call.
  void Insert(absl::string_view bytes, int32_t value);

  Node Step(Node node, uint8_t byte) const;

  // Of the string that ends here; -1: none does.
  int32_t value(Node node) const { return nodes_[node].value; }

  bool is_leaf(Node node) const { return nodes_[node].children.empty(); }

  // Of all strings that pass through or end here. Rising.
  std::span<const int32_t> values(Node node) const { return nodes_[node].values; }

 private:
  struct Entry {
    int32_t value = -1;
    std::vector<std::pair<uint8_t, Node>> children;
    std::vector<int32_t> values;
  };

  std::vector<Entry> nodes_;
};

}  // namespace shoal
