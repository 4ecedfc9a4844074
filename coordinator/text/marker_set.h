// A set of markers such as <|end|>, and the search for the next one in a text.
#pragma once

#include <array>
#include <cstddef>
#include <optional>
#include <string>
#include <vector>

#include "absl/strings/string_view.h"

#include "base/ids.h"

namespace shoal {

class MarkerSet {
 public:
  struct Marker {
    std::string spelling;
    TokenId id;
  };

  struct Match {
    size_t begin, end;  // In the text
    TokenId id;
  };

  // REQUIRES: spellings are distinct and not empty.
  explicit MarkerSet(std::vector<Marker> markers);

  std::optional<TokenId> Find(absl::string_view spelling) const;

  // The first match that begins at `from` or later; of several there, the longest. Linear in the
  // text that is passed over, times the logarithm of the number of markers.
  std::optional<Match> Next(absl::string_view text, size_t from) const;

  const std::vector<Marker>& markers() const { return markers_; }  // Sorted by spelling

 private:
  std::optional<Match> LongestAt(absl::string_view text, size_t begin) const;

  std::vector<Marker> markers_;
  std::array<bool, 256> begins_marker_{};  // By first byte
};

}  // namespace shoal
