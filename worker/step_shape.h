// What a device must know of a step before it looks at it: bounds for sharing out the work, and
// which steps are so alike that one recording serves them all. Pure.
#pragma once

#include <cstdint>
#include <span>

#include "kernels/backend.h"

namespace shoal {

struct StepShape {
  int32_t max_entry_rows = 0;
  int32_t max_positions = 0;  // Above every position of the step
  uint64_t replay_key = 0;    // As Backend::Replay takes it
};

// Decode steps (one row of each sequence) of at most so many rows have a key. In larger ones the
// kernels take milliseconds and their launches hide behind them.
inline constexpr int32_t kMaxReplayRows = 64;

// Steps of equal keys have as many rows and equal bounds. A decode step's max_positions is the
// context's bucket, a power of two from kLeastContext on: a growing sequence changes its key 10
// times up to 131,072 positions.
inline constexpr int32_t kLeastContext = 256;

StepShape ShapeOf(std::span<const AttentionEntry> entries);

// Of a step in slots whose entries are single positions below `most_positions`, on all ranks,
// padded to `slot_rows` rows: the same on all of them, since to record a step of NCCL's operations,
// and to repeat it, is something that ranks do together.
StepShape ShapeInSlots(int32_t slot_rows, int32_t most_positions);

}  // namespace shoal
