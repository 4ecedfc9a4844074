#include "worker/exchange/exchange_shape.h"

#include <algorithm>
#include <array>

#include "base/check.h"
#include "worker/exchange/route.h"

namespace shoal {
namespace {

// Rows start on a boundary that vector loads like.
constexpr size_t kRowAlignment = 128;

struct Choice {
  int32_t up_to_rows = 0;
  int32_t slot_rows = 0;  // 0: as many as the step has
  bool rows_ride_along = false;
  int32_t num_parts = 1;
};

// Where a row of 5,760 bytes rides along, the padding costs at most what its slot holds: 64 rows,
// 369 kB, some 1 us of NVLink or 8 us of a 400 Gb/s network, less than a second round. Above that
// an exact second round is cheaper. In parts: nowhere yet. What hiding a transfer behind the other
// part's experts gains against two smaller expert products has to be measured on GPUs, and was not
// (docs/performance.md); the parts themselves are tested to give equal bits.
constexpr std::array<Choice, 8> kChoices = {{
    {.up_to_rows = 1, .slot_rows = 1, .rows_ride_along = true, .num_parts = 1},
    {.up_to_rows = 2, .slot_rows = 2, .rows_ride_along = true, .num_parts = 1},
    {.up_to_rows = 4, .slot_rows = 4, .rows_ride_along = true, .num_parts = 1},
    {.up_to_rows = 8, .slot_rows = 8, .rows_ride_along = true, .num_parts = 1},
    {.up_to_rows = 16, .slot_rows = 16, .rows_ride_along = true, .num_parts = 1},
    {.up_to_rows = 32, .slot_rows = 32, .rows_ride_along = true, .num_parts = 1},
    {.up_to_rows = 64, .slot_rows = 64, .rows_ride_along = true, .num_parts = 1},
    {.up_to_rows = 1 << 30, .slot_rows = 0, .rows_ride_along = false, .num_parts = 1},
}};

size_t Size(int64_t count) {
  CHECK_GE(count, 0);
  return static_cast<size_t>(count);
}

}  // namespace

ExchangeShape ChooseExchangeShape(int32_t most_rows, int32_t max_rows) {
  CHECK(most_rows >= 0 && most_rows <= max_rows);
  const auto choice =
      std::ranges::find_if(kChoices, [&](const Choice& c) { return most_rows <= c.up_to_rows; });
  CHECK(choice != kChoices.end());
  const int32_t slot_rows = choice->slot_rows == 0 ? most_rows : choice->slot_rows;
  return {.slot_rows = std::min(slot_rows, max_rows),
          .rows_ride_along = choice->rows_ride_along,
          .num_parts = choice->num_parts};
}

SlotBytes SlotBytesOf(const ExchangeShape& shape, const ExchangeLimits& limits) {
  const size_t pairs = Size(shape.slot_rows) * Size(limits.experts_per_token);
  const size_t meta = sizeof(SlotHeader) + pairs * sizeof(RoutedPair);
  const size_t aligned = (meta + kRowAlignment - 1) / kRowAlignment * kRowAlignment;
  const size_t rows = shape.rows_ride_along ? Size(shape.slot_rows) * Size(limits.row_bytes) : 0;
  return {.meta = aligned, .dispatch = aligned + rows};
}

}  // namespace shoal
