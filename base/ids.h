// Strong integer ids: a Rank cannot be passed where an Epoch is meant. Values: copyable, ordered,
// hashable, printable. `kernels/` uses plain int32_t instead.
#pragma once

#include <compare>
#include <cstdint>
#include <string>
#include <utility>

#include "absl/strings/str_cat.h"

namespace shoal {

template <typename Tag, typename T>
struct Id {
  using Value = T;
  T value{};

  friend constexpr auto operator<=>(const Id&, const Id&) = default;

  template <typename H>
  friend H AbslHashValue(H h, const Id& id) {
    return H::combine(std::move(h), id.value);
  }
};

template <typename Tag, typename T>
std::string ToString(Id<Tag, T> id) {
  return absl::StrCat(id.value);
}

// A worker process as its operator names it; outlives restarts. See Incarnation.
using WorkerId = Id<struct WorkerTag, uint32_t>;
// One run of a worker process: random, never zero.
using Incarnation = Id<struct IncarnationTag, uint64_t>;
using CellId = Id<struct CellTag, uint32_t>;
// A worker's index in one cell during one epoch.
using Rank = Id<struct RankTag, int32_t>;
// One coordinator's time as leader; grows. Compared first when a message is judged.
using Term = Id<struct TermTag, uint64_t>;
// One membership of one cell; grows, never reused. Compared second.
using Epoch = Id<struct EpochTag, uint64_t>;
// One lockstep pass of one cell; rises by one, never back, also across epochs. Compared third.
using StepId = Id<struct StepTag, uint64_t>;
using SequenceId = Id<struct SequenceTag, uint64_t>;
// A fixed number of K/V positions in one rank's memory (of the full or of the window layers).
using BlockId = Id<struct BlockTag, int32_t>;
using ExpertId = Id<struct ExpertTag, int32_t>;
using TokenId = Id<struct TokenTag, int32_t>;

}  // namespace shoal
