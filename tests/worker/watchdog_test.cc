#include "worker/exchange/watchdog.h"

#include <atomic>
#include <string>
#include <vector>

#include "absl/synchronization/notification.h"
#include "absl/time/clock.h"
#include "gtest/gtest.h"

namespace shoal {
namespace {

TEST(WatchdogTest, NamesTheCallThatDoesNotComeBack) {
  absl::Notification barked;
  std::string what;
  Watchdog watchdog([&](const std::string& late) {
    what = late;
    barked.Notify();
  });
  const Watchdog::Guard patient(&watchdog, "patient", absl::Now() + absl::Hours(1));
  { const Watchdog::Guard quick(&watchdog, "quick", absl::Now() + absl::Hours(1)); }
  const absl::Time start = absl::Now();
  const Watchdog::Guard late(&watchdog, "ncclCommAbort", start + absl::Milliseconds(50));
  ASSERT_TRUE(barked.WaitForNotificationWithTimeout(absl::Seconds(30)));
  EXPECT_EQ(what, "ncclCommAbort");
  EXPECT_GE(absl::Now() - start, absl::Milliseconds(49));
}

TEST(WatchdogTest, CallsThatComeBackAreNotNamed) {
  std::atomic<int> num_late = 0;
  {
    Watchdog watchdog([&](const std::string&) { ++num_late; });
    std::vector<std::thread> threads;
    for (int t = 0; t < 4; ++t) {
      threads.emplace_back([&] {
        for (int i = 0; i < 2'000; ++i) {
          const Watchdog::Guard guard(&watchdog, "a call", absl::Now() + absl::Seconds(60));
        }
      });
    }
    for (std::thread& thread : threads) thread.join();
  }
  EXPECT_EQ(num_late, 0);
}

}  // namespace
}  // namespace shoal
