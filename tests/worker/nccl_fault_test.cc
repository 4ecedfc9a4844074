// The NCCL exchange against a library that fails in every way it can: each fault ends in an error
// by its deadline, the communicator is aborted once and left alone, and the next epoch works.
#include <atomic>
#include <string>
#include <thread>

#include "absl/synchronization/notification.h"
#include "absl/time/clock.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"

#include "base/status_macros.h"
#include "tests/worker/nccl_cell.h"
#include "worker/exchange/host_stream.h"
#include "worker/exchange/suspects.h"

namespace shoal {
namespace {

using testing::HasSubstr;
using testing::IsEmpty;

absl::Time Soon() {
  return absl::Now() + absl::Seconds(30);
}

class NcclFaultTest : public testing::Test {
 protected:
  ~NcclFaultTest() override {
    SetFakeHook(nullptr);
    const FakeCounts counts = CountFake();
    EXPECT_EQ(counts.comms, 0);
    EXPECT_EQ(counts.threads, 0);
    EXPECT_EQ(counts.sockets, 0);
    EXPECT_EQ(counts.calls_after_abort, before_.calls_after_abort);
    EXPECT_EQ(counts.overlapping_calls, before_.overlapping_calls);
    EXPECT_EQ(counts.open_groups, before_.open_groups);
    EXPECT_EQ(CountHostStreams().buffers, 0);
    EXPECT_EQ(CountHostStreams().streams, 0);
  }

  // One by the host's route, one in slots.
  absl::Status Steps(int32_t rank, Exchange* exchange, absl::Duration deadline) {
    exchange->BeginStep(shape_.max_rows);
    RETURN_IF_ERROR(RunStep(shape_, traffic_, rank, exchange, absl::Now() + deadline));
    return RunSlotStep(shape_, few_, rank, exchange, 2, absl::Now() + deadline);
  }

  // All ranks step until one fails; the statuses.
  std::vector<absl::Status> StepUntilError(NcclCell* cell, absl::Duration step_deadline) {
    std::vector<absl::Status> statuses(static_cast<size_t>(shape_.num_ranks));
    OnEachRank(shape_.num_ranks, [&](int32_t rank) {
      absl::Status& status = statuses[static_cast<size_t>(rank)];
      for (int step = 0; status.ok() && step < 50; ++step) {
        status = Steps(rank, cell->exchange(rank), step_deadline);
      }
    });
    return statuses;
  }

  void ExpectTheNextEpochWorks(NcclCell* cell, uint64_t epoch) {
    SetFakeHook(nullptr);
    const absl::Status created = cell->CreateAll(shape_, traffic_, epoch);
    ASSERT_TRUE(created.ok()) << created;
    OnEachRank(shape_.num_ranks, [&](int32_t rank) {
      const absl::Status status = Steps(rank, cell->exchange(rank), absl::Seconds(30));
      EXPECT_TRUE(status.ok()) << status;
    });
  }

