// The table of messages (docs/step_protocol.md) on the real Worker: real model, real loader, and an
// exchange that the test holds in its hand.
#include "worker/worker.h"

#include <string>
#include <utility>
#include <vector>

#include "absl/time/clock.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"

#include "tests/worker/worker_rig.h"
#include "worker/exchange/suspects.h"

namespace shoal {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;

TEST_F(WorkerTest, EnrolsWithWhatACellMustAgreeOn) {
  const Enrol enrol = worker_->enrol();
  EXPECT_EQ(enrol.worker, WorkerId{5});
  EXPECT_EQ(enrol.incarnation, Incarnation{77});
  EXPECT_EQ(enrol.numerics.version, "1.2.3");
  EXPECT_EQ(enrol.numerics.backend, "cpu");
  EXPECT_EQ(enrol.numerics.checkpoint_digest, source_.digest());
  EXPECT_EQ(enrol.numerics.numerics_version, kNumericsVersion);
  EXPECT_EQ(enrol.exchange_endpoint, "scripted:1");
  EXPECT_EQ(enrol.num_experts, 8);
  EXPECT_EQ(enrol.num_layers, 4);
  EXPECT_EQ(enrol.dense_bytes, dense_->bytes());
  EXPECT_GT(enrol.expert_bytes, 0);
}

TEST_F(WorkerTest, LoadedExpertsComeWithTheBlocksThatFitBesideThem) {
  Tell(LoadExperts{.term = term_, .cell = kCell, .placement_version = 9, .experts = Experts(2, 5)});
  const ExpertsLoaded loaded = Hear<ExpertsLoaded>();
  EXPECT_TRUE(loaded.status.ok());
  EXPECT_EQ(loaded.cell, kCell);
  EXPECT_EQ(loaded.placement_version, 9u);
  EXPECT_EQ(loaded.num_full_blocks, 32);  // 1,000 tokens
  EXPECT_EQ(loaded.num_window_blocks, 32);
  EXPECT_GE(worker_->beat().resident_bytes, 3 * worker_->enrol().expert_bytes);
}

// Without kv_tokens the blocks are what the memory leaves; and they stay as many when a rank takes
// over experts of a lost one, since with fewer all K/V would begin anew.
TEST_F(WorkerTest, BlocksStayAsManyWhenExpertsOfALostRankAreAdded) {
  WorkerOptions options{.id = WorkerId{6}, .incarnation = Incarnation{78}};
  options.memory_bytes = int64_t{400} << 20;
  MakeWorker(options);
  const auto load = [this](int end) {
    Tell(LoadExperts{.term = term_, .cell = kCell, .experts = Experts(0, end)});
    return Hear<ExpertsLoaded>();
  };
  const ExpertsLoaded first = load(4);
  const ExpertsLoaded second = load(6);
  EXPECT_TRUE(second.status.ok());
  EXPECT_GT(first.num_full_blocks, first.num_window_blocks);
  EXPECT_EQ(second.num_full_blocks, first.num_full_blocks);
  EXPECT_EQ(second.num_window_blocks, first.num_window_blocks);
  const int64_t kv = first.num_full_blocks * FullBlockBytes(source_.config()) +
                     first.num_window_blocks * WindowBlockBytes(source_.config());
  const int64_t weights = worker_->beat().resident_bytes;
  EXPECT_LT(kv + weights, options.memory_bytes);
  EXPECT_GT(kv, options.memory_bytes / 4);
}

TEST_F(WorkerTest, TooLittleMemoryIsToldInBytes) {
  WorkerOptions options{.id = WorkerId{6}, .incarnation = Incarnation{78}};
  options.memory_bytes = 1'000'000;
  MakeWorker(options);
  Tell(LoadExperts{.term = term_, .cell = kCell, .experts = Experts(0, 8)});
  const ExpertsLoaded loaded = Hear<ExpertsLoaded>();
  EXPECT_EQ(loaded.status.code(), absl::StatusCode::kResourceExhausted);
  EXPECT_THAT(std::string(loaded.status.message()), HasSubstr("are missing"));
}

TEST_F(WorkerTest, ImpossibleExpertsAreRefused) {
  for (const std::vector<ExpertId>& experts : {std::vector<ExpertId>{ExpertId{8}},
                                               std::vector<ExpertId>{ExpertId{-1}},
                                               std::vector<ExpertId>{ExpertId{2}, ExpertId{1}},
                                               std::vector<ExpertId>{ExpertId{2}, ExpertId{2}}}) {
    Tell(LoadExperts{.term = term_, .cell = kCell, .experts = experts});
    EXPECT_EQ(Hear<ExpertsLoaded>().status.code(), absl::StatusCode::kInvalidArgument);
  }
}

TEST_F(WorkerTest, APlanIsRunAndItsTokenKept) {
  EnterAlone();
  Keep();
  Tell(Plan(1, 1, 0, 12));
  const StepResult result = Hear<StepResult>();
  ASSERT_TRUE(result.status.ok()) << result.status;
  EXPECT_EQ(result.term, term_);
  EXPECT_EQ(result.cell, kCell);
  EXPECT_EQ(result.epoch, Epoch{1});
  EXPECT_EQ(result.step, StepId{1});
  ASSERT_EQ(result.tokens.size(), 1u);
  EXPECT_EQ(result.tokens[0].sequence, kSequence);
  EXPECT_EQ(result.tokens[0].position, 12);
  EXPECT_EQ(result.tokens[0].token, TokenId{92});  // Spec 8.6
  // The next plan names the token that has just been kept.
  Tell(Plan(1, 2, 12, 1));
  EXPECT_TRUE(Hear<StepResult>().status.ok());
}

TEST_F(WorkerTest, TwoPlansMayLeaveBeforeTheFirstAnswer) {
  EnterAlone();
  Keep();
  Tell(Plan(1, 1, 0, 12));
  Tell(Plan(1, 2, 12, 1));
  EXPECT_EQ(Hear<StepResult>().tokens.at(0).position, 12);
  EXPECT_EQ(Hear<StepResult>().tokens.at(0).position, 13);
}

TEST_F(WorkerTest, ARepeatedPlanGetsTheStoredResult) {
  EnterAlone();
  Keep();
  Tell(Plan(1, 1, 0, 12));
  const StepResult first = Hear<StepResult>();
  Tell(Plan(1, 1, 0, 12));
  const StepResult again = Hear<StepResult>();
  EXPECT_EQ(again.tokens, first.tokens);
  EXPECT_EQ(again.compute_us, first.compute_us);  // Not computed again
}

TEST_F(WorkerTest, GapsAndOldStepsAreRefused) {
  EnterAlone();
  Tell(Plan(1, 2));
  EXPECT_EQ(Hear<Refusal>().reason.code(), absl::StatusCode::kFailedPrecondition);
  Tell(Plan(1, 1));
  EXPECT_TRUE(Hear<StepResult>().status.ok());
  Tell(Plan(1, 2));
  EXPECT_TRUE(Hear<StepResult>().status.ok());
  Tell(Plan(1, 1));
  const Refusal refusal = Hear<Refusal>();
  EXPECT_EQ(refusal.reason.code(), absl::StatusCode::kAborted);
  EXPECT_EQ(refusal.step, StepId{3});
}

TEST_F(WorkerTest, OtherEpochsAreRefused) {
  EnterAlone(5);
  Tell(Plan(4, 1));
  EXPECT_EQ(Hear<Refusal>().reason.code(), absl::StatusCode::kAborted);
  Tell(Plan(6, 1));
  EXPECT_EQ(Hear<Refusal>().epoch, Epoch{5});
  Tell(MakeConfigure(5, 1, 8, 1));
  EXPECT_EQ(Hear<Refusal>().reason.code(), absl::StatusCode::kAborted);
}

TEST_F(WorkerTest, ALowerTermIsRefusedWithTheHigherOne) {
  EnterAlone();
  term_ = Term{3};
  const std::vector<ToWorker> messages = {Plan(1, 1),
                                          MakeConfigure(2, 1, 8, 1),
                                          Abort{.term = term_, .cell = kCell, .epoch = Epoch{1}},
                                          LoadExperts{.term = term_, .cell = kCell},
                                          KeepRecord{.term = term_, .sequence = kSequence},
                                          Welcome{.term = term_}};
  for (const ToWorker& message : messages) {
    Tell(message);
    const Refusal refusal = Hear<Refusal>();
    EXPECT_EQ(refusal.reason.code(), absl::StatusCode::kAborted) << message.index();
    EXPECT_EQ(refusal.term, Term{4});
  }
  // None of them ended the epoch.
  term_ = Term{4};
  Tell(Plan(1, 1));
  EXPECT_TRUE(Hear<StepResult>().status.ok());
}

TEST_F(WorkerTest, AHigherTermIsRemembered) {
  Tell(Welcome{.term = Term{9}});
  Tell(Welcome{.term = Term{8}});
  EXPECT_EQ(Hear<Refusal>().term, Term{9});
  EXPECT_EQ(worker_->enrol().highest_term, Term{9});
  EXPECT_EQ(worker_->beat().highest_term, Term{9});
}

// Its link was dialled again: it is a new member, to which every record comes anew.
TEST_F(WorkerTest, AWelcomeEndsTheEpochAndForgetsRecords) {
  EnterAlone();
  Keep(12);
  Tell(Plan(1, 1, 0, 12));
  EXPECT_TRUE(Hear<StepResult>().status.ok());
  EXPECT_EQ(worker_->beat().kv_full_blocks_used, 1);

  Tell(Welcome{.term = term_});
  Tell(Plan(1, 2));
  EXPECT_EQ(Hear<Refusal>().reason.code(), absl::StatusCode::kAborted);
  EXPECT_EQ(worker_->beat().kv_full_blocks_used, 0);

  Keep(3);  // The one before would refuse it: it has another prompt length.
  EnterAlone(2, 2);
  Tell(Plan(2, 2, 0, 3));
  EXPECT_TRUE(Hear<StepResult>().status.ok());
}

TEST_F(WorkerTest, AnEpochNeedsItsExperts) {
  Load(0, 4);
  Tell(MakeConfigure(1, 1, 8, 1));
  const Ready ready = Hear<Ready>();
  EXPECT_EQ(ready.status.code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_THAT(std::string(ready.status.message()), HasSubstr("expert 4"));
  Tell(Plan(1, 1));
  EXPECT_EQ(Hear<Refusal>().reason.code(), absl::StatusCode::kAborted);
}

TEST_F(WorkerTest, ImpossibleMembershipsAreRefused) {
  Load(0, 8);
  uint64_t epoch = 1;
  const auto expect_refusal = [&](const auto& change) {
    Configure configure = MakeConfigure(epoch++, 2, 8, 1);
    change(&configure);
    Tell(configure);
    EXPECT_EQ(Hear<Ready>().status.code(), absl::StatusCode::kInvalidArgument) << epoch - 1;
  };
  expect_refusal([](Configure* c) { c->rank = Rank{2}; });
  expect_refusal([](Configure* c) { c->rank = Rank{-1}; });
  expect_refusal([](Configure* c) { c->placement.pop_back(); });
  expect_refusal([](Configure* c) { c->placement[3].clear(); });
  expect_refusal([](Configure* c) { c->placement[3] = {Rank{2}}; });
  expect_refusal([](Configure* c) { c->max_rows = 0; });
  expect_refusal([](Configure* c) { c->num_full_blocks = 0; });
  expect_refusal([](Configure* c) { c->num_window_blocks = -1; });
  expect_refusal([](Configure* c) { c->num_full_blocks = kMaxBlocks + 1; });
}

TEST_F(WorkerTest, ABadPlanIsAnErrorAndEndsTheEpoch) {
  EnterAlone();
  Keep(3);
  Tell(Plan(1, 1, 0, 12));
  const StepResult result = Hear<StepResult>();
  EXPECT_EQ(result.status.code(), absl::StatusCode::kFailedPrecondition);
  Tell(Plan(1, 2));
  EXPECT_EQ(Hear<Refusal>().reason.code(), absl::StatusCode::kAborted);
  EnterAlone(2, 2);
}

// The step's error says what the device said; the process that owns the worker ends for it, and the
// coordinator goes on elsewhere.
TEST_F(WorkerTest, AFailedDeviceEndsTheStepAndStaysTheWorkersFault) {
  EnterAlone();
  Keep();
  EXPECT_TRUE(worker_->fault().ok());
  device_.FailWith("GPU 0: uncorrectable ECC error");

  Tell(Plan(1, 1, 0, 12));

  const auto result = Hear<StepResult>();
  EXPECT_EQ(result.status.code(), absl::StatusCode::kUnavailable);
  EXPECT_THAT(std::string(result.status.message()), HasSubstr("uncorrectable ECC error"));
  EXPECT_TRUE(result.tokens.empty());
  EXPECT_EQ(worker_->fault(), result.status);
}

// Somebody else took the GPU's memory between the plan and the epoch: an error with the bytes, for
// the coordinator to act on, and no fault of the device.
TEST_F(WorkerTest, ADeviceThatHasLessThanWasPlannedSaysSoAndTheWorkerLivesOn) {
  Load(0, 8);
  const int64_t kv = 8 * (FullBlockBytes(source_.config()) + WindowBlockBytes(source_.config()));
  device_.LeaveFree(kv - 1);

  Tell(MakeConfigure(1, 1, 8, 1));

  const auto ready = Hear<Ready>();
  EXPECT_EQ(ready.status.code(), absl::StatusCode::kResourceExhausted);
  EXPECT_THAT(std::string(ready.status.message()), HasSubstr(std::to_string(kv) + " bytes of K/V"));
  EXPECT_TRUE(worker_->fault().ok());

  device_.LeaveFree(int64_t{1} << 30);
  Tell(MakeConfigure(2, 1, 8, 1));
  EXPECT_TRUE(Hear<Ready>().status.ok());
}

TEST_F(WorkerTest, RowsThatCannotTravelAllowOnlyACellOfOne) {
  MakeWorker({.id = WorkerId{5},
              .memory_bytes = int64_t{1} << 30,
              .dense_bytes = dense_->bytes(),
              .exchanges_rows = false,
              .kv_tokens = 1000});
  EnterAlone();
  Tell(MakeConfigure(2, 2, 8, 1));

  const Ready ready = Hear<Ready>();
  EXPECT_EQ(ready.status.code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_THAT(std::string(ready.status.message()), HasSubstr("a cell of 2 ranks"));
}

TEST_F(WorkerTest, AnExchangeErrorNamesSuspectsAndEndsTheEpoch) {
  script_.dispatch = absl::UnavailableError("rank 1 is gone");
  EnterTogether();
  Tell(Plan(1, 1));
  const StepResult result = Hear<StepResult>();
  EXPECT_EQ(result.status.code(), absl::StatusCode::kUnavailable);
  EXPECT_THAT(result.suspects, ElementsAre(Rank{1}));
  EXPECT_EQ(result.wait_us, 5);
  {
    absl::MutexLock lock(&script_.mutex);
    EXPECT_EQ(script_.num_alive, 0);  // The peers see our end of it close
  }
  Tell(Plan(1, 2));
  EXPECT_EQ(Hear<Refusal>().reason.code(), absl::StatusCode::kAborted);
}

TEST_F(WorkerTest, AbortReachesABlockedStep) {
  script_.dispatch_blocks = true;
  EnterTogether();
  Tell(Plan(1, 1));
  script_.AwaitBlocked();
  EXPECT_EQ(worker_->beat().phase, "stepping");
  Tell(Abort{.term = term_, .cell = kCell, .epoch = Epoch{1}});
  EXPECT_EQ(Hear<StepResult>().status.code(), absl::StatusCode::kAborted);
  // The Abort itself finds the epoch left, and needs no answer.
  Tell(Plan(1, 2));
  EXPECT_EQ(Hear<Refusal>().reason.code(), absl::StatusCode::kAborted);
}

TEST_F(WorkerTest, AbortOfAnotherEpochOrCellDoesNot) {
  script_.dispatch_blocks = true;
  EnterTogether(7);
  StepPlan plan = Plan(7, 1);
  plan.deadline_ms = 50;
  Tell(plan);
  Tell(Abort{.term = term_, .cell = kCell, .epoch = Epoch{6}});
  Tell(Abort{.term = term_, .cell = CellId{1}, .epoch = Epoch{7}});
  EXPECT_EQ(Hear<StepResult>().status.code(), absl::StatusCode::kDeadlineExceeded);
}

TEST_F(WorkerTest, TheNextEpochReachesABlockedStep) {
  script_.dispatch_blocks = true;
  EnterTogether();
  Tell(Plan(1, 1));
  script_.AwaitBlocked();
  Tell(MakeConfigure(2, 1, 8, 2));
  EXPECT_EQ(Hear<StepResult>().status.code(), absl::StatusCode::kAborted);
  EXPECT_TRUE(Hear<Ready>().status.ok());
  Tell(Plan(2, 2));
  EXPECT_TRUE(Hear<StepResult>().status.ok());
}

TEST_F(WorkerTest, AbortReachesTheMakingOfAnExchange) {
  Load(0, 8);
  script_.create_blocks = true;
  Tell(MakeConfigure(1, 2, 8, 1));
  script_.AwaitBlocked();
  Tell(Abort{.term = term_, .cell = kCell, .epoch = Epoch{1}});
  EXPECT_EQ(Hear<Ready>().status.code(), absl::StatusCode::kAborted);
}

TEST_F(WorkerTest, ABootstrapReachesTheExchangeThatWaitsForIt) {
  Load(0, 8);
  script_.create_blocks = true;
  Tell(MakeConfigure(1, 2, 8, 1));
  script_.AwaitBlocked();  // The step thread handles no message now
  Tell(Bootstrap{.term = term_, .cell = kCell, .epoch = Epoch{1}, .id = "right"});
  Tell(Bootstrap{.term = Term{3}, .cell = kCell, .epoch = Epoch{1}, .id = "of an old leader"});
  {
    absl::MutexLock lock(&script_.mutex);
    ASSERT_EQ(script_.bootstraps.size(), 1u);
    EXPECT_EQ(script_.bootstraps[0].id, "right");
  }
  Tell(Abort{.term = term_, .cell = kCell, .epoch = Epoch{1}});
  EXPECT_EQ(Hear<Ready>().status.code(), absl::StatusCode::kAborted);
  EXPECT_EQ(Hear<Refusal>().reason.code(), absl::StatusCode::kAborted);
}

TEST_F(WorkerTest, WhatRankZeroMakesForTheOthersGoesToTheCoordinator) {
  Load(0, 8);
  script_.publishes = "unique id";
  Tell(MakeConfigure(1, 2, 8, 1));
  const Bootstrap wanted{.term = term_, .cell = kCell, .epoch = Epoch{1}, .id = "unique id"};
  EXPECT_EQ(Hear<Bootstrap>(), wanted);
  EXPECT_TRUE(Hear<Ready>().status.ok());
}

TEST_F(WorkerTest, AnEpochThatEndedBeforeItBeganIsNotBuilt) {
  script_.dispatch_blocks = true;
  EnterTogether();
  Tell(Plan(1, 1));
  script_.AwaitBlocked();
  Tell(MakeConfigure(2, 2, 8, 2));  // Wakes the step thread; all three may be waiting by then
  Tell(Abort{.term = term_, .cell = kCell, .epoch = Epoch{2}});
  Tell(MakeConfigure(3, 2, 8, 2));
  EXPECT_EQ(Hear<StepResult>().status.code(), absl::StatusCode::kAborted);
  const Ready second = Hear<Ready>();
  EXPECT_EQ(second.epoch, Epoch{2});
  const Ready third = Hear<Ready>();
  EXPECT_EQ(third.epoch, Epoch{3});
  EXPECT_TRUE(third.status.ok());
}

TEST_F(WorkerTest, AFailedCreationNamesItsSuspects) {
  Load(0, 8);
  const std::vector<Rank> suspects = {Rank{1}};
  script_.create = WithSuspects(absl::UnavailableError("rank 1 does not answer"), suspects);
  Tell(MakeConfigure(1, 2, 8, 1));
  const Ready ready = Hear<Ready>();
  EXPECT_EQ(ready.status.code(), absl::StatusCode::kUnavailable);
  EXPECT_THAT(ready.suspects, ElementsAre(Rank{1}));
}

TEST_F(WorkerTest, RecordsThatDisagreeAreRefused) {
  EnterAlone();
  Keep();
  Keep();  // The same again is harmless
  KeepRecord other{.term = term_, .sequence = kSequence, .index = 11, .tokens = {TokenId{1}}};
  Tell(other);
  EXPECT_EQ(Hear<Refusal>().reason.code(), absl::StatusCode::kDataLoss);
  other.index = 20;
  Tell(other);
  EXPECT_EQ(Hear<Refusal>().reason.code(), absl::StatusCode::kFailedPrecondition);
}

TEST_F(WorkerTest, ForgottenRecordsAreGone) {
  EnterAlone();
  Keep();
  Tell(Plan(1, 1, 0, 12));
  EXPECT_TRUE(Hear<StepResult>().status.ok());
  EXPECT_EQ(worker_->beat().kv_full_blocks_used, 1);
  StepPlan plan = Plan(1, 2);
  plan.forget = {kSequence, SequenceId{99}};
  Tell(plan);
  EXPECT_TRUE(Hear<StepResult>().status.ok());
  Tell(Plan(1, 3, 12, 1));
  EXPECT_EQ(Hear<StepResult>().status.code(), absl::StatusCode::kFailedPrecondition);
}

// A rank whose peers were lost goes on with the K/V it has.
TEST_F(WorkerTest, CachedPositionsSurviveAnEpoch) {
  EnterAlone();
  Keep();
  Tell(Plan(1, 1, 0, 12));
  Hear<StepResult>();
  Tell(Plan(1, 2, 12, 1));
  const TokenId expected = Hear<StepResult>().tokens.at(0).token;
  Configure other = MakeConfigure(2, 1, 8, 3);
  other.max_rows = 128;
  Tell(other);
  EXPECT_TRUE(Hear<Ready>().status.ok());
  Tell(Plan(2, 3, 12, 1));  // Once more: from the accepted length
  const StepResult result = Hear<StepResult>();
  ASSERT_TRUE(result.status.ok()) << result.status;
  EXPECT_EQ(result.tokens.at(0).token, expected);
}

TEST_F(WorkerTest, StepsGoOnWhileExpertsAreLoaded) {
  Load(0, 4);
  Tell(MakeConfigure(1, 2, 4, 1));
  EXPECT_TRUE(Hear<Ready>().status.ok());
  source_.Set(false);
  Tell(LoadExperts{.term = term_, .cell = kCell, .placement_version = 2, .experts = Experts(0, 8)});
  source_.AwaitReader();
  for (uint64_t step = 1; step <= 3; ++step) {
    Tell(Plan(1, step));
    EXPECT_TRUE(Hear<StepResult>().status.ok());
  }
  source_.Set(true);
  EXPECT_EQ(Hear<ExpertsLoaded>().placement_version, 2u);
  Tell(Plan(1, 4));
  EXPECT_TRUE(Hear<StepResult>().status.ok());
  Tell(MakeConfigure(2, 1, 8, 5));
  EXPECT_TRUE(Hear<Ready>().status.ok());
}

TEST_F(WorkerTest, ExpertsInUseStayUntilAnEpochWithoutThem) {
  EnterAlone();
  Keep();
  Tell(LoadExperts{.term = term_, .cell = kCell, .placement_version = 2, .experts = Experts(0, 2)});
  EXPECT_TRUE(Hear<ExpertsLoaded>().status.ok());
  Tell(Plan(1, 1, 0, 12));
  EXPECT_EQ(Hear<StepResult>().tokens.at(0).token, TokenId{92});
  const int64_t all = worker_->beat().resident_bytes;
  Tell(MakeConfigure(2, 2, 2, 2));
  EXPECT_TRUE(Hear<Ready>().status.ok());
  Load(0, 2, 3);
  EXPECT_LT(worker_->beat().resident_bytes, all);
  Tell(MakeConfigure(3, 1, 8, 2));
  EXPECT_EQ(Hear<Ready>().status.code(), absl::StatusCode::kFailedPrecondition);
}

TEST_F(WorkerTest, EndsInTheMiddleOfAStepAndOfALoad) {
  script_.dispatch_blocks = true;
  EnterTogether();
  Tell(Plan(1, 1));
  script_.AwaitBlocked();
  worker_.reset();
  EXPECT_EQ(Hear<StepResult>().status.code(), absl::StatusCode::kAborted);
}

}  // namespace
}  // namespace shoal
