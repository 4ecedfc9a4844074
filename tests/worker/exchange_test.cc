// One suite for every transport of host memory: what exchange.h promises.
#include "worker/exchange/exchange.h"

#include <dirent.h>

#include <algorithm>
#include <atomic>
#include <cstdio>
#include <fstream>
#include <latch>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "gtest/gtest.h"

#include "base/prng.h"
#include "tests/worker/exchange_cell.h"
#include "worker/exchange/suspects.h"

namespace shoal {
namespace {

constexpr absl::Duration kAmple = absl::Seconds(30);  // Only a failing test waits that long.

// Sanitizers keep freed memory for a while.
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
constexpr int64_t kMaxPages = 16'384;
#else
constexpr int64_t kMaxPages = 512;
#endif

absl::Time Soon() {
  return absl::Now() + kAmple;
}

uint64_t Mix(uint64_t epoch, size_t rank) {
  return Mix64(epoch * 64 + rank);
}

int CountEntries(const char* folder) {
  int count = 0;
  DIR* dir = opendir(folder);
  while (readdir(dir) != nullptr) ++count;
  closedir(dir);
  return count;
}

// The kernel shows a thread for a moment after it was joined: so waits, a while at most, until no
// more than `bound` are left, and returns how many are.
int AwaitThreads(int bound) {
  const absl::Time deadline = absl::Now() + absl::Seconds(10);
  int count = CountEntries("/proc/self/task");
  while (count > bound && absl::Now() < deadline) {
    std::this_thread::yield();
    count = CountEntries("/proc/self/task");
  }
  return count;
}

int64_t ResidentPages() {
  std::ifstream statm("/proc/self/statm");
  int64_t size = 0;
  int64_t resident = 0;
  statm >> size >> resident;
  return resident;
}

// A NCCL for host memory: the same promises, save that it doesn't say which rank it misses.
constexpr char kNccl[] = "nccl:" SHOAL_BINARY_DIR "/tests/worker/fake_nccl/libfake_nccl.so";

class ExchangeTest : public testing::TestWithParam<const char*> {
 protected:
  // Factories for `num_ranks` workers, as they live across epochs.
  void StartWorkers(int32_t num_ranks) {
    hub_ = std::make_shared<LocalHub>();
    for (int32_t rank = 0; rank < num_ranks; ++rank) {
      auto factory = MakeExchangeFactory(GetParam(), {.hub = hub_, .gpu = nullptr});
      ASSERT_TRUE(factory.ok()) << factory.status();
      (*factory)->SetPublisher([this](const Bootstrap& bootstrap) {  // The coordinator's part
        for (const auto& other : factories_) other->Deliver(bootstrap);
      });
      endpoints_.push_back((*factory)->endpoint());
      factories_.push_back(*std::move(factory));
    }
    exchanges_.resize(factories_.size());
  }

  Membership MembershipOf(int32_t rank, uint64_t epoch, const Traffic& traffic) const {
    return MakeMembership(endpoints_, epoch, rank, traffic.replicas);
  }

  absl::Status Create(const CellShape& shape,
                      const Traffic& traffic,
                      int32_t rank,
                      uint64_t epoch,
                      absl::Time deadline) {
    const auto r = static_cast<size_t>(rank);
    exchanges_[r] = nullptr;
    auto exchange =
        factories_[r]->Create(MembershipOf(rank, epoch, traffic), shape.limits(), deadline);
    if (exchange.ok()) exchanges_[r] = *std::move(exchange);
    return exchange.status();
  }

  void CreateAll(const CellShape& shape, const Traffic& traffic, uint64_t epoch) {
    std::vector<absl::Status> statuses(factories_.size());
    OnEachRank(shape.num_ranks, [&](int32_t rank) {
      statuses[static_cast<size_t>(rank)] = Create(shape, traffic, rank, epoch, Soon());
    });
    for (const absl::Status& status : statuses) ASSERT_TRUE(status.ok()) << status;
  }

  static bool IsNccl() { return absl::StartsWith(GetParam(), "nccl:"); }

  static void ExpectSuspect(const std::vector<Rank>& suspects, int32_t rank) {
    if (IsNccl()) return;
    EXPECT_EQ(suspects, std::vector<Rank>{Rank{rank}});
  }

  Exchange* exchange(int32_t rank) { return exchanges_[static_cast<size_t>(rank)].get(); }

