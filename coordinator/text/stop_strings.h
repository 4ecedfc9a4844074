// Finds stop strings in streamed text, also across token borders, and holds back text that may be
// the beginning of one. A pure function of the text so far.
#pragma once

#include <cstddef>
#include <string>
#include <vector>

#include "absl/strings/string_view.h"

namespace shoal {

class StopStrings {
 public:
  // Empty strings never match.
  explicit StopStrings(const std::vector<std::string>& stops);

  struct Result {
    std::string text;      // May be shown
    bool stopped = false;  // A stop string was completed: nothing after it counts
    std::string stop;      // Which one (the earliest end; then the longest)
  };

  // Linear in the text, whatever the stop strings are. After a stop all further text is dropped.
  Result Push(absl::string_view text);
  // The end without a stop: what was held back.
  std::string Flush();

 private:
  // One stop string, searched as Knuth, Morris and Pratt do.
  struct Pattern {
    std::string stop;
    std::vector<size_t> border;  // Of each prefix but the empty one: its longest proper border
    size_t matched = 0;          // The text ends with this much of `stop`, and no more

    void Advance(char byte);
  };

  std::string Release(size_t num_bytes);

  std::vector<Pattern> patterns_;
  std::string held_;  // held_[shown_, size) is not shown yet
  size_t shown_ = 0;
  std::string stopped_by_;  // Empty: not stopped
};

}  // namespace shoal
