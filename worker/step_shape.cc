#include "worker/step_shape.h"

#include <algorithm>
#include <bit>

namespace shoal {

StepShape ShapeOf(std::span<const AttentionEntry> entries) {
  StepShape shape;
  for (const AttentionEntry& entry : entries) {
    shape.max_entry_rows = std::max(shape.max_entry_rows, entry.num_rows);
    shape.max_positions = std::max(shape.max_positions, entry.first_position + entry.num_rows);
  }
  if (shape.max_entry_rows != 1 || entries.size() > size_t{kMaxReplayRows}) return shape;
  const auto context = static_cast<uint32_t>(std::max(shape.max_positions, kLeastContext));
  if (context > uint32_t{1} << 30) return shape;  // No power of two above it is an int32.
  shape.max_positions = static_cast<int32_t>(std::bit_ceil(context));
  shape.replay_key = uint64_t{entries.size()} << 32 | static_cast<uint32_t>(shape.max_positions);
  return shape;
}

}  // namespace shoal
