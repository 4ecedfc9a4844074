#include "worker/exchange/exchange_shape.h"

#include "gtest/gtest.h"

namespace shoal {
namespace {

const ExchangeLimits kLimits{.max_rows = 512, .experts_per_token = 4, .row_bytes = 5760};

TEST(ExchangeShapeTest, EveryBatchFitsAndSlotsGrowByPowersOfTwo) {
  int32_t before = 0;
  for (int32_t rows = 0; rows <= 512; ++rows) {
    const ExchangeShape shape = ChooseExchangeShape(rows, 512);
    EXPECT_GE(shape.slot_rows, rows);
    EXPECT_GE(shape.slot_rows, before);
    before = shape.slot_rows;
    if (shape.rows_ride_along) {
      EXPECT_EQ(shape.slot_rows & (shape.slot_rows - 1), 0);
      EXPECT_LT(shape.slot_rows, 2 * std::max(rows, 1));
    } else {
      EXPECT_EQ(shape.slot_rows, rows);
    }
    EXPECT_EQ(shape.num_parts, 1) << "not measured yet: docs/performance.md";
  }
}

TEST(ExchangeShapeTest, LimitsBelowASlotBoundIt) {
  EXPECT_EQ(ChooseExchangeShape(5, 6).slot_rows, 6);
  EXPECT_EQ(ChooseExchangeShape(1, 1).slot_rows, 1);
}

TEST(ExchangeShapeTest, BytesHoldHeaderPairsAndRows) {
  const ExchangeShape one = ChooseExchangeShape(1, 512);
  const SlotBytes bytes = SlotBytesOf(one, kLimits);
  EXPECT_EQ(bytes.meta, 128u);  // 32 + 4 pairs of 8, on a boundary of 128
  EXPECT_EQ(bytes.dispatch, 128u + 5760u);
  const SlotBytes large = SlotBytesOf(ChooseExchangeShape(300, 512), kLimits);
  EXPECT_EQ(large.dispatch, large.meta);
  EXPECT_GE(large.meta, sizeof(SlotHeader) + 300 * 4 * 8);
}

}  // namespace
}  // namespace shoal
