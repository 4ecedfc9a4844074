// Constrained sequences: when they are planned, and what becomes of late, lost and wrong answers.
// Storms of them are in tests/sim.
#include <string>
#include <utility>
#include <vector>

#include "gtest/gtest.h"

#include "tests/coordinator/fleet_rig.h"

namespace shoal {
namespace {

Request Constrained(const std::string& id, int32_t max_tokens = 6) {
  Request request = MakeRequest(id, 4, max_tokens);
  request.is_constrained = true;
  request.envelope = sim::kConstrainedEnvelope;
  return request;
}

MaskReady AnswerTo(const AskMask& ask) {
  return {.sequence = ask.sequence,
          .num_output = static_cast<int32_t>(ask.output.size()),
          .mask = sim::MaskAfter({ask.output.data(), ask.output.size()})};
}

TEST(MasksTest, EachTokenWaitsForItsMask) {
  auto fleet = RunningFleet(MakeOptions());
  const StreamId stream = fleet->Send(Constrained("r", 3));

  for (size_t token = 0; token < 3; ++token) {
    fleet->Pump();
    EXPECT_EQ((fleet->texts[{stream, 0}].size()), token);
    ASSERT_EQ(fleet->asked_masks.size(), token + 1);
    EXPECT_EQ(fleet->asked_masks.back().output, (fleet->texts[{stream, 0}]));
    EXPECT_EQ(fleet->asked_masks.back().envelope, sim::kConstrainedEnvelope);
    fleet->Tell(AnswerTo(fleet->asked_masks.back()));
  }
  fleet->Pump();

  EXPECT_EQ((fleet->texts[{stream, 0}]), TextOf(Constrained("r", 3)));
  EXPECT_EQ((fleet->finishes[{stream, 0}].reason), FinishReason::kLength);
  EXPECT_EQ(fleet->asked_masks.size(), 3u);  // Nothing follows the last token
}

TEST(MasksTest, OthersDoNotWait) {
  auto fleet = RunningFleet(MakeOptions());
  const StreamId waiting = fleet->Send(Constrained("waiting"));
  const StreamId free = fleet->Send(MakeRequest("free"));
  const StreamId other = fleet->Send(Constrained("other", 1));
  fleet->Tell(AnswerTo(fleet->asked_masks.back()));

  fleet->Pump();

  EXPECT_EQ((fleet->finishes.count({free, 0})), 1u);
  EXPECT_EQ((fleet->finishes.count({other, 0})), 1u);
  EXPECT_TRUE((fleet->texts[{waiting, 0}].empty()));
}

TEST(MasksTest, ALostAnswerIsAskedForAgain) {
  CoordinatorOptions options = MakeOptions();
  options.mask_patience = absl::Seconds(1);
  auto fleet = RunningFleet(options);
  const StreamId stream = fleet->Send(Constrained("r", 1));
  fleet->Pump();
  const AskMask first = fleet->asked_masks.at(0);

  fleet->Wait(absl::Milliseconds(900));
  EXPECT_EQ(fleet->asked_masks.size(), 1u);
  EXPECT_LE(fleet->core.NextDeadline(), fleet->now + absl::Milliseconds(100));
  fleet->Wait(absl::Milliseconds(200));
  ASSERT_EQ(fleet->asked_masks.size(), 2u);
  EXPECT_EQ(fleet->asked_masks[1].sequence, first.sequence);
  fleet->Tell(AnswerTo(first));  // Late is as good
  fleet->Pump();

  EXPECT_EQ((fleet->texts[{stream, 0}]), TextOf(Constrained("r", 1)));
  fleet->Wait(absl::Seconds(3));
  EXPECT_EQ(fleet->asked_masks.size(), 2u);
}

TEST(MasksTest, AnAnswerToAnotherLengthMeansNothing) {
  auto fleet = RunningFleet(MakeOptions());
  const StreamId stream = fleet->Send(Constrained("r", 2));
  const MaskReady first = AnswerTo(fleet->asked_masks.at(0));
  fleet->Tell(first);
  fleet->Pump();
  ASSERT_EQ((fleet->texts[{stream, 0}].size()), 1u);

  fleet->Tell(first);
  MaskReady early = first;
  early.num_output = 2;
  fleet->Tell(early);
  fleet->Pump();
  EXPECT_EQ((fleet->texts[{stream, 0}].size()), 1u);

  fleet->Tell(AnswerTo(fleet->asked_masks.back()));
  fleet->Pump();
  EXPECT_EQ((fleet->texts[{stream, 0}]), TextOf(Constrained("r", 2)));
  fleet->Tell(AnswerTo(fleet->asked_masks.back()));  // After its end
}

TEST(MasksTest, AFailedAnswerEndsTheRequestWithItsReason) {
  auto fleet = RunningFleet(MakeOptions());
  const StreamId stream = fleet->Send(Constrained("r"));
  MaskReady failed = AnswerTo(fleet->asked_masks.at(0));
  failed.status = absl::FailedPreconditionError("no token can follow");

  fleet->Tell(failed);
  fleet->Pump();

  const Finish& finish = fleet->finishes[{stream, 0}];
  EXPECT_EQ(finish.reason, FinishReason::kError);
  EXPECT_EQ(finish.error, failed.status);
  EXPECT_EQ(fleet->BlocksUsed(), 0);
}

TEST(MasksTest, AMaskOutlivesTheLossOfItsHome) {
  CoordinatorOptions options = MakeOptions();
  options.min_workers = 1;
  auto fleet = RunningFleet(options);
  const StreamId stream = fleet->Send(Constrained("r", 2));
  fleet->Tell(AnswerTo(fleet->asked_masks.at(0)));
  fleet->Pump();
  ASSERT_EQ((fleet->texts[{stream, 0}].size()), 1u);
  fleet->Tell(AnswerTo(fleet->asked_masks.at(1)));  // A plan is under way

  fleet->Lose(0);
  fleet->Pump();
  fleet->Lose(1);
  fleet->Enrol(2);
  fleet->Enrol(3);
  fleet->Pump();

  EXPECT_EQ((fleet->texts[{stream, 0}]), TextOf(Constrained("r", 2)));
  EXPECT_EQ(fleet->asked_masks.size(), 2u);
}

}  // namespace
}  // namespace shoal
