// Seeded lives of a NCCL cell: epochs of random ranks, steps, errors at random calls, deaths inside
// groups, inits that never end, aborts from other threads at any moment, several of them at once.
// No hang, no call after an abort, no two calls at once in one communicator, and nothing left.
//
// SHOAL_SEEDS: how many (default 150; the long run takes 10,000). SHOAL_SEED: the first.
#include <algorithm>
#include <atomic>
#include <cstdio>
#include <cstdlib>
#include <string>
#include <thread>

#include "absl/strings/numbers.h"
#include "absl/time/clock.h"
#include "gtest/gtest.h"

#include "base/prng.h"
#include "tests/worker/nccl_cell.h"
#include "worker/exchange/exchange_shape.h"
#include "worker/exchange/host_stream.h"

namespace shoal {
namespace {

uint64_t FromEnvironment(const char* name, uint64_t otherwise) {
  uint64_t value = otherwise;
  if (const char* text = std::getenv(name); text != nullptr) {
    EXPECT_TRUE(absl::SimpleAtoi(text, &value)) << name;
  }
  return value;
}

struct Tally {
  int64_t epochs = 0;
  int64_t failed_creates = 0;
  int64_t steps = 0;
  int64_t slot_steps = 0;  // Of those
  int64_t failed_steps = 0;
};

// What goes wrong in one epoch: at the `at`-th call of a kind, counted over all ranks.
struct Fault {
  enum class Kind { kNone, kError, kDeath, kInitHangs, kSlowAbort };

  Kind kind = Kind::kNone;
  FakeCall call = FakeCall::kSend;
  int64_t at = 0;
  NcclResult result = NcclResult::kSystemError;
};

Fault DrawFault(Prng* prng) {
  constexpr FakeCall kCalls[] = {FakeCall::kGetUniqueId,
                                 FakeCall::kInit,
                                 FakeCall::kGetAsyncError,
                                 FakeCall::kGroupStart,
                                 FakeCall::kGroupEnd,
                                 FakeCall::kSend,
                                 FakeCall::kRecv};
  constexpr NcclResult kResults[] = {NcclResult::kUnhandledCudaError,
                                     NcclResult::kSystemError,
                                     NcclResult::kInternalError,
                                     NcclResult::kInvalidArgument,
                                     NcclResult::kInvalidUsage,
                                     NcclResult::kRemoteError};
  return {.kind = static_cast<Fault::Kind>(prng->Below(5)),
          .call = kCalls[prng->Below(std::size(kCalls))],
          .at = static_cast<int64_t>(prng->Below(60)),
          .result = kResults[prng->Below(std::size(kResults))]};
}

FakeHook HookOf(const Fault& fault, std::atomic<int64_t>* num_calls) {
  return [fault, num_calls](FakeCall call, int rank, NcclCommHandle comm) {
    switch (fault.kind) {
      case Fault::Kind::kNone:
        break;
      case Fault::Kind::kError:
        if (call == fault.call && (*num_calls)++ == fault.at) return fault.result;
        break;
      case Fault::Kind::kDeath:
        if (call == FakeCall::kSend && (*num_calls)++ == fault.at) DropFakeConnections(comm);
        break;
      case Fault::Kind::kInitHangs:
        if (call == FakeCall::kInit && rank == static_cast<int>(fault.at % 3)) {
          return NcclResult::kInProgress;
        }
        break;
      case Fault::Kind::kSlowAbort:
        if (call == FakeCall::kAbort) absl::SleepFor(absl::Milliseconds(fault.at % 5));
        break;
    }
    return NcclResult::kSuccess;
  };
}

class Life {
 public:
  explicit Life(uint64_t seed) : prng_(seed), cell_(3) {}

  void Run(Tally* tally) {
    const uint64_t epochs = 1 + prng_.Below(3);
    for (uint64_t epoch = 1; epoch <= epochs; ++epoch) {
      ++tally->epochs;
      RunEpoch(epoch, tally);
    }
    EXPECT_TRUE(cell_.deaths().empty()) << cell_.deaths()[0];
  }

