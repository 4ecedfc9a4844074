#include "worker/step_shape.h"

#include <algorithm>
#include <bit>

namespace shoal {
namespace {

// The key of a decode step of so many rows, and its bound of positions: a power of two.
void SetKey(uint64_t rows, StepShape* shape) {
  const auto context = static_cast<uint32_t>(std::max(shape->max_positions, kLeastContext));
  if (context > uint32_t{1} << 30) return;  // No power of two above it is an int32.
  shape->max_positions = static_cast<int32_t>(std::bit_ceil(context));
  shape->replay_key = rows << 32 | static_cast<uint32_t>(shape->max_positions);
}

}  // namespace

StepShape ShapeOf(std::span<const AttentionEntry> entries) {
  StepShape shape;
  for (const AttentionEntry& entry : entries) {
    shape.max_entry_rows = std::max(shape.max_entry_rows, entry.num_rows);
    shape.max_positions = std::max(shape.max_positions, entry.first_position + entry.num_rows);
  }
  if (shape.max_entry_rows != 1 || entries.size() > size_t{kMaxReplayRows}) return shape;
  SetKey(entries.size(), &shape);
  return shape;
}

StepShape ShapeInSlots(int32_t slot_rows, int32_t most_positions) {
  StepShape shape{.max_entry_rows = 1, .max_positions = most_positions};
  SetKey(static_cast<uint64_t>(slot_rows), &shape);
  return shape;
}

}  // namespace shoal
