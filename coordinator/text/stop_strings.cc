#include "coordinator/text/stop_strings.h"

#include <algorithm>

#include "base/check.h"

namespace shoal {

StopStrings::StopStrings(const std::vector<std::string>& stops) {
  for (const std::string& stop : stops) {
    if (stop.empty()) continue;
    // The borders come from searching the string in itself, one byte late.
    Pattern pattern{stop, {0}, 0};
    for (size_t i = 1; i < stop.size(); ++i) {
      pattern.Advance(stop[i]);
      pattern.border.push_back(pattern.matched);
    }
    pattern.matched = 0;
    patterns_.push_back(std::move(pattern));
  }
}

// Each step back undoes a step forward, so the steps are at most twice the bytes.
void StopStrings::Pattern::Advance(char byte) {
  while (matched > 0 && (matched == stop.size() || stop[matched] != byte)) {
    matched = border[matched - 1];
  }
  if (stop[matched] == byte) ++matched;
}

StopStrings::Result StopStrings::Push(absl::string_view text) {
  if (!stopped_by_.empty()) return {"", true, stopped_by_};
  for (const char byte : text) {
    held_.push_back(byte);
    for (Pattern& pattern : patterns_) {
      pattern.Advance(byte);
      const bool is_whole = pattern.matched == pattern.stop.size();
      if (is_whole && pattern.stop.size() > stopped_by_.size()) stopped_by_ = pattern.stop;
    }
    if (stopped_by_.empty()) continue;
    std::string shown = Release(held_.size() - shown_ - stopped_by_.size());
    held_.clear();
    shown_ = 0;
    return {std::move(shown), true, stopped_by_};
  }

  size_t may_stop = 0;
  for (const Pattern& pattern : patterns_) may_stop = std::max(may_stop, pattern.matched);
  return {Release(held_.size() - shown_ - may_stop), false, ""};
}

std::string StopStrings::Flush() {
  return Release(held_.size() - shown_);
}

// Shown bytes leave the buffer once they are the greater half of it: each byte moves once, on
// average, even if every call shows one byte and holds a thousand.
std::string StopStrings::Release(size_t num_bytes) {
  CHECK_LE(shown_ + num_bytes, held_.size());
  std::string text = held_.substr(shown_, num_bytes);
  shown_ += num_bytes;
  if (shown_ * 2 >= held_.size()) {
    held_.erase(0, shown_);
    shown_ = 0;
  }
  return text;
}

}  // namespace shoal
