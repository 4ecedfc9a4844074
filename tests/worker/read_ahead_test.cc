// Items are placed in order, reads run beside a placing, and an error ends it all.
#include "worker/load/read_ahead.h"

#include <atomic>
#include <vector>

#include "absl/synchronization/blocking_counter.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace shoal {
namespace {

TEST(ReadAheadTest, PlacesInOrderWhatItsOwnBufferHolds) {
  for (const int num_buffers : {1, 2, 5}) {
    for (const int64_t num_items : {0, 1, 4, 5, 103}) {
      std::vector<int64_t> buffers(static_cast<size_t>(num_buffers), -1);
      int64_t num_placed = 0;

      const absl::Status status = ReadAhead(
          num_items,
          num_buffers,
          [&](int64_t item, size_t buffer) {
            buffers[buffer] = item;
            return absl::OkStatus();
          },
          [&](int64_t item, size_t buffer) {
            EXPECT_EQ(item, num_placed++);
            EXPECT_EQ(buffers[buffer], item);
            return absl::OkStatus();
          });

      EXPECT_TRUE(status.ok());
      EXPECT_EQ(num_placed, num_items);
    }
  }
}

// Hangs, and fails by the test's deadline, if one of the reads waits for a placing.
TEST(ReadAheadTest, AllButOneBufferAreReadIntoDuringAPlacing) {
  constexpr int kBuffers = 4;
  absl::BlockingCounter begun(2 * kBuffers - 1);

  const absl::Status status = ReadAhead(
      2 * kBuffers - 1,
      kBuffers,
      [&](int64_t, size_t) {
        begun.DecrementCount();
        return absl::OkStatus();
      },
      [&](int64_t item, size_t) {
        if (item == kBuffers - 1) begun.Wait();  // Items 4, 5 and 6 are read meanwhile.
        return absl::OkStatus();
      });

  EXPECT_TRUE(status.ok());
}

TEST(ReadAheadTest, TheFirstErrorEndsItAndNoReadIsLeft) {
  std::atomic<int> num_begun = 0;
  std::atomic<int> num_ended = 0;
  int num_placed = 0;
  const auto read = [&](int64_t item, size_t) {
    ++num_begun;
    const absl::Status status = item == 6 ? absl::DataLossError("item 6") : absl::OkStatus();
    ++num_ended;
    return status;
  };
  const auto place = [&](int64_t, size_t) {
    ++num_placed;
    return absl::OkStatus();
  };

  EXPECT_EQ(ReadAhead(20, 3, read, place).message(), "item 6");

  EXPECT_EQ(num_placed, 6);
  EXPECT_EQ(num_begun, num_ended);
  EXPECT_LT(num_begun, 20);

  const auto refuse = [](int64_t, size_t) { return absl::CancelledError("enough"); };
  EXPECT_EQ(ReadAhead(20, 3, read, refuse).code(), absl::StatusCode::kCancelled);
  EXPECT_EQ(num_begun, num_ended);
}

}  // namespace
}  // namespace shoal
