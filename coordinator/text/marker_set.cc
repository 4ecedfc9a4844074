#include "coordinator/text/marker_set.h"

#include <algorithm>
#include <cstdint>
#include <utility>

#include "base/check.h"

namespace shoal {

MarkerSet::MarkerSet(std::vector<Marker> markers) : markers_(std::move(markers)) {
  std::sort(markers_.begin(), markers_.end(), [](const Marker& a, const Marker& b) {
    return a.spelling < b.spelling;
  });
  for (const Marker& marker : markers_) {
    CHECK(!marker.spelling.empty());
    begins_marker_[static_cast<uint8_t>(marker.spelling[0])] = true;
  }
}

std::optional<TokenId> MarkerSet::Find(absl::string_view spelling) const {
  const std::optional<Match> match = LongestAt(spelling, 0);
  if (!match || match->end != spelling.size()) return std::nullopt;
  return match->id;
}

std::optional<MarkerSet::Match> MarkerSet::Next(absl::string_view text, size_t from) const {
  for (size_t at = from; at < text.size(); ++at) {
    if (!begins_marker_[static_cast<uint8_t>(text[at])]) continue;
    if (const std::optional<Match> match = LongestAt(text, at)) return match;
  }
  return std::nullopt;
}

// Narrows the sorted markers to those that share one more byte with the text, until none is left.
// Among those left, one that ends here sorts first.
std::optional<MarkerSet::Match> MarkerSet::LongestAt(absl::string_view text, size_t begin) const {
  std::optional<Match> longest;
  auto low = markers_.begin();
  auto high = markers_.end();
  for (size_t length = 0; low != high; ++length) {
    if (low->spelling.size() == length) {
      longest = Match{begin, begin + length, low->id};
      ++low;
    }
    if (begin + length == text.size()) break;
    const auto byte = static_cast<uint8_t>(text[begin + length]);
    const auto byte_of = [length](const Marker& marker) {
      return static_cast<uint8_t>(marker.spelling[length]);
    };
    low = std::partition_point(low, high, [&](const Marker& m) { return byte_of(m) < byte; });
    high = std::partition_point(low, high, [&](const Marker& m) { return byte_of(m) == byte; });
  }
  return longest;
}

}  // namespace shoal