  const FakeCounts before_ = CountFake();
  const CellShape shape_{.num_ranks = 3, .max_rows = 80};
  const Traffic traffic_ = RandomTraffic(shape_, {2, 80, 5}, 1);
  // Small enough for slots, with the same placement: it is drawn first.
  const Traffic few_ = RandomTraffic(shape_, {2, 0, 5}, 1);
};

TEST_F(NcclFaultTest, AnErrorAtEveryCallEndsTheEpochAndNotTheNext) {
  uint64_t epoch = 0;
  for (const FakeCall faulty : {FakeCall::kGetUniqueId,
                                FakeCall::kInit,
                                FakeCall::kGetAsyncError,
                                FakeCall::kGroupStart,
                                FakeCall::kSend,
                                FakeCall::kRecv,
                                FakeCall::kGroupEnd}) {
    for (const int at : {0, 1, 5}) {
      SCOPED_TRACE(testing::Message() << "call " << static_cast<int>(faulty) << " at " << at);
      NcclCell cell(3);
      std::atomic<int> countdown = at;
      SetFakeHook([&](FakeCall call, int, NcclCommHandle) {
        if (call != faulty || countdown-- != 0) return NcclResult::kSuccess;
        return NcclResult::kSystemError;
      });
      std::vector<absl::Status> statuses(3);
      OnEachRank(3, [&](int32_t rank) {
        absl::Status& status = statuses[static_cast<size_t>(rank)];
        // A rank may fail to come: the others wait for it until their deadline.
        status =
            cell.Create(shape_, traffic_, rank, epoch + 1, absl::Now() + absl::Milliseconds(300));
        for (int i = 0; status.ok() && i < 10; ++i) {
          status = Steps(rank, cell.exchange(rank), absl::Milliseconds(300));
        }
        // As a worker does with the first error.
        if (!status.ok()) cell.Leave(rank);
      });
      const bool has_met = countdown < 0;  // Rarely called functions do not get to 5.
      for (const absl::Status& status : statuses) EXPECT_EQ(!status.ok(), has_met) << status;
      ExpectTheNextEpochWorks(&cell, epoch += 2);
      EXPECT_THAT(cell.deaths(), IsEmpty());
    }
  }
}

TEST_F(NcclFaultTest, AnInitThatNeverEndsCostsItsDeadline) {
  NcclCell cell(3);
  SetFakeHook([](FakeCall call, int rank, NcclCommHandle) {
    const bool hangs = call == FakeCall::kInit && rank == 1;
    return hangs ? NcclResult::kInProgress : NcclResult::kSuccess;
  });
  const absl::Time start = absl::Now();
  OnEachRank(3, [&](int32_t rank) {
    const absl::Status status =
        cell.Create(shape_, traffic_, rank, 1, start + absl::Milliseconds(200));
    EXPECT_EQ(status.code(), absl::StatusCode::kDeadlineExceeded) << status;
    EXPECT_THAT(std::string(status.message()),
                HasSubstr("the NCCL communicator of epoch 1 of cell 3"));
  });
  EXPECT_GE(absl::Now() - start, absl::Milliseconds(199));
  ExpectTheNextEpochWorks(&cell, 2);
  EXPECT_THAT(cell.deaths(), IsEmpty());
}

TEST_F(NcclFaultTest, AUniqueIdThatNeverArrivesCostsItsDeadlineAndIsNamed) {
  NcclCell cell(3);
  cell.SetHandsOn(false);
  OnEachRank(3, [&](int32_t rank) {
    const absl::Status status =
        cell.Create(shape_, traffic_, rank, 1, absl::Now() + absl::Milliseconds(150));
    EXPECT_EQ(status.code(), absl::StatusCode::kDeadlineExceeded) << status;
    if (rank == 0) return;
    EXPECT_THAT(std::string(status.message()),
                HasSubstr("the NCCL unique id of epoch 1 did not come from rank 0 (worker 0)"));
    EXPECT_EQ(SuspectsOf(status), std::vector<Rank>{Rank{0}});
  });
  cell.SetHandsOn(true);
  ExpectTheNextEpochWorks(&cell, 2);
}

TEST_F(NcclFaultTest, PeersWithAnotherVersionAreRefusedBeforeNcclIsAsked) {
  NcclCell cell(3, {22809, 22907, 22809});
  OnEachRank(3, [&](int32_t rank) {
    const absl::Status status = cell.Create(shape_, traffic_, rank, 1, Soon());
    EXPECT_EQ(status.code(), absl::StatusCode::kFailedPrecondition) << status;
    EXPECT_THAT(std::string(status.message()),
                HasSubstr("rank 0 (worker 0) has 2.28.9, rank 1 (worker 1) has 2.29.7"));
    EXPECT_EQ(SuspectsOf(status), std::vector<Rank>{Rank{1}});
  });
  EXPECT_EQ(CountFake().comms, 0);
}

// The ranks meet, then nothing that they send arrives any more.
TEST_F(NcclFaultTest, AFirewallAfterTheMeetingIsGuessedAndTheEpochMovesOn) {
  NcclCell cell(3);
  SetFakeHook([](FakeCall call, int, NcclCommHandle) {
    return call == FakeCall::kGroupEnd ? NcclResult::kInProgress : NcclResult::kSuccess;
  });
  OnEachRank(3, [&](int32_t rank) {
    const absl::Status status =
        cell.Create(shape_, traffic_, rank, 1, absl::Now() + absl::Milliseconds(200));
    // Who gives up first breaks the others' connections.
    if (absl::IsUnavailable(status)) return;
    EXPECT_EQ(status.code(), absl::StatusCode::kDeadlineExceeded) << status;
    EXPECT_THAT(std::string(status.message()), HasSubstr("a firewall that drops"));
  });
  SetFakeHook(nullptr);
  ASSERT_TRUE(cell.CreateAll(shape_, traffic_, 2).ok());
  SetFakeHook([](FakeCall call, int, NcclCommHandle) {
    return call == FakeCall::kGroupEnd ? NcclResult::kInProgress : NcclResult::kSuccess;
  });
  for (const absl::Status& status : StepUntilError(&cell, absl::Milliseconds(200))) {
    EXPECT_TRUE(absl::IsDeadlineExceeded(status) || absl::IsUnavailable(status)) << status;
  }
  ExpectTheNextEpochWorks(&cell, 3);
}

TEST_F(NcclFaultTest, AsynchronousErrorsEndTheStepOfAllRanks) {
  NcclCell cell(3);
  ASSERT_TRUE(cell.CreateAll(shape_, traffic_, 1).ok());
  std::atomic<int> countdown = 20;
  SetFakeHook([&](FakeCall call, int rank, NcclCommHandle) {
    const bool fails = call == FakeCall::kGetAsyncError && rank == 1 && countdown-- <= 0;
    return fails ? NcclResult::kRemoteError : NcclResult::kSuccess;
  });
  // Rank 1 is aborted with the error; the others see its end of their connections close.
  for (const absl::Status& status : StepUntilError(&cell, absl::Seconds(20))) {
    EXPECT_EQ(status.code(), absl::StatusCode::kUnavailable) << status;
    EXPECT_THAT(std::string(status.message()), HasSubstr("remote process exited"));
  }
  ExpectTheNextEpochWorks(&cell, 2);
}

TEST_F(NcclFaultTest, APeerThatDiesInsideAGroupEndsTheStepOfTheOthers) {
  NcclCell cell(3);
  ASSERT_TRUE(cell.CreateAll(shape_, traffic_, 1).ok());
  std::atomic<int> countdown = 7;
  SetFakeHook([&](FakeCall call, int rank, NcclCommHandle comm) {
    if (call == FakeCall::kSend && rank == 2 && countdown-- == 0) DropFakeConnections(comm);
    return NcclResult::kSuccess;
  });
  for (const absl::Status& status : StepUntilError(&cell, absl::Seconds(20))) {
    EXPECT_EQ(status.code(), absl::StatusCode::kUnavailable) << status;
  }
  ExpectTheNextEpochWorks(&cell, 2);
}

// Whoever asks for the abort goes on at once, and so does the step thread, though ncclCommAbort
// takes its time.
TEST_F(NcclFaultTest, AnAbortThatIsSlowBlocksNobodyButTheNextEpoch) {
  NcclCell cell(3);
  ASSERT_TRUE(cell.CreateAll(shape_, traffic_, 1).ok());
  absl::Notification may_end;
  SetFakeHook([&](FakeCall call, int, NcclCommHandle) {
    if (call == FakeCall::kAbort) may_end.WaitForNotification();
    return NcclResult::kSuccess;
  });
  std::thread stepping([&] {
    for (const absl::Status& status : StepUntilError(&cell, absl::Seconds(20))) {
      EXPECT_EQ(status, absl::AbortedError("epoch 2 begins"));
    }
  });
  const absl::Time start = absl::Now();
  for (int32_t rank = 0; rank < 3; ++rank) {
    cell.exchange(rank)->Abort(absl::AbortedError("epoch 2 begins"));
    EXPECT_EQ(cell.exchange(rank)->Health(), absl::AbortedError("epoch 2 begins"));
  }
  stepping.join();
  EXPECT_LT(absl::Now() - start, absl::Seconds(5));
  may_end.Notify();
  ExpectTheNextEpochWorks(&cell, 2);
  EXPECT_THAT(cell.deaths(), IsEmpty());
}

// The one fault that a process does not survive. Here it is told so, instead of being ended.
TEST_F(NcclFaultTest, AnAbortThatNeverEndsEndsTheProcessWithItsName) {
  NcclCell cell(3);
  ASSERT_TRUE(cell.CreateAll(shape_, traffic_, 1).ok());
  SetFakeHook([&](FakeCall call, int rank, NcclCommHandle) {
    if (call != FakeCall::kAbort || rank != 1) return NcclResult::kSuccess;
    while (cell.deaths().empty()) absl::SleepFor(absl::Milliseconds(10));
    return NcclResult::kSuccess;
  });
  const absl::Time start = absl::Now();
  cell.Leave(1);
  EXPECT_GE(absl::Now() - start, NcclCell::kAbortPatience);
  ASSERT_EQ(cell.deaths().size(), 1u);
  EXPECT_EQ(cell.deaths()[0], "ncclCommAbort of epoch 1 of cell 3 did not come back in time");
  cell.Leave(0);
  cell.Leave(2);
}

// Sequence numbers differ on both sides then, and both refuse what they computed.
TEST_F(NcclFaultTest, RanksThatAreNotInTheSameRoundOfSlotsBothFindOut) {
  NcclCell cell(3);
  ASSERT_TRUE(cell.CreateAll(shape_, traffic_, 1).ok());
  ++cell.exchange(1)->slots()->guard()->seq;  // It believes that it was in one more
  OnEachRank(3, [&](int32_t rank) {
    const absl::Status status = RunSlotStep(shape_, few_, rank, cell.exchange(rank), 1, Soon());
    // What comes home is undefined, and its check may come first; a worker has Settle.
    const absl::Status settled =
        absl::IsDataLoss(status) ? cell.exchange(rank)->slots()->Settle(Soon()) : status;
    EXPECT_EQ(settled.code(), absl::StatusCode::kFailedPrecondition) << settled;
    EXPECT_THAT(std::string(settled.message()), HasSubstr("was not of its round"));
    EXPECT_EQ(SuspectsOf(settled), std::vector<Rank>{Rank{rank == 1 ? 0 : 1}});
  });
  ExpectTheNextEpochWorks(&cell, 2);
}

}  // namespace
}  // namespace shoal
