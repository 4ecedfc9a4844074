// Many short byte strings end to end in one buffer: a vocabulary has 200,000 tokens of 7 bytes.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

#include "absl/strings/string_view.h"

namespace shoal {

class ByteStrings {
 public:
  void Append(absl::string_view bytes) {
    bytes_.append(bytes.data(), bytes.size());
    ends_.push_back(bytes_.size());
  }

  // Views stay valid until the next Append and while this object stays where it is.
  absl::string_view operator[](size_t index) const { return Joined(index, 1); }

  // Strings index .. index + count - 1 as one. REQUIRES: index + count <= size().
  absl::string_view Joined(size_t index, size_t count) const {
    const size_t begin = index == 0 ? 0 : ends_[index - 1];
    return absl::string_view(bytes_).substr(begin, ends_[index + count - 1] - begin);
  }

  size_t size() const { return ends_.size(); }

 private:
  std::string bytes_;
  std::vector<size_t> ends_;  // Of each string, in bytes_
};

}  // namespace shoal
