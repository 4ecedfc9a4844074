// ShapeOf: which steps share a recording, and what bounds them.
#include "worker/step_shape.h"

#include <set>
#include <vector>

#include "gtest/gtest.h"

namespace shoal {
namespace {

std::vector<AttentionEntry> Decode(int rows, int32_t position) {
  std::vector<AttentionEntry> entries;
  for (int r = 0; r < rows; ++r) {
    entries.push_back({.first_row = r, .num_rows = 1, .first_position = position});
  }
  return entries;
}

TEST(StepShapeTest, AStepWithoutRowsOrWithAChunkIsNotReplayed) {
  EXPECT_EQ(ShapeOf({}).replay_key, 0u);

  std::vector<AttentionEntry> mixed = Decode(3, 70);
  mixed.push_back({.first_row = 3, .num_rows = 13, .first_position = 500});
  const StepShape shape = ShapeOf(mixed);
  EXPECT_EQ(shape.replay_key, 0u);
  EXPECT_EQ(shape.max_entry_rows, 13);
  EXPECT_EQ(shape.max_positions, 513);
}

TEST(StepShapeTest, DecodeIsReplayedUpToItsLimit) {
  EXPECT_NE(ShapeOf(Decode(kMaxReplayRows, 9)).replay_key, 0u);
  EXPECT_EQ(ShapeOf(Decode(kMaxReplayRows + 1, 9)).replay_key, 0u);
  EXPECT_EQ(ShapeOf(Decode(kMaxReplayRows + 1, 9)).max_positions, 10);
}

TEST(StepShapeTest, ABucketHoldsItsPositionsAndKeysAreFew) {
  std::set<uint64_t> keys;
  for (int32_t position = 0; position < 131'072; ++position) {
    const StepShape shape = ShapeOf(Decode(1, position));
    ASSERT_GT(shape.max_positions, position);
    ASSERT_LE(shape.max_positions, std::max(kLeastContext, 2 * position));
    keys.insert(shape.replay_key);
  }
  EXPECT_EQ(keys.size(), 10u);
}

TEST(StepShapeTest, EqualKeysMeanEqualShapes) {
  std::set<uint64_t> keys;
  for (int rows = 1; rows <= kMaxReplayRows; ++rows) {
    for (const int32_t position : {0, 255, 256, 100'000}) {
      keys.insert(ShapeOf(Decode(rows, position)).replay_key);
    }
  }
  EXPECT_EQ(keys.size(), size_t{3} * kMaxReplayRows);
}

// Seven sizes of slots and ten buckets: what every rank of a cell keeps at most.
TEST(StepShapeTest, StepsInSlotsHaveFewKeys) {
  std::set<uint64_t> keys;
  for (int32_t slot_rows = 1; slot_rows <= 64; slot_rows *= 2) {
    for (int32_t most = 1; most <= 131'072; most += 101) {
      const StepShape shape = ShapeInSlots(slot_rows, most);
      ASSERT_GE(shape.max_positions, most);
      EXPECT_EQ(shape.max_entry_rows, 1);
      keys.insert(shape.replay_key);
    }
  }
  EXPECT_EQ(keys.size(), 70u);
  EXPECT_FALSE(keys.contains(0));
}

}  // namespace
}  // namespace shoal
