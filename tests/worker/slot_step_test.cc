// Whole steps in slots on a device that queues, records and replays (recording_device.h), over the
// fake NCCL: the host waits once a step, recording and repeating is something that all ranks do
// together, and an abort, which waits for the records, comes to its end.
#include <algorithm>
#include <atomic>
#include <memory>
#include <thread>
#include <utility>
#include <vector>

#include "absl/time/clock.h"
#include "gtest/gtest.h"

#include "tests/worker/cell_rig.h"
#include "tests/worker/nccl_cell.h"
#include "tests/worker/recording_device.h"
#include "worker/exchange/host_stream.h"

namespace shoal {
namespace {

// The ranks' devices, and the NCCL between them.
struct Devices {
  explicit Devices(int32_t num_ranks) {
    for (int32_t rank = 0; rank < num_ranks; ++rank) {
      devices.push_back(
          std::make_unique<RecordingDevice>(std::make_unique<CpuBackend>(CpuBackendOptions{})));
    }
    nccl = std::make_unique<NcclCell>(num_ranks, std::vector<int>{}, [this](int32_t rank) {
      return devices[static_cast<size_t>(rank)]->MakeStream();
    });
  }

  RigOptions Options() {
    return {.num_ranks = static_cast<int32_t>(devices.size()),
            .copies = 2,
            .exchanges = [this](int32_t rank) { return nccl->factory(rank); },
            .backend =
                [this](int32_t rank, std::unique_ptr<Backend>) {
                  return devices[static_cast<size_t>(rank)]->MakeBackend();
                }};
  }

  DeviceCounts& counts(size_t rank) { return devices[rank]->counts(); }

  std::vector<std::unique_ptr<RecordingDevice>> devices;
  std::unique_ptr<NcclCell> nccl;
};

// Prompts of different lengths, so that ranks end one after the other and some go on without rows.
std::vector<std::vector<TokenId>> Prompts(int count) {
  std::vector<std::vector<TokenId>> prompts;
  for (int i = 0; i < count; ++i) {
    std::vector<TokenId>& prompt = prompts.emplace_back();
    for (int t = 0; t < 20 + i * 5 % 17; ++t) prompt.push_back(TokenId{(i * 37 + t * 11) % 128});
  }
  return prompts;
}

class SlotStepTest : public testing::Test {
 protected:
  ~SlotStepTest() override {
    SetFakeHook(nullptr);
    const FakeCounts counts = CountFake();
    EXPECT_EQ(counts.comms, 0);
    EXPECT_EQ(counts.threads, 0);
    EXPECT_EQ(counts.calls_after_abort, before_.calls_after_abort);
    EXPECT_EQ(counts.overlapping_calls, before_.overlapping_calls);
    EXPECT_EQ(CountHostStreams().buffers, 0);
    EXPECT_EQ(CountHostStreams().streams, 0);
  }

  // One sequence on each rank, of `lengths[rank]` tokens (0: none), kept in the records.
  static std::vector<StepPlan> Begin(CellRig* rig, const std::vector<int32_t>& lengths) {
    std::vector<StepPlan> plans(lengths.size());
    for (size_t r = 0; r < lengths.size(); ++r) {
      if (lengths[r] == 0) continue;
      std::vector<TokenId> tokens;
      for (int32_t t = 0; t < 32; ++t) tokens.push_back(TokenId{static_cast<int32_t>(r) + 3 * t});
      EXPECT_TRUE(rig->rank(static_cast<int32_t>(r))
                      .records
                      .Keep({.term = {},
                             .sequence = SequenceId{r},
                             .index = 0,
                             .tokens = tokens,
                             .prompt_length = 32,
                             .sampling = {},
                             .envelope = ""})
                      .ok());
      plans[r].entries.push_back({.sequence = SequenceId{r},
                                  .first_position = 0,
                                  .num_positions = lengths[r],
                                  .first_block = 0,
                                  .full_blocks = {BlockId{3}},
                                  .window_blocks = {BlockId{5}},
                                  .wants_sample = false,
                                  .wants_logits = false});
    }
    return plans;
  }

  // The next position of each.
  static void Advance(std::vector<StepPlan>* plans) {
    for (StepPlan& plan : *plans) {
      for (PlanEntry& entry : plan.entries) {
        entry.first_position += entry.num_positions;
        entry.num_positions = 1;
        entry.first_block = 1;
        entry.full_blocks.clear();
        entry.window_blocks.clear();
      }
    }
  }

