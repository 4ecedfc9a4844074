// The core event by event. What no list of cases can cover is in tests/sim.
#include "coordinator/coordinator.h"

#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"

#include "tests/coordinator/fleet_rig.h"

namespace shoal {
namespace {

using testing::ElementsAre;

// ---- Every event in every state of the cell

enum class State { kNoWorkers, kForming, kLoading, kConfiguring, kIdle, kBusy, kStranded };

// A fleet in the state, with request "r" (6 tokens) sent before, except when idle.
std::unique_ptr<FleetRig> FleetIn(State state, StreamId* stream) {
  CoordinatorOptions options = MakeOptions(2);
  options.min_workers = 2;
  auto fleet = std::make_unique<FleetRig>(options);
  const auto send = [&] { *stream = fleet->Send(MakeRequest("r")); };
  if (state == State::kNoWorkers) {
    send();
    return fleet;
  }
  fleet->Enrol(0);
  if (state == State::kForming) {
    send();
    return fleet;
  }
  fleet->Enrol(1);
  if (state == State::kLoading) {
    send();
    return fleet;
  }
  while (fleet->CellState() == "loading") fleet->PumpOne();
  if (state == State::kConfiguring) {
    EXPECT_EQ(fleet->CellState(), "configuring");
    send();
    return fleet;
  }
  fleet->Pump();
  if (state == State::kIdle) return fleet;
  send();  // Plans are in the inboxes: a step is in flight
  if (state == State::kStranded) fleet->Lose(1);
  return fleet;
}

constexpr State kStates[] = {State::kNoWorkers,
                             State::kForming,
                             State::kLoading,
                             State::kConfiguring,
                             State::kIdle,
                             State::kBusy,
                             State::kStranded};

// Whatever single event comes in whatever state: once there are two workers and time passes, the
// request ends with exactly its text (or as it was told to), and no block is left.
TEST(CoordinatorTest, AnyEventInAnyStateEndsInOrder) {
  struct Case {
    const char* name;
    std::function<void(FleetRig*, StreamId)> event;
    bool ends_early = false;
  };

  const Case cases[] = {
      {"nothing", [](FleetRig*, StreamId) {}},
      {"tick", [](FleetRig* f, StreamId) { f->Wait(absl::Milliseconds(50)); }},
      {"cancel",
       [](FleetRig* f, StreamId) {
         f->Tell(CancelAsked{"t", "r"});
       },
       true},
      {"reader gone", [](FleetRig* f, StreamId s) { f->Tell(ClientGone{s}); }, true},
      {"cancel of another",
       [](FleetRig* f, StreamId) {
         f->Tell(CancelAsked{"u", "r"});
       }},
      {"stop before the first token",
       [](FleetRig* f, StreamId) {
         f->Tell(StopFound{"t", "r", 0, -1});
       },
       true},
      {"stop of no choice",
       [](FleetRig* f, StreamId) {
         f->Tell(StopFound{"t", "r", 3, 0});
       }},
      {"loss of nobody",
       [](FleetRig* f, StreamId) {
         f->Tell(WorkerLost{WorkerId{9}, Incarnation{9}, "?"});
       }},
      {"loss of an old incarnation",
       [](FleetRig* f, StreamId) {
         f->Tell(WorkerLost{WorkerId{0}, Incarnation{999}, "?"});
       }},
      {"words of a stranger",
       [](FleetRig* f, StreamId) {
         f->Tell(WorkerSaid{WorkerId{9}, Incarnation{9}, Ready{}});
       }},
      {"ready of another epoch",
       [](FleetRig* f, StreamId) {
         if (f->workers.contains(WorkerId{0})) f->Say(0, Ready{.epoch = Epoch{77}});
       }},
      {"result of another step",
       [](FleetRig* f, StreamId) {
         if (f->workers.contains(WorkerId{0})) {
           f->Say(0, StepResult{.epoch = Epoch{1}, .step = StepId{77}});
         }
       }},
      {"failed result of another epoch",
       [](FleetRig* f, StreamId) {
         if (!f->workers.contains(WorkerId{0})) return;
         f->Say(0, StepResult{.epoch = Epoch{77}, .status = absl::UnavailableError("x")});
       }},
      {"stale refusal",
       [](FleetRig* f, StreamId) {
         if (!f->workers.contains(WorkerId{0})) return;
         f->Say(0, Refusal{.reason = absl::AbortedError("stale epoch")});
       }},
      {"loaded unasked",
       [](FleetRig* f, StreamId) {
         if (!f->workers.contains(WorkerId{0})) return;
         f->Say(0, ExpertsLoaded{.placement_version = 9999, .num_full_blocks = 1});
       }},
      {"failed step",
       [](FleetRig* f, StreamId) {
         if (!f->workers.contains(WorkerId{0})) return;
         f->Say(0,
                StepResult{.epoch = f->Status().cells.front().epoch,
                           .step = f->Status().cells.front().step,
                           .status = absl::UnavailableError("x"),
                           .suspects = {Rank{1}}});
       }},
      {"bootstrap of another epoch",
       [](FleetRig* f, StreamId) {
         if (!f->workers.contains(WorkerId{0})) return;
         f->Say(0, Bootstrap{.epoch = Epoch{77}, .id = "x"});
       }},
      {"failed ready",
       [](FleetRig* f, StreamId) {
         if (!f->workers.contains(WorkerId{0})) return;
         f->Say(0,
                Ready{.epoch = f->Status().cells.front().epoch,
                      .status = absl::UnavailableError("x"),
                      .suspects = {Rank{7}}});
       }},
      {"loss of worker 0",
       [](FleetRig* f, StreamId) {
         if (f->workers.contains(WorkerId{0})) f->Lose(0);
       }},
      {"link dialled again",
       [](FleetRig* f, StreamId) {
         if (!f->workers.contains(WorkerId{0})) return;
         f->workers.at(WorkerId{0}).inbox.clear();
         f->workers.at(WorkerId{0}).machine->Leave();
         f->Tell(WorkerEnrolled{f->EnrolOf(0)});
       }},
      {"attach", [](FleetRig* f, StreamId) { f->Attach("r"); }},
      {"the same request again", [](FleetRig* f, StreamId) { f->Send(MakeRequest("r")); }},
  };
  for (const Case& c : cases) {
    for (const State state : kStates) {
      SCOPED_TRACE(testing::Message() << c.name << " in state " << static_cast<int>(state));
      StreamId stream{};
      auto fleet = FleetIn(state, &stream);

      c.event(fleet.get(), stream);
      // The world comes to rest with two workers.
      for (const uint32_t id : {0u, 1u}) {
        if (!fleet->workers.contains(WorkerId{id})) fleet->Enrol(id);
      }
      for (int i = 0; i < 50; ++i) {
        fleet->Pump();
        fleet->Wait(absl::Milliseconds(100));
      }

      EXPECT_EQ(fleet->CellState(), "running");
      if (state == State::kIdle && c.name != std::string("the same request again")) continue;
      if (state == State::kIdle) stream = StreamId{fleet->last_stream};
      if (!c.ends_early) {
        EXPECT_EQ(fleet->Text(stream), TextOf(MakeRequest("r")));
        EXPECT_EQ(fleet->FinishOf(stream).reason, FinishReason::kLength);
      }
      EXPECT_EQ(fleet->BlocksUsed(), 0);
      EXPECT_EQ(fleet->Status().running + fleet->Status().waiting, 0);
    }
  }
}

// ---- Workers

TEST(CoordinatorTest, TwoWorkersWithOneIdentityAreNotBothMembers) {
  auto fleet = RunningFleet(MakeOptions());
  Enrol twin = fleet->EnrolOf(0);
  twin.incarnation = Incarnation{4711};
  std::vector<Action> actions;

  fleet->core.Handle(fleet->now, WorkerEnrolled{twin}, &actions);

  bool is_dismissed = false;
  for (const Action& action : actions) {
    const auto* send = std::get_if<SendToWorker>(&action);
    if (send == nullptr || !std::holds_alternative<Dismiss>(send->message)) continue;
    is_dismissed = send->incarnation == Incarnation{4711};
    EXPECT_EQ(std::get<Dismiss>(send->message).reason.code(), absl::StatusCode::kAlreadyExists);
  }
  EXPECT_TRUE(is_dismissed);
  EXPECT_EQ(fleet->CellState(), "running");
}

TEST(CoordinatorTest, ASilentWorkerIsLostAndTheOthersGoOn) {
  auto fleet = RunningFleet(MakeOptions());
  const Request request = MakeRequest("r", 4, 20);
  const StreamId stream = fleet->Send(request);
  fleet->Pump(6);
  fleet->workers.at(WorkerId{1}).inbox.clear();

  // Worker 1 says nothing; its link stays up.
  for (int i = 0; i < 11; ++i) {
    fleet->now += absl::Milliseconds(500);
    fleet->Say(0, Beat{});
    fleet->Tell(Tick());
  }

  EXPECT_THAT(fleet->closed, ElementsAre(WorkerId{1}));
  fleet->workers.erase(WorkerId{1});
  for (int i = 0; i < 5; ++i) {
    fleet->Pump();
    fleet->Wait(absl::Milliseconds(100));
  }
  EXPECT_EQ(fleet->Text(stream), TextOf(request));
}

TEST(CoordinatorTest, AWorkerThatComesBackIsTakenInAtAStepBoundary) {
  auto fleet = RunningFleet(MakeOptions());
  const Request request = MakeRequest("r", 4, 100);
  const StreamId stream = fleet->Send(request);
  fleet->Pump(10);
  fleet->Lose(1);
  fleet->Pump(10);
  EXPECT_EQ(fleet->Status().cells.front().workers.size(), 1u);

  fleet->Enrol(1);
  fleet->Pump();

  EXPECT_EQ(fleet->Text(stream), TextOf(request));
  EXPECT_EQ(fleet->Status().cells.front().workers.size(), 2u);
  EXPECT_EQ(fleet->Status().epochs, 3);
  EXPECT_EQ(fleet->FinishOf(stream).timings.epochs, 2);
}

TEST(CoordinatorTest, ALostHomeIsAnEpochChangeThatItsSequenceLivedThrough) {
  auto fleet = RunningFleet(MakeOptions());
  const Request request = MakeRequest("r", 4, 60);
  const StreamId stream = fleet->Send(request);
  fleet->Pump(10);
  const FleetStatus status = fleet->Status();
  std::optional<uint32_t> home;
  for (const WorkerStatus& worker : status.cells.front().workers) {
    if (worker.sequences == 1) home = worker.worker.value;
  }
  ASSERT_TRUE(home.has_value());

  fleet->Lose(*home);
  for (int i = 0; i < 5; ++i) {
    fleet->Pump();
    fleet->Wait(absl::Milliseconds(100));
  }

  EXPECT_EQ(fleet->Text(stream), TextOf(request));
  EXPECT_EQ(fleet->FinishOf(stream).timings.epochs, 1);
}

TEST(CoordinatorTest, ASpareFormsTheNextCellOnlyWhenThereAreEnough) {
  auto fleet = RunningFleet(MakeOptions(2));
  fleet->Enrol(2);
  EXPECT_EQ(fleet->Status().spare_workers.size(), 1u);
  fleet->Enrol(3);
  fleet->Pump();
  const FleetStatus status = fleet->Status();
  ASSERT_EQ(status.cells.size(), 2u);
  EXPECT_EQ(status.cells[1].state, "running");
  EXPECT_TRUE(status.spare_workers.empty());
}

TEST(CoordinatorTest, AStrandedCellsSequencesMoveToAnother) {
  CoordinatorOptions options = MakeOptions(2);
  options.min_workers = 2;
  FleetRig fleet(options);
  for (uint32_t w = 0; w < 4; ++w) fleet.Enrol(w);
  fleet.Pump();
  std::vector<StreamId> streams;
  for (int i = 0; i < 4; ++i) streams.push_back(fleet.Send(MakeRequest(std::to_string(i), 4, 60)));
  fleet.Pump(40);

  fleet.Lose(0);
  fleet.Pump();

  for (const StreamId stream : streams)
    EXPECT_EQ(fleet.Text(stream), TextOf(MakeRequest("", 4, 60)));
}

TEST(CoordinatorTest, WorkersThatSawAHigherTermMakeItsOwnRise) {
  FleetRig fleet(MakeOptions(1));
  fleet.workers[WorkerId{0}].incarnation = Incarnation{1};
  Enrol enrol = fleet.EnrolOf(0);
  enrol.highest_term = Term{41};
  fleet.Tell(WorkerEnrolled{enrol});

  EXPECT_EQ(fleet.Status().term, Term{42});
  const ToWorker welcome = fleet.workers.at(WorkerId{0}).inbox.front();
  EXPECT_EQ(std::get<Welcome>(welcome).term, Term{42});
}

TEST(CoordinatorTest, AWorkerNamedAgainAndAgainIsLost) {
  auto fleet = RunningFleet(MakeOptions());
  const Request request = MakeRequest("r", 4, 100);
  const StreamId stream = fleet->Send(request);
  fleet->accused = Rank{1};
  for (int i = 0; i < 20 && fleet->closed.empty(); ++i) {
    fleet->Pump();
    fleet->Wait(absl::Seconds(2));
  }
  fleet->accused.reset();
  fleet->workers.erase(WorkerId{1});
  fleet->Wait(absl::Seconds(2));
  fleet->Pump();

  EXPECT_EQ(fleet->Text(stream), TextOf(request));
  EXPECT_THAT(fleet->closed, ElementsAre(WorkerId{1}));
}

TEST(CoordinatorTest, BothDepthsAndForcedPreemptionGiveTheSameText) {
  const Request request = MakeRequest("r", 50, 60);
  for (const int32_t depth : {1, 2}) {
    for (const int32_t preempt : {0, 1, 7}) {
      for (const bool cache : {false, true}) {
        CoordinatorOptions options = MakeOptions();
        options.pipeline_depth = depth;
        options.force_preempt_every = preempt;
        options.prefix_cache = cache;
        auto fleet = RunningFleet(options);

        const StreamId stream = fleet->Send(request);
        for (int i = 0; i < 200 && !fleet->HasFinished(stream); ++i) {
          fleet->Pump();
          fleet->Wait(absl::Milliseconds(50));
        }

        EXPECT_EQ(fleet->Text(stream), TextOf(request)) << depth << preempt << cache;
        EXPECT_EQ(fleet->FinishOf(stream).timings.preemptions > 0, preempt > 0);
      }
    }
  }
}

// Who knows the id can join the epoch's exchange: rank 0's goes to the other ranks, once, while the
// epoch is built, and nobody else's goes anywhere.
TEST(CoordinatorTest, OnlyTheOtherRanksOfTheEpochGetItsBootstrap) {
  CoordinatorOptions options = MakeOptions(3);
  FleetRig fleet(options);
  for (const uint32_t id : {0u, 1u, 2u}) fleet.Enrol(id);
  while (fleet.CellState() == "loading") fleet.PumpOne();
  ASSERT_EQ(fleet.CellState(), "configuring");
  const Epoch epoch = fleet.Status().cells.front().epoch;
  const auto bootstraps = [&](uint32_t id) {
    std::vector<std::string> ids;
    for (const ToWorker& message : fleet.workers.at(WorkerId{id}).inbox) {
      if (const auto* bootstrap = std::get_if<Bootstrap>(&message)) {
        EXPECT_EQ(bootstrap->epoch, epoch);
        EXPECT_EQ(bootstrap->term, fleet.Status().term);
        ids.push_back(bootstrap->id);
      }
    }
    return ids;
  };

  fleet.Say(1, Bootstrap{.epoch = epoch, .id = "of a rank that is not asked"});
  fleet.Say(0, Bootstrap{.epoch = Epoch{epoch.value - 1}, .id = "of an epoch that is over"});
  fleet.Say(0, Bootstrap{.epoch = epoch, .id = "right"});

  EXPECT_THAT(bootstraps(0), ElementsAre());
  EXPECT_THAT(bootstraps(1), ElementsAre("right"));
  EXPECT_THAT(bootstraps(2), ElementsAre("right"));
  fleet.Pump();
  ASSERT_EQ(fleet.CellState(), "running");
  fleet.Say(0, Bootstrap{.epoch = epoch, .id = "late"});
  EXPECT_THAT(bootstraps(1), ElementsAre());
}

}  // namespace
}  // namespace shoal
