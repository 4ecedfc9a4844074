// Which tokens may be sampled next, as text rules decide it and as plans carry it. Near the ends of
// its range such a set is a few runs of ids; bits are what the sampler reads.
#pragma once

#include <bit>
#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

namespace shoal {

// Ids 0, 1, ... by turns: so many refused, so many allowed, and so on. Ids after the last run are
// refused. No runs at all: no rule, every id is allowed.
struct TokenMask {
  std::vector<uint32_t> runs;

  friend bool operator==(const TokenMask&, const TokenMask&) = default;
};

// Bit i % 32 of word i / 32 says whether id i is allowed.
inline TokenMask PackMask(std::span<const uint32_t> words) {
  TokenMask mask;
  uint32_t length = 0;  // Of the present run
  uint32_t turn = 0;    // A word of its bits: 0 or ~0
  for (const uint32_t word : words) {
    uint32_t at = 0;
    while (at < 32) {
      const auto same = static_cast<uint32_t>(std::countr_zero((word ^ turn) >> at));
      if (at + same >= 32) break;  // To the end of the word
      mask.runs.push_back(length + same);
      length = 0;
      turn = ~turn;
      at += same;
    }
    length += 32 - at;
  }
  if (turn != 0 || mask.runs.empty()) mask.runs.push_back(length);
  return mask;
}

// The ids that the runs cover.
inline int64_t CoveredIds(const TokenMask& mask) {
  int64_t covered = 0;
  for (const uint32_t run : mask.runs) covered += run;
  return covered;
}

// REQUIRES: CoveredIds(mask) <= vocab.
inline std::vector<uint32_t> UnpackMask(const TokenMask& mask, int32_t vocab) {
  std::vector<uint32_t> words((static_cast<size_t>(vocab) + 31) / 32, 0);
  size_t id = 0;
  bool is_allowed = false;
  for (const uint32_t run : mask.runs) {
    const size_t end = id + run;
    for (; is_allowed && id < end; ++id) {
      if (id % 32 == 0 && end - id >= 32) {
        words[id / 32] = ~uint32_t{0};
        id += 31;
      } else {
        words[id / 32] |= uint32_t{1} << (id % 32);
      }
    }
    id = end;
    is_allowed = !is_allowed;
  }
  return words;
}

}  // namespace shoal