  const FakeCounts before_ = CountFake();
};

TEST_F(SlotStepTest, RepeatedStepsGiveTheBitsOfOneRank) {
  const std::vector<std::vector<TokenId>> prompts = Prompts(11);
  const DriveOptions drive{.batch = 7, .given = 3};
  CellRig alone({});
  const std::vector<std::vector<float>> reference = DrivePrompts(&alone, prompts, drive);
  for (const int32_t ranks : {2, 3}) {
    Devices devices(ranks);
    CellRig rig(devices.Options());
    EXPECT_EQ(DrivePrompts(&rig, prompts, drive), reference) << ranks;
    for (size_t r = 0; r < static_cast<size_t>(ranks); ++r) {
      EXPECT_GT(devices.counts(r).replays, 20);
      EXPECT_GT(devices.counts(r).records, 1);
      EXPECT_EQ(devices.counts(r).records, devices.counts(0).records);
      EXPECT_EQ(devices.counts(r).replays, devices.counts(0).replays);
    }
  }
}

// Run as it is, recorded, repeated; a rank without rows; a prefill in slots: nothing is read, and
// the stream is only asked at the end.
TEST_F(SlotStepTest, TheHostWaitsOnceAStepAndNeverInALayer) {
  Devices devices(3);
  CellRig rig(devices.Options());
  std::vector<StepPlan> plans = Begin(&rig, {12, 0, 7});
  for (int step = 0; step < 5; ++step) {
    std::vector<int64_t> reads, waits;
    std::atomic<int64_t> groups = 0;
    for (size_t r = 0; r < 3; ++r) reads.push_back(devices.counts(r).reads);
    SetFakeHook([&](FakeCall call, int, NcclCommHandle) {
      if (call == FakeCall::kGroupEnd) ++groups;
      return NcclResult::kSuccess;
    });
    for (size_t r = 0; r < 3; ++r) waits.push_back(devices.counts(r).waits);
    rig.Step(plans);
    SetFakeHook(nullptr);
    for (size_t r = 0; r < 3; ++r) {
      EXPECT_EQ(devices.counts(r).reads, reads[r]) << "step " << step;
      EXPECT_EQ(devices.counts(r).waits, waits[r] + 1) << "step " << step;
      EXPECT_EQ(devices.counts(r).replays, std::max(0, step - 1)) << "step " << step;  // 0: prefill
    }
    // Two rounds a layer and rank, by NCCL's calls or by none.
    EXPECT_EQ(groups, step <= 2 ? 3 * 2 * rig.options().config.num_layers : 0);
    Advance(&plans);
  }
}

// A record holds its communicator: the abort that is under way on the reaper's thread ends when the
// step thread has left the epoch, whichever comes first.
TEST_F(SlotStepTest, AnAbortEndsWhenTheRecordsAreForgotten) {
  Devices devices(3);
  CellRig rig(devices.Options());
  std::vector<StepPlan> plans = Begin(&rig, {1, 1, 1});
  for (int step = 0; step < 4; ++step) {
    rig.Step(plans);
    Advance(&plans);
  }
  for (size_t r = 0; r < 3; ++r) EXPECT_EQ(devices.counts(r).kept, 1);
  for (int32_t r = 0; r < 3; ++r) rig.rank(r).exchange->Abort(absl::AbortedError("asked"));
  // Had it not to wait, it would be done by now; nothing here depends on that.
  absl::SleepFor(absl::Milliseconds(20));
  EXPECT_EQ(CountFake().comms, 0);  // NCCL was told
  EXPECT_EQ(CountFake().threads, 0);
  const absl::Time start = absl::Now();
  for (int32_t r = 0; r < 3; ++r) {
    rig.rank(r).forward = nullptr;
    rig.rank(r).exchange = nullptr;  // Waits for the abort
  }
  EXPECT_LT(absl::Now() - start, NcclCell::kAbortPatience);
  EXPECT_TRUE(devices.nccl->deaths().empty());
  for (size_t r = 0; r < 3; ++r) EXPECT_EQ(devices.counts(r).kept, 0);
}

// No call of NCCL's is in such a step: what tells of the others is their end of the connections,
// and the step's deadline.
TEST_F(SlotStepTest, ARepeatedStepEndsWithoutItsPeers) {
  for (const bool is_dead : {true, false}) {
    Devices devices(3);
    CellRig rig(devices.Options());
    std::vector<StepPlan> plans = Begin(&rig, {1, 1, 1});
    for (int step = 0; step < 3; ++step) {
      rig.Step(plans);
      Advance(&plans);
    }
    rig.rank(1).forward = nullptr;
    if (is_dead) rig.rank(1).exchange = nullptr;
    const absl::Duration patience = is_dead ? absl::Seconds(20) : absl::Milliseconds(200);
    std::vector<StepOutput> outputs;
    const absl::Time start = absl::Now();
    const std::vector<absl::Status> statuses = rig.TryStep(plans, patience, &outputs);
    EXPECT_LT(absl::Now() - start, absl::Seconds(10));
    for (const size_t r : {0, 2}) {
      // The first to give up ends the other's connections.
      EXPECT_TRUE(absl::IsUnavailable(statuses[r]) ||
                  (!is_dead && absl::IsDeadlineExceeded(statuses[r])))
          << statuses[r];
      EXPECT_EQ(devices.counts(r).replays, 3);  // Recorded and two more
      EXPECT_EQ(devices.counts(r).kept, 0);
    }
  }
}

// An error at any call of a step that is run, recorded or repeated: every rank ends with an error,
// nothing of a step that was given up is kept, and all communicators go.
TEST_F(SlotStepTest, AnErrorInAStepThatIsRecordedLeavesNothing) {
  for (const FakeCall faulty : {FakeCall::kGroupStart,
                                FakeCall::kSend,
                                FakeCall::kRecv,
                                FakeCall::kGroupEnd,
                                FakeCall::kGetAsyncError}) {
    for (const int at : {0, 9}) {
      SCOPED_TRACE(testing::Message() << "call " << static_cast<int>(faulty) << " at " << at);
      Devices devices(3);
      CellRig rig(devices.Options());
      std::vector<StepPlan> plans = Begin(&rig, {1, 1, 1});
      rig.Step(plans);
      Advance(&plans);
      std::atomic<int> countdown = at;
      SetFakeHook([&](FakeCall call, int, NcclCommHandle) {
        if (call != faulty || countdown-- != 0) return NcclResult::kSuccess;
        return NcclResult::kSystemError;
      });
      std::vector<StepOutput> outputs;
      for (const absl::Status& status : rig.TryStep(plans, absl::Seconds(20), &outputs)) {
        EXPECT_FALSE(status.ok());
      }
      SetFakeHook(nullptr);
      for (size_t r = 0; r < 3; ++r) EXPECT_EQ(devices.counts(r).kept, 0);
      EXPECT_TRUE(devices.nccl->deaths().empty());
    }
  }
}

}  // namespace
}  // namespace shoal
