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
  explicit StopStrings(std::vector<std::string> stops);

  struct Result {
    std::string text;      // May be shown
    bool stopped = false;  // A stop string was completed: nothing after it counts
    std::string stop;      // Which one (the earliest end; then the longest)
  };

  // Linear in the text, whatever the stop strings are.
  Result Push(absl::string_view text);
  // The end without a stop: what was held back.
  std::string Flush();

 private:
  std::vector<std::string> stops_;
  std::string held_;
};

}  // namespace shoal
