#include "worker/exchange/exchange_shape.h"

#include <bit>

#include "gtest/gtest.h"

namespace shoal {
namespace {

const ExchangeLimits kLimits{.max_rows = 512, .experts_per_token = 4, .row_bytes = 5760};

TEST(ExchangeShapeTest, SmallStepsGoInSlotsThatGrowByPowersOfTwo) {
  for (int32_t rows = 0; rows <= 512; ++rows) {
    const ExchangeShape shape = ChooseExchangeShape(rows, 512);
    EXPECT_EQ(shape.slot_rows > 0, rows <= kMaxSlotRows);
    if (shape.slot_rows > 0) {
      EXPECT_GE(shape.slot_rows, rows);
      EXPECT_TRUE(std::has_single_bit(static_cast<uint32_t>(shape.slot_rows)));
      EXPECT_LT(shape.slot_rows, 2 * std::max(rows, 1));
    }
    EXPECT_EQ(shape.num_parts, 1) << "not measured yet: docs/performance.md";
  }
}

TEST(ExchangeShapeTest, LimitsBelowASlotBoundIt) {
  EXPECT_EQ(ChooseExchangeShape(5, 6).slot_rows, 6);
  EXPECT_EQ(ChooseExchangeShape(1, 1).slot_rows, 1);
}

TEST(ExchangeShapeTest, HeadersHoldThePairsOfAllRows) {
  EXPECT_EQ(DispatchHeaderBytes(1, kLimits), 128u);  // 32 + 4 pairs of 8, on a boundary of 128
  EXPECT_GE(DispatchHeaderBytes(300, kLimits), sizeof(DispatchHeader) + 300 * 4 * 8);
}

}  // namespace
}  // namespace shoal
