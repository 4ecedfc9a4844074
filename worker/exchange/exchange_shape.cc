#include "worker/exchange/exchange_shape.h"

#include <algorithm>
#include <bit>

#include "base/check.h"
#include "worker/exchange/route.h"

namespace shoal {
namespace {

// Pairs end on a boundary that vector loads like.
constexpr size_t kAlignment = 128;

size_t Size(int64_t count) {
  CHECK_GE(count, 0);
  return static_cast<size_t>(count);
}

}  // namespace

// In slots up to 64 rows. With rows of 5,760 bytes the padding of a dispatch costs at most what its
// slot holds, 369 kB, and that of a combine four times as much: some 4 us of NVLink or 32 us of a
// 400 Gb/s network for each peer. The host-planned way is exact and waits for the host twice a
// layer. Powers of two, so that few sizes have to be recorded.
//
// In parts: nowhere yet. What hiding a transfer behind the other part's experts gains against two
// smaller expert products has to be measured on GPUs, and was not (docs/performance.md); the parts
// themselves are tested to give equal bits.
ExchangeShape ChooseExchangeShape(int32_t most_rows, int32_t max_rows) {
  CHECK(most_rows >= 0 && most_rows <= max_rows);
  if (most_rows > kMaxSlotRows) return {.slot_rows = 0, .num_parts = 1};
  const auto rows = static_cast<uint32_t>(std::max(most_rows, 1));
  const auto slot_rows = static_cast<int32_t>(std::bit_ceil(rows));
  return {.slot_rows = std::min(slot_rows, max_rows), .num_parts = 1};
}

size_t DispatchHeaderBytes(int32_t most_rows, const ExchangeLimits& limits) {
  const size_t pairs = Size(most_rows) * Size(limits.experts_per_token);
  const size_t bytes = sizeof(DispatchHeader) + pairs * sizeof(RoutedPair);
  return (bytes + kAlignment - 1) / kAlignment * kAlignment;
}

}  // namespace shoal
