// Byte strings in one tree, laid out so that a walk that skips refused branches is a loop over
// arrays: nodes in pre-order, each with the place behind its branch. For 200,000 tokens about 10
// MB.
#pragma once

#include <cstddef>
#include <cstdint>
#include <utility>
#include <vector>

#include "absl/strings/string_view.h"

namespace shoal {

class TokenTrie {
 public:
  static constexpr int32_t kNone = -1;

  using Entry = std::pair<absl::string_view, int32_t>;  // Bytes and what is found there

  // REQUIRES: distinct byte strings of 1 to kMaxBytes; values of at least 0. Longer ones are left
  // out.
  explicit TokenTrie(std::vector<Entry> entries);

  static constexpr size_t kMaxBytes = 255;

  struct Node {
    uint32_t end;   // Of its branch: the next node that is not below this one
    int32_t value;  // kNone: no string ends here
    uint8_t byte;
    uint8_t depth;  // Of a string's first byte: 1
  };

  const std::vector<Node>& nodes() const { return nodes_; }

  size_t max_depth() const { return max_depth_; }

 private:
  std::vector<Node> nodes_;
  size_t max_depth_ = 0;
};

}  // namespace shoal
