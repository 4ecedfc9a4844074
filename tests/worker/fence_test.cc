#include "worker/fence.h"

#include <variant>

#include "gtest/gtest.h"

namespace shoal {
namespace {

using enum Fence::Verdict;

constexpr CellId kCell{3};

Configure MakeConfigure(uint64_t term, uint64_t epoch, uint64_t next_step) {
  return {.term = Term{term}, .cell = kCell, .epoch = Epoch{epoch}, .next_step = StepId{next_step}};
}

StepPlan MakePlan(uint64_t term, uint64_t epoch, uint64_t step) {
  return {.term = Term{term}, .cell = kCell, .epoch = Epoch{epoch}, .step = StepId{step}};
}

Abort MakeAbort(uint64_t term, uint64_t epoch) {
  return {.term = Term{term}, .cell = kCell, .epoch = Epoch{epoch}};
}

// In term 5, epoch 10, about to take step 100.
Fence Entered() {
  Fence fence(Term{5});
  fence.Enter(MakeConfigure(5, 10, 100));
  return fence;
}

TEST(FenceTest, JudgesEveryMessageInEveryState) {
  enum State { kOutside, kIdle, kOneInHand, kTwoInHand, kOneRan, kAllRan, kLeft };

  const auto build = [](State state) {
    Fence fence(Term{5});
    if (state == kOutside) return fence;
    fence.Enter(MakeConfigure(5, 10, 100));
    if (state == kIdle) return fence;
    EXPECT_EQ(fence.Judge(MakePlan(5, 10, 100)), kObey);
    if (state == kOneInHand) return fence;
    if (state == kAllRan) {
      fence.Ran(StepId{100});
      return fence;
    }
    EXPECT_EQ(fence.Judge(MakePlan(5, 10, 101)), kObey);
    if (state == kOneRan) fence.Ran(StepId{100});
    if (state == kLeft) fence.Leave();
    return fence;
  };
  constexpr auto kRepeat = kRepeatResult;
  constexpr int kStates = 7;

  struct Row {
    const char* name;
    std::variant<Configure, Abort, StepPlan> message;
    Fence::Verdict expected[kStates];  // Outside, idle, 1 in hand, 2 in hand, 1 ran, all ran, left
  };

  const Row rows[] = {
      {"Configure, old term",
       MakeConfigure(4, 11, 200),
       {kRefuse, kRefuse, kRefuse, kRefuse, kRefuse, kRefuse, kRefuse}},
      {"Configure, next epoch",
       MakeConfigure(5, 11, 200),
       {kObey, kObey, kObey, kObey, kObey, kObey, kObey}},
      {"Configure, next epoch, newer term",
       MakeConfigure(6, 11, 200),
       {kObey, kObey, kObey, kObey, kObey, kObey, kObey}},
      {"Configure, same epoch",
       MakeConfigure(5, 10, 200),
       {kObey, kRefuse, kRefuse, kRefuse, kRefuse, kRefuse, kRefuse}},
      {"Configure, step goes back",
       MakeConfigure(5, 11, 100),
       {kObey, kObey, kRefuse, kRefuse, kRefuse, kRefuse, kRefuse}},
      {"Abort", MakeAbort(5, 10), {kRefuse, kObey, kObey, kObey, kObey, kObey, kRefuse}},
      {"Abort, old term",
       MakeAbort(4, 10),
       {kRefuse, kRefuse, kRefuse, kRefuse, kRefuse, kRefuse, kRefuse}},
      {"Abort, old epoch",
       MakeAbort(5, 9),
       {kRefuse, kRefuse, kRefuse, kRefuse, kRefuse, kRefuse, kRefuse}},
      {"plan 100",
       MakePlan(5, 10, 100),
       {kRefuse, kObey, kRefuse, kRefuse, kRefuse, kRepeat, kRefuse}},
      {"plan 101",
       MakePlan(5, 10, 101),
       {kRefuse, kRefuse, kObey, kRefuse, kRefuse, kObey, kRefuse}},
      {"plan 102",
       MakePlan(5, 10, 102),
       {kRefuse, kRefuse, kRefuse, kRefuse, kObey, kRefuse, kRefuse}},
      {"plan 100, old term",
       MakePlan(4, 10, 100),
       {kRefuse, kRefuse, kRefuse, kRefuse, kRefuse, kRefuse, kRefuse}},
      {"plan 100, old epoch",
       MakePlan(5, 9, 100),
       {kRefuse, kRefuse, kRefuse, kRefuse, kRefuse, kRefuse, kRefuse}},
      {"plan 100, epoch to come",
       MakePlan(5, 11, 100),
       {kRefuse, kRefuse, kRefuse, kRefuse, kRefuse, kRefuse, kRefuse}},
  };

  for (const Row& row : rows) {
    for (int state = 0; state < kStates; ++state) {
      Fence fence = build(static_cast<State>(state));

      const auto verdict =
          std::visit([&](const auto& message) { return fence.Judge(message); }, row.message);

      EXPECT_EQ(verdict, row.expected[state]) << row.name << " in state " << state;
      EXPECT_TRUE(verdict != kRefuse || !fence.refusal().ok()) << row.name;
    }
  }
}

TEST(FenceTest, RemembersTheHighestTermEvenOfARefusedMessage) {
  Fence fence = Entered();

  EXPECT_EQ(fence.Judge(MakePlan(8, 9, 100)), kRefuse);  // Stale epoch under a newer term

  EXPECT_EQ(fence.term(), Term{8});
  EXPECT_EQ(fence.Judge(Term{7}), kRefuse);
  EXPECT_EQ(fence.refusal().code(), absl::StatusCode::kAborted);
  EXPECT_EQ(fence.refusal().message(), "stale term: message of term 7, highest seen 8");
  EXPECT_EQ(fence.Judge(Term{8}), kObey);
}

TEST(FenceTest, TellsStaleFromGapByTheCode) {
  Fence fence = Entered();
  EXPECT_EQ(fence.Judge(MakePlan(5, 10, 102)), kRefuse);
  EXPECT_EQ(fence.refusal().code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_EQ(fence.Judge(MakePlan(5, 10, 99)), kRefuse);
  EXPECT_EQ(fence.refusal().code(), absl::StatusCode::kAborted);
}

TEST(FenceTest, RepeatsAResultOnlyForTheSameBytes) {
  Fence fence = Entered();
  const StepPlan plan = MakePlan(5, 10, 100);
  StepPlan other = plan;
  other.entries.push_back({.sequence = SequenceId{1}, .num_positions = 1});
  ASSERT_EQ(fence.Judge(plan), kObey);
  fence.Ran(StepId{100});

  EXPECT_EQ(fence.Judge(other), kRefuse);
  EXPECT_EQ(fence.Judge(plan), kRepeatResult);
}

TEST(FenceTest, APlanOfAnotherCellIsRefused) {
  Fence fence = Entered();
  StepPlan plan = MakePlan(5, 10, 100);
  plan.cell = CellId{4};
  EXPECT_EQ(fence.Judge(plan), kRefuse);
}

TEST(FenceTest, RanAfterLeavingCountsForNothing) {
  Fence fence = Entered();
  ASSERT_EQ(fence.Judge(MakePlan(5, 10, 100)), kObey);
  fence.Leave();

  fence.Ran(StepId{100});

  ASSERT_EQ(fence.Judge(MakeConfigure(5, 11, 101)), kObey);
  fence.Enter(MakeConfigure(5, 11, 101));
  EXPECT_EQ(fence.epoch(), Epoch{11});
  EXPECT_EQ(fence.next_step(), StepId{101});
  EXPECT_EQ(fence.Judge(MakePlan(5, 11, 101)), kObey);
  EXPECT_EQ(fence.Judge(MakePlan(5, 11, 102)), kObey);
}

TEST(FenceDeathTest, RanOutOfOrderIsOurBug) {
  Fence fence = Entered();
  ASSERT_EQ(fence.Judge(MakePlan(5, 10, 100)), kObey);
  EXPECT_DEATH(fence.Ran(StepId{101}), "CHECK failed");
}

}  // namespace
}  // namespace shoal