  std::shared_ptr<LocalHub> hub_;
  std::vector<std::string> endpoints_;
  std::vector<std::unique_ptr<ExchangeFactory>> factories_;
  std::vector<std::unique_ptr<Exchange>> exchanges_;
};

INSTANTIATE_TEST_SUITE_P(Transports,
                         ExchangeTest,
                         testing::Values("local:", "unix:", "tcp:127.0.0.1:0", "shm:", kNccl),
                         [](const auto& transport) {
                           return std::string(transport.param,
                                              std::string(transport.param).find(':'));
                         });

TEST_P(ExchangeTest, BringsEveryRowToItsExpertsAndHome) {
  for (int32_t num_ranks = 1; num_ranks <= 8; ++num_ranks) {
    SCOPED_TRACE(num_ranks);
    const CellShape shape{.num_ranks = num_ranks, .hidden = 40, .max_rows = 33};
    // Empty, one, odd, the most; then skewed towards one rank; then nobody has anything.
    std::vector<std::vector<int32_t>> sizes;
    std::vector<int32_t> cycle;
    for (int32_t rank = 0; rank < num_ranks; ++rank) {
      cycle.push_back(std::vector<int32_t>{0, 1, 7, 33}[static_cast<size_t>(rank % 4)]);
    }
    for (int32_t turn = 0; turn < 4; ++turn) {
      sizes.push_back(cycle);
      std::rotate(cycle.begin(), cycle.begin() + 1, cycle.end());
    }
    sizes.push_back(std::vector<int32_t>(static_cast<size_t>(num_ranks), 33));
    sizes.push_back(std::vector<int32_t>(static_cast<size_t>(num_ranks), 0));
    sizes.push_back(std::vector<int32_t>(static_cast<size_t>(num_ranks), 0));
    sizes.back()[0] = 33;
    // One placement for all steps of the epoch; the experts of rows change.
    std::vector<Traffic> steps;
    for (size_t i = 0; i < sizes.size(); ++i) {
      steps.push_back(RandomTraffic(shape, sizes[i], 40 + i));
      steps.back().replicas = steps.front().replicas;
    }

    exchanges_.clear();
    factories_.clear();
    endpoints_.clear();
    StartWorkers(num_ranks);
    CreateAll(shape, steps.front(), 1);
    OnEachRank(num_ranks, [&](int32_t rank) {
      for (size_t i = 0; i < steps.size(); ++i) {
        const absl::Status status = RunStep(shape, steps[i], rank, exchange(rank), Soon());
        EXPECT_TRUE(status.ok()) << "rank " << rank << " step " << i << ": " << status;
        if (!status.ok()) return;
      }
      EXPECT_TRUE(exchange(rank)->Health().ok());
      EXPECT_TRUE(exchange(rank)->suspects().empty());
    });
  }
}

TEST_P(ExchangeTest, CarriesLargeRows) {
  const CellShape shape{.num_ranks = 3, .num_experts = 32, .hidden = 2880, .max_rows = 256};
  const Traffic traffic = RandomTraffic(shape, {256, 255, 1}, 5);
  StartWorkers(3);
  CreateAll(shape, traffic, 1);
  OnEachRank(3, [&](int32_t rank) {
    for (int i = 0; i < 2; ++i) {
      const absl::Status status = RunStep(shape, traffic, rank, exchange(rank), Soon());
      EXPECT_TRUE(status.ok()) << status;
    }
  });
}

TEST_P(ExchangeTest, OneRankNeedsNobodyAndCopiesNothing) {
  const CellShape shape{.num_ranks = 1, .num_experts = 4, .k = 2};
  const Traffic traffic = RandomTraffic(shape, {3}, 6);
  StartWorkers(1);
  CreateAll(shape, traffic, 1);
  EXPECT_TRUE(RunStep(shape, traffic, 0, exchange(0), Soon()).ok());

  Route route;
  PlanRoute(traffic.expert_ids[0],
            3,
            2,
            {.ranks_of_expert = traffic.replicas, .self = Rank{0}, .num_ranks = 1},
            &route);
  std::vector<uint16_t> rows(3 * 24);
  const auto arrivals =
      exchange(0)->Dispatch(route, MakeTensor(rows.data(), DType::kBf16, 3, 24), Soon());
  ASSERT_TRUE(arrivals.ok());
  EXPECT_EQ(arrivals->rows.data, rows.data());
}

TEST_P(ExchangeTest, OperationsInAnotherOrderFailOnBothSides) {
  const CellShape shape{.num_ranks = 2};
  const Traffic traffic = RandomTraffic(shape, {0, 0}, 7);
  StartWorkers(2);
  CreateAll(shape, traffic, 1);
  if (IsNccl()) GTEST_SKIP() << "NCCL's ranks only wait for each other then";
  const TensorView nothing = MakeTensor(nullptr, DType::kBf16, 0, shape.hidden);
  Route route;
  PlanRoute(
      {}, 0, 4, {.ranks_of_expert = traffic.replicas, .self = Rank{0}, .num_ranks = 2}, &route);
  Arrivals arrivals;
  arrivals.source_pairs = {0, 0, 0};
  OnEachRank(2, [&](int32_t rank) {
    const absl::Status status =
        rank == 0 ? exchange(0)->Dispatch(route, nothing, Soon()).status()
                  : exchange(1)->Combine(route, arrivals, nothing, nothing, Soon());
    EXPECT_EQ(status.code(), absl::StatusCode::kFailedPrecondition) << status;
    EXPECT_EQ(exchange(rank)->suspects(), std::vector<Rank>{Rank{1 - rank}});
    // Sticky, without asking anybody.
    EXPECT_EQ(exchange(rank)->Dispatch(route, nothing, absl::InfinitePast()).status(), status);
  });
}

TEST_P(ExchangeTest, MoreRowsThanTheLimitAreRefused) {
  const CellShape small{.num_ranks = 2, .max_rows = 4};
  const CellShape large{.num_ranks = 2, .max_rows = 64};
  const Traffic traffic = RandomTraffic(large, {64, 64}, 8);
  StartWorkers(2);
  std::vector<absl::Status> created(2);
  OnEachRank(2, [&](int32_t rank) {
    const CellShape& shape = rank == 0 ? small : large;
    created[static_cast<size_t>(rank)] = Create(shape, traffic, rank, 1, Soon());
  });
  if (IsNccl()) {  // Messages of unequal sizes: an error of NCCL's, or none until the deadline.
    for (const absl::Status& status : created) EXPECT_FALSE(status.ok());
    return;
  }
  if (absl::StartsWith(GetParam(), "shm:")) {  // Its ranks have to agree on the segment's size.
    EXPECT_EQ(created[0].code(), absl::StatusCode::kUnavailable) << created[0];
    EXPECT_EQ(created[1].code(), absl::StatusCode::kFailedPrecondition) << created[1];
    return;
  }
  for (const absl::Status& status : created) ASSERT_TRUE(status.ok()) << status;
  // Rank 1 believes in the larger limit. Rank 0, which does not, has nothing to send.
  Traffic skewed = traffic;
  skewed.expert_ids[0].clear();
  std::latch both_done(2);
  OnEachRank(2, [&](int32_t rank) {
    const absl::Time deadline = rank == 0 ? Soon() : absl::Now() + absl::Milliseconds(300);
    const absl::Status status =
        RunStep(rank == 0 ? small : large, skewed, rank, exchange(rank), deadline);
    EXPECT_FALSE(status.ok());
    if (rank == 0) {
      EXPECT_EQ(status.code(), absl::StatusCode::kFailedPrecondition) << status;
      EXPECT_EQ(exchange(0)->suspects(), std::vector<Rank>{Rank{1}});
    }
    both_done.arrive_and_wait();
  });
}

TEST_P(ExchangeTest, OwnRowsBeyondTheLimitAreInvalid) {
  const CellShape shape{.num_ranks = 2, .max_rows = 4};
  const Traffic traffic = RandomTraffic(shape, {40, 0}, 9);
  StartWorkers(2);
  CreateAll(shape, traffic, 1);
  EXPECT_EQ(RunStep(shape, traffic, 0, exchange(0), Soon()).code(),
            absl::StatusCode::kInvalidArgument);
}

TEST_P(ExchangeTest, ASilentPeerCostsTheDeadlineAndIsSuspected) {
  const CellShape shape{.num_ranks = 3};
  const Traffic traffic = RandomTraffic(shape, {1, 1, 1}, 10);
  StartWorkers(3);
  CreateAll(shape, traffic, 1);
  OnEachRank(3, [&](int32_t rank) {
    if (rank == 2) return;
    const absl::Time start = absl::Now();
    const absl::Status status =
        RunStep(shape, traffic, rank, exchange(rank), start + absl::Milliseconds(100));
    EXPECT_EQ(status.code(), absl::StatusCode::kDeadlineExceeded) << status;
    ExpectSuspect(exchange(rank)->suspects(), 2);
    EXPECT_GE(absl::Now() - start, absl::Milliseconds(99));
    EXPECT_GE(exchange(rank)->TakeWaitTime(), absl::Milliseconds(50));
    EXPECT_EQ(exchange(rank)->TakeWaitTime(), absl::ZeroDuration());
  });
}

TEST_P(ExchangeTest, APeerThatLeavesIsSuspectedAtOnce) {
  const CellShape shape{.num_ranks = 3};
  const Traffic traffic = RandomTraffic(shape, {1, 1, 1}, 11);
  StartWorkers(3);
  CreateAll(shape, traffic, 1);
  std::latch both_know(2);
  OnEachRank(3, [&](int32_t rank) {
    if (rank == 2) {
      exchanges_[2] = nullptr;
      return;
    }
    const absl::Status status = RunStep(shape, traffic, rank, exchange(rank), Soon());
    EXPECT_EQ(status.code(), absl::StatusCode::kUnavailable) << status;
    ExpectSuspect(exchange(rank)->suspects(), 2);
    EXPECT_EQ(exchange(rank)->Health(), status);
    both_know.arrive_and_wait();
  });
}

TEST_P(ExchangeTest, AbortWakesAWaiterAndStays) {
  const CellShape shape{.num_ranks = 2};
  const Traffic traffic = RandomTraffic(shape, {1, 1}, 12);
  StartWorkers(2);
  CreateAll(shape, traffic, 1);
  absl::Time aborted;
  std::thread waiter([&] {
    const absl::Status status = RunStep(shape, traffic, 0, exchange(0), Soon());
    EXPECT_LT(absl::Now() - aborted, absl::Seconds(2));
    EXPECT_EQ(status, absl::AbortedError("epoch 2 begins"));
  });
  while (exchange(0)->Health().ok()) {  // At a random moment of the waiter's life.
    std::this_thread::yield();
    aborted = absl::Now();
    exchange(0)->Abort(absl::AbortedError("epoch 2 begins"));
    exchange(0)->Abort(absl::AbortedError("said twice"));
  }
  waiter.join();
  EXPECT_EQ(RunStep(shape, traffic, 0, exchange(0), Soon()).message(), "epoch 2 begins");
}

TEST_P(ExchangeTest, AbortAtAnyMomentEndsARunningExchange) {
  const CellShape shape{.num_ranks = 3};
  const Traffic traffic = RandomTraffic(shape, {2, 3, 4}, 13);
  StartWorkers(3);
  for (uint64_t epoch = 1; epoch <= 20; ++epoch) {
    CreateAll(shape, traffic, epoch);
    std::latch begun(3);
    std::thread aborter([&] {
      begun.wait();
      for (int32_t rank = 0; rank < 3; ++rank) exchange(rank)->Abort(absl::AbortedError("now"));
    });
    OnEachRank(3, [&](int32_t rank) {
      begun.count_down();
      absl::Status status;
      while (status.ok()) status = RunStep(shape, traffic, rank, exchange(rank), Soon());
      // NCCL's abort also breaks the connections to those that are not aborted yet.
      const bool is_broken = IsNccl() && absl::IsUnavailable(status);
      EXPECT_TRUE(absl::IsAborted(status) || is_broken) << status;
    });
    aborter.join();
  }
}

TEST_P(ExchangeTest, AbortCreateWakesIt) {
  const CellShape shape{.num_ranks = 2};
  const Traffic traffic = RandomTraffic(shape, {1, 1}, 14);
  StartWorkers(2);
  for (int32_t rank = 0; rank < 2; ++rank) {  // Both who dials and who is dialled.
    std::latch done(1);
    std::thread creator([&] {
      const absl::Status status = Create(shape, traffic, rank, 1, Soon());
      EXPECT_EQ(status.code(), absl::StatusCode::kAborted) << status;
      done.count_down();
    });
    while (!done.try_wait()) {
      factories_[static_cast<size_t>(rank)]->AbortCreate();
      std::this_thread::yield();
    }
    creator.join();
  }
  CreateAll(shape, traffic, 2);  // Not disturbed by what came before.
}

TEST_P(ExchangeTest, CreateWithoutPeersEndsAtTheDeadline) {
  const CellShape shape{.num_ranks = 3};
  const Traffic traffic = RandomTraffic(shape, {1, 1, 1}, 15);
  StartWorkers(3);
  const absl::Time deadline = absl::Now() + absl::Milliseconds(150);
  std::atomic<int> num_late = 0;
  OnEachRank(3, [&](int32_t rank) {
    if (rank == 1) return;
    const absl::Status status = Create(shape, traffic, rank, 1, deadline);
    EXPECT_FALSE(status.ok());
    // The later of the two may see the other one go.
    if (status.code() == absl::StatusCode::kUnavailable) return;
    EXPECT_EQ(status.code(), absl::StatusCode::kDeadlineExceeded) << status;
    EXPECT_TRUE(IsNccl() || std::ranges::count(SuspectsOf(status), Rank{1})) << status;
    ++num_late;
  });
  EXPECT_GE(num_late, 1);
  EXPECT_GE(absl::Now(), deadline);
}

TEST_P(ExchangeTest, AStaleEpochIsRefusedByName) {
  const CellShape shape{.num_ranks = 3};
  const Traffic traffic = RandomTraffic(shape, {1, 1, 1}, 16);
  StartWorkers(3);
  std::latch refused(1);
  OnEachRank(3, [&](int32_t rank) {
    if (rank == 1) {  // Has slept through Configure(8).
      const absl::Status status = Create(shape, traffic, rank, 7, Soon());
      EXPECT_EQ(status.code(), absl::StatusCode::kFailedPrecondition) << status;
      EXPECT_TRUE(absl::StrContains(status.message(), "epoch 7")) << status;
      EXPECT_TRUE(absl::StrContains(status.message(), "epoch 8")) << status;
      refused.count_down();
    }
    const absl::Status status = Create(shape, traffic, rank, 8, Soon());
    EXPECT_TRUE(status.ok()) << status;
  });
}

TEST_P(ExchangeTest, RanksThatEnterEpochsAtDifferentTimesConverge) {
  const CellShape shape{.num_ranks = 4};
  const Traffic traffic = RandomTraffic(shape, {1, 2, 3, 4}, 17);
  StartWorkers(4);
  for (uint64_t base = 1; base < 60; base += 3) {
    OnEachRank(4, [&](int32_t rank) {
      const auto r = static_cast<size_t>(rank);
      // Each rank obeys a different selection of the epochs base, base + 1, base + 2.
      for (uint64_t epoch = base; epoch < base + 3; ++epoch) {
        const bool is_last = epoch == base + 2;
        if (!is_last && (Mix(epoch, r) & 1) != 0) continue;
        std::latch entered(1);
        std::latch done(1);
        std::thread impatient([&] {  // The coordinator's next Configure.
          entered.wait();
          while (!is_last && !done.try_wait()) {
            for (uint64_t i = 0; i < Mix(epoch, r) % 500; ++i) std::this_thread::yield();
            factories_[r]->AbortCreate();
          }
        });
        entered.count_down();
        const absl::Status status = Create(shape, traffic, rank, epoch, Soon());
        done.count_down();
        impatient.join();
        EXPECT_TRUE(status.ok() || !is_last) << "epoch " << epoch << ": " << status;
      }
      if (exchange(rank) == nullptr) return;
      const absl::Status status = RunStep(shape, traffic, rank, exchange(rank), Soon());
      EXPECT_TRUE(status.ok()) << status;
    });
    ASSERT_FALSE(HasFailure());
  }
}

TEST_P(ExchangeTest, HundredsOfEpochsLeaveNothingBehind) {
  const CellShape shape{.num_ranks = 3, .max_rows = 4};
  const Traffic traffic = RandomTraffic(shape, {1, 2, 4}, 18);
  StartWorkers(3);
  const auto run = [&](uint64_t epoch) {
    CreateAll(shape, traffic, epoch);
    OnEachRank(3, [&](int32_t rank) {
      const absl::Status status = RunStep(shape, traffic, rank, exchange(rank), Soon());
      EXPECT_TRUE(status.ok()) << status;
    });
  };
  for (uint64_t epoch = 1; epoch <= 50; ++epoch) run(epoch);
  const int num_fds = CountEntries("/proc/self/fd");
  const int num_threads = CountEntries("/proc/self/task");
  const int64_t pages = ResidentPages();
  for (uint64_t epoch = 51; epoch <= 350 && !HasFailure(); ++epoch) run(epoch);
  EXPECT_EQ(CountEntries("/proc/self/fd"), num_fds);
  EXPECT_LE(AwaitThreads(num_threads), num_threads);
  EXPECT_LT(ResidentPages() - pages, kMaxPages);
}

}  // namespace
}  // namespace shoal
