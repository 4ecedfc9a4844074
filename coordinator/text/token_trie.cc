#include "coordinator/text/token_trie.h"

#include <algorithm>

namespace shoal {
namespace {

size_t CommonBytes(absl::string_view a, absl::string_view b) {
  const size_t most = std::min(a.size(), b.size());
  size_t length = 0;
  while (length < most && a[length] == b[length]) ++length;
  return length;
}

}  // namespace

TokenTrie::TokenTrie(std::vector<Entry> entries) {
  std::erase_if(entries, [](const Entry& entry) { return entry.first.size() > kMaxBytes; });
  std::sort(entries.begin(), entries.end());
  std::vector<uint32_t> open;  // Nodes on the way to the last string
  absl::string_view last;
  const auto close_to = [&](size_t depth) {
    for (; open.size() > depth; open.pop_back()) {
      nodes_[open.back()].end = static_cast<uint32_t>(nodes_.size());
    }
  };
  for (const auto& [bytes, value] : entries) {
    close_to(CommonBytes(last, bytes));
    while (open.size() < bytes.size()) {
      const auto byte = static_cast<uint8_t>(bytes[open.size()]);
      open.push_back(static_cast<uint32_t>(nodes_.size()));
      nodes_.push_back(
          {.end = 0, .value = kNone, .byte = byte, .depth = static_cast<uint8_t>(open.size())});
    }
    nodes_.back().value = value;
    max_depth_ = std::max(max_depth_, bytes.size());
    last = bytes;
  }
  close_to(0);
  nodes_.shrink_to_fit();
}

}  // namespace shoal