 private:
  void RunEpoch(uint64_t epoch, Tally* tally) {
    const CellShape shape{.num_ranks = 3, .hidden = 16, .max_rows = 70};
    std::vector<int32_t> rows;
    for (int rank = 0; rank < 3; ++rank) {
      rows.push_back(static_cast<int32_t>(prng_.Chance(20) ? 70 : prng_.Below(6)));
    }
    const Traffic traffic = RandomTraffic(shape, rows, prng_.Next());
    std::atomic<int64_t> num_calls = 0;
    SetFakeHook(HookOf(DrawFault(&prng_), &num_calls));
    // Whoever misses a peer goes on at this time; most never wait for it.
    const absl::Duration patience = absl::Milliseconds(20 + prng_.Below(80));
    const uint64_t most_steps = prng_.Below(6);
    const bool is_aborted = prng_.Chance(50);
    const uint64_t moment = prng_.Below(3000);
    const uint64_t num_aborters = 1 + prng_.Below(3);
    const bool leaves_together = prng_.Chance(50);
    // Both ways of a small step, also by turns.
    const bool is_small = *std::ranges::max_element(rows) <= kMaxSlotRows;
    const uint64_t slots_every = is_small ? prng_.Below(4) : 0;

    std::atomic<bool> is_over = false;
    std::vector<std::thread> aborters;
    for (uint64_t i = 0; is_aborted && i < num_aborters; ++i) {
      aborters.emplace_back([&, i] {  // The links' threads: Abort, or the next Configure.
        for (uint64_t wait = 0; wait < moment * (i + 1) && !is_over; ++wait) {
          std::this_thread::yield();
        }
        const auto rank = static_cast<int32_t>(i);
        cell_.factory(rank)->AbortCreate();
        absl::MutexLock lock(&mutex_);
        if (exchanges_[i] != nullptr) exchanges_[i]->Abort(absl::AbortedError("asked"));
      });
    }
    std::atomic<int64_t> steps = 0, slot_steps = 0, failed_steps = 0, failed_creates = 0;
    OnEachRank(3, [&](int32_t rank) {
      const auto r = static_cast<size_t>(rank);
      absl::Status status = cell_.Create(shape, traffic, rank, epoch, absl::Now() + patience);
      if (!status.ok()) {
        ++failed_creates;
        return;
      }
      {
        absl::MutexLock lock(&mutex_);
        exchanges_[r] = cell_.exchange(rank);
      }
      for (uint64_t step = 0; status.ok() && step < most_steps; ++step) {
        NcclExchange* const exchange = cell_.exchange(rank);
        const absl::Time deadline = absl::Now() + patience;
        if (slots_every > 0 && step % slots_every == 0) {
          status = RunSlotStep(shape, traffic, rank, exchange, 2, deadline);
          if (status.ok()) ++slot_steps;
        } else {
          exchange->BeginStep(*std::ranges::max_element(rows));
          status = RunStep(shape, traffic, rank, exchange, deadline);
        }
        ++(status.ok() ? steps : failed_steps);
        EXPECT_FALSE(absl::IsDataLoss(status)) << status;
      }
      {
        absl::MutexLock lock(&mutex_);
        exchanges_[r] = nullptr;
      }
      if (!leaves_together || !status.ok()) cell_.Leave(rank);
    });
    is_over = true;
    for (std::thread& aborter : aborters) aborter.join();
    for (int32_t rank = 0; rank < 3; ++rank) cell_.Leave(rank);
    SetFakeHook(nullptr);
    tally->steps += steps;
    tally->slot_steps += slot_steps;
    tally->failed_steps += failed_steps;
    tally->failed_creates += failed_creates;
  }

  Prng prng_;
  NcclCell cell_;
  absl::Mutex mutex_;
  Exchange* exchanges_[3] ABSL_GUARDED_BY(mutex_) = {};
};

TEST(NcclSoakTest, NoScheduleHangsLeaksOrCallsAfterAnAbort) {
  const uint64_t first = FromEnvironment("SHOAL_SEED", 1);
  const uint64_t seeds = FromEnvironment("SHOAL_SEEDS", 150);
  const FakeCounts before = CountFake();
  Tally tally;
  absl::Duration longest;
  const absl::Time start = absl::Now();
  for (uint64_t seed = first; seed < first + seeds; ++seed) {
    SCOPED_TRACE(testing::Message() << "SHOAL_SEED=" << seed);
    const absl::Time began = absl::Now();
    Life(seed).Run(&tally);
    longest = std::max(longest, absl::Now() - began);
    const FakeCounts counts = CountFake();
    EXPECT_EQ(counts.comms, 0);
    EXPECT_EQ(counts.threads, 0);
    EXPECT_EQ(counts.sockets, 0);
    EXPECT_EQ(counts.calls_after_abort, before.calls_after_abort);
    EXPECT_EQ(counts.overlapping_calls, before.overlapping_calls);
    EXPECT_EQ(counts.open_groups, before.open_groups);
    EXPECT_EQ(CountHostStreams().streams, 0);
    EXPECT_EQ(CountHostStreams().buffers, 0);
    ASSERT_FALSE(testing::Test::HasFailure());
  }
  std::printf(
      "%llu schedules: %lld epochs, %lld creates and %lld steps failed, %lld steps done, "
      "%lld of them in slots, %lld aborts; longest %.2f s, all %.1f s\n",
      static_cast<unsigned long long>(seeds),
      static_cast<long long>(tally.epochs),
      static_cast<long long>(tally.failed_creates),
      static_cast<long long>(tally.failed_steps),
      static_cast<long long>(tally.steps),
      static_cast<long long>(tally.slot_steps),
      static_cast<long long>(CountFake().aborts - before.aborts),
      absl::ToDoubleSeconds(longest),
      absl::ToDoubleSeconds(absl::Now() - start));
  EXPECT_GT(tally.steps, 0);
  EXPECT_GT(tally.slot_steps, 0);
}

}  // namespace
}  // namespace shoal
