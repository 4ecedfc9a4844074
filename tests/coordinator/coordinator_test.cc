// The core event by event, with workers that answer when the test says so. What no list of cases
// can cover is in tests/sim.
#include "coordinator/coordinator.h"

#include <algorithm>
#include <deque>
#include <functional>
#include <map>
#include <memory>
#include <numeric>
#include <optional>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"

#include "tests/sim/oracle.h"
#include "tests/sim/sim_worker.h"

namespace shoal {
namespace {

using sim::ExpectedOutput;
using sim::SimWorker;
using testing::HasSubstr;

CoordinatorOptions MakeOptions(int32_t workers = 2) {
  CoordinatorOptions options;
  options.num_experts = 8;
  options.num_layers = 2;
  options.max_positions = 256;
  options.sliding_window = 32;
  options.workers_per_cell = workers;
  options.max_rows = 64;
  options.prefill_chunk = 64;
  options.max_running = 8;
  options.max_waiting = 4;
  return options;
}

Request MakeRequest(const std::string& id, int32_t prompt = 4, int32_t max_tokens = 6) {
  Request request;
  request.id = id;
  request.tenant = "t";
  request.body_hash = 1;
  for (int32_t i = 0; i < prompt; ++i) request.prompt.push_back(TokenId{i % 90});
  request.max_tokens = max_tokens;
  request.sampling.seed = 5;
  request.sampling.stop_tokens = {sim::kStopToken};
  request.ignore_eos = true;
  return request;
}

std::vector<TokenId> TextOf(const Request& request) {
  return ExpectedOutput({request.prompt.data(), request.prompt.size()},
                        request.sampling,
                        request.max_tokens,
                        request.ignore_eos)
      .output;
}

// A coordinator, its workers and its readers, in one hand.
class Fleet {
 public:
  explicit Fleet(const CoordinatorOptions& options)
      : core(options), window(options.sliding_window) {}

  // Hands the event over; messages to workers wait until Pump().
  void Tell(const Event& event) {
    std::vector<Action> actions;
    core.Handle(now, event, &actions);
    for (Action& action : actions) {
      if (auto* send = std::get_if<SendToWorker>(&action)) {
        const auto worker = workers.find(send->worker);
        if (worker != workers.end()) worker->second.inbox.push_back(std::move(send->message));
      } else if (auto* emit = std::get_if<Emit>(&action)) {
        std::vector<TokenId>& text = texts[{emit->stream, emit->choice}];
        for (const OutputToken& token : emit->tokens) text.push_back(token.token);
      } else if (auto* finish = std::get_if<Finish>(&action)) {
        finishes[{finish->stream, finish->choice}] = *finish;
      } else if (auto* refuse = std::get_if<Refuse>(&action)) {
        refusals[refuse->stream] = refuse->status;
      } else if (auto* accepted = std::get_if<Accepted>(&action)) {
        EXPECT_TRUE(acceptances.insert(accepted->stream).second);
      } else if (auto* emitted = std::get_if<EmitLogits>(&action)) {
        for (int32_t i = 0; i < emitted->rows.num_positions; ++i) {
          logit_positions.push_back(emitted->rows.first_position + i);
        }
      } else if (auto* close = std::get_if<CloseLink>(&action)) {
        closed.push_back(close->worker);
      }
    }
  }

  Incarnation IncarnationOf(uint32_t id) { return workers.at(WorkerId{id}).incarnation; }

  void Enrol(uint32_t id, int32_t max_experts = 8) {
    const WorkerId worker{id};
    workers[worker].incarnation = Incarnation{++last_incarnation};
    workers[worker].machine =
        std::make_unique<SimWorker>(sim::SimWorkerOptions{.num_full_blocks = 20,
                                                          .num_window_blocks = 20,
                                                          .window = window,
                                                          .max_experts = max_experts},
                                    [](const std::string& what) { ADD_FAILURE() << what; });
    Tell(WorkerEnrolled{EnrolOf(id, max_experts)});
  }

  shoal::Enrol EnrolOf(uint32_t id, int32_t max_experts = 8) {
    return {.worker = WorkerId{id},
            .incarnation = IncarnationOf(id),
            .numerics = {.backend = "sim"},
            .host = "h",
            .process = "test",
            .memory_bytes = int64_t{max_experts} * 160 + 80,
            .expert_bytes = 150,
            .num_experts = 8,
            .num_layers = 2};
  }

  void Lose(uint32_t id) {
    const Incarnation incarnation = IncarnationOf(id);
    workers.erase(WorkerId{id});
    Tell(WorkerLost{WorkerId{id}, incarnation, "killed"});
  }

  void Say(uint32_t id, FromWorker message) {
    Tell(WorkerSaid{WorkerId{id}, IncarnationOf(id), std::move(message)});
  }

  // One message of one worker's inbox; the workers take turns.
  bool PumpOne() {
    std::vector<WorkerId> turns;
    for (const auto& [id, worker] : workers) turns.push_back(id);
    std::rotate(
        turns.begin(), std::upper_bound(turns.begin(), turns.end(), last_turn), turns.end());
    for (const WorkerId id : turns) {
      WorkerSide& worker = workers.at(id);
      if (worker.inbox.empty()) continue;
      last_turn = id;
      const ToWorker message = std::move(worker.inbox.front());
      worker.inbox.pop_front();
      if (const auto* plan = std::get_if<StepPlan>(&message);
          plan != nullptr && accused.has_value()) {
        Say(id.value,
            StepResult{.epoch = plan->epoch,
                       .step = plan->step,
                       .status = absl::UnavailableError("a peer"),
                       .suspects = {*accused}});
        return true;
      }
      for (FromWorker& reply : worker.machine->Receive(message)) Say(id.value, std::move(reply));
      if (const auto* load = std::get_if<LoadExperts>(&message)) {
        Say(id.value, worker.machine->FinishLoad(*load));
      } else if (const auto* c = std::get_if<Configure>(&message)) {
        worker.machine->ExchangeBuilt();
        Say(id.value, Ready{.term = c->term, .cell = c->cell, .epoch = c->epoch});
      } else if (std::holds_alternative<StepPlan>(message)) {
        ++num_plans;
        Say(id.value, worker.machine->Run());
      }
      return true;
    }
    return false;
  }

  void Pump(int max_messages = 10'000) {
    for (int i = 0; i < max_messages; ++i) {
      if (!PumpOne()) return;
    }
  }

  void Wait(absl::Duration duration) {
    now += duration;
    for (auto& [id, worker] : workers) Say(id.value, Beat{});
    Tell(Tick());
  }

  StreamId Send(const Request& request) {
    const StreamId stream{++last_stream};
    Tell(RequestArrived{stream, request});
    return stream;
  }

  StreamId Attach(const std::string& id, int32_t choice = -1, int32_t next_index = 0) {
    const StreamId stream{++last_stream};
    Tell(ClientAttached{stream, "t", id, choice, next_index});
    return stream;
  }

  FleetStatus Status() { return core.Status(now); }

  std::string CellState() {
    const FleetStatus status = Status();
    return status.cells.empty() ? "none" : status.cells.front().state;
  }

  int32_t BlocksUsed() {
    int32_t used = 0;
    const FleetStatus status = Status();
    for (const CellStatus& cell : status.cells) {
      for (const WorkerStatus& w : cell.workers) used += w.full_blocks_used + w.window_blocks_used;
    }
    return used;
  }

  bool HasFinished(StreamId stream, int32_t choice = 0) {
    return finishes.contains({stream, choice});
  }

  const Finish& FinishOf(StreamId stream, int32_t choice = 0) {
    return finishes.at({stream, choice});
  }

  const std::vector<TokenId>& Text(StreamId stream, int32_t choice = 0) {
    return texts[{stream, choice}];
  }

  struct WorkerSide {
    Incarnation incarnation;
    std::unique_ptr<SimWorker> machine;
    std::deque<ToWorker> inbox;
  };

  Coordinator core;
  const int32_t window;
  absl::Time now = absl::UnixEpoch() + absl::Seconds(100);
  std::map<WorkerId, WorkerSide> workers;
  std::map<std::pair<StreamId, int32_t>, std::vector<TokenId>> texts;
  std::map<std::pair<StreamId, int32_t>, Finish> finishes;
  std::map<StreamId, absl::Status> refusals;
  std::set<StreamId> acceptances;
  std::vector<WorkerId> closed;
  std::vector<int32_t> logit_positions;
  std::optional<Rank> accused;  // Every step fails, and this one is named
  WorkerId last_turn;
  int num_plans = 0;
  uint64_t last_incarnation = 0;
  uint64_t last_stream = 0;
};

std::unique_ptr<Fleet> RunningFleet(const CoordinatorOptions& options) {
  auto fleet = std::make_unique<Fleet>(options);
  for (int32_t w = 0; w < options.workers_per_cell; ++w) fleet->Enrol(static_cast<uint32_t>(w));
  fleet->Pump();
  EXPECT_EQ(fleet->CellState(), "running");
  return fleet;
}

// ---- Every event in every state of the cell

enum class State { kNoWorkers, kForming, kLoading, kConfiguring, kIdle, kBusy, kStranded };

// A fleet in the state, with request "r" (6 tokens) sent before, except when idle.
std::unique_ptr<Fleet> FleetIn(State state, StreamId* stream) {
  CoordinatorOptions options = MakeOptions(2);
  options.min_workers = 2;
  auto fleet = std::make_unique<Fleet>(options);
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
    std::function<void(Fleet*, StreamId)> event;
    bool ends_early = false;
  };

  const Case cases[] = {
      {"nothing", [](Fleet*, StreamId) {}},
      {"tick", [](Fleet* f, StreamId) { f->Wait(absl::Milliseconds(50)); }},
      {"cancel",
       [](Fleet* f, StreamId) {
         f->Tell(CancelAsked{"t", "r"});
       },
       true},
      {"reader gone", [](Fleet* f, StreamId s) { f->Tell(ClientGone{s}); }, true},
      {"cancel of another",
       [](Fleet* f, StreamId) {
         f->Tell(CancelAsked{"u", "r"});
       }},
      {"stop before the first token",
       [](Fleet* f, StreamId) {
         f->Tell(StopFound{"t", "r", 0, -1});
       },
       true},
      {"stop of no choice",
       [](Fleet* f, StreamId) {
         f->Tell(StopFound{"t", "r", 3, 0});
       }},
      {"loss of nobody",
       [](Fleet* f, StreamId) {
         f->Tell(WorkerLost{WorkerId{9}, Incarnation{9}, "?"});
       }},
      {"loss of an old incarnation",
       [](Fleet* f, StreamId) {
         f->Tell(WorkerLost{WorkerId{0}, Incarnation{999}, "?"});
       }},
      {"words of a stranger",
       [](Fleet* f, StreamId) {
         f->Tell(WorkerSaid{WorkerId{9}, Incarnation{9}, Ready{}});
       }},
      {"ready of another epoch",
       [](Fleet* f, StreamId) {
         if (f->workers.contains(WorkerId{0})) f->Say(0, Ready{.epoch = Epoch{77}});
       }},
      {"result of another step",
       [](Fleet* f, StreamId) {
         if (f->workers.contains(WorkerId{0})) {
           f->Say(0, StepResult{.epoch = Epoch{1}, .step = StepId{77}});
         }
       }},
      {"failed result of another epoch",
       [](Fleet* f, StreamId) {
         if (!f->workers.contains(WorkerId{0})) return;
         f->Say(0, StepResult{.epoch = Epoch{77}, .status = absl::UnavailableError("x")});
       }},
      {"stale refusal",
       [](Fleet* f, StreamId) {
         if (!f->workers.contains(WorkerId{0})) return;
         f->Say(0, Refusal{.reason = absl::AbortedError("stale epoch")});
       }},
      {"loaded unasked",
       [](Fleet* f, StreamId) {
         if (!f->workers.contains(WorkerId{0})) return;
         f->Say(0, ExpertsLoaded{.placement_version = 9999, .num_full_blocks = 1});
       }},
      {"failed step",
       [](Fleet* f, StreamId) {
         if (!f->workers.contains(WorkerId{0})) return;
         f->Say(0,
                StepResult{.epoch = f->Status().cells.front().epoch,
                           .step = f->Status().cells.front().step,
                           .status = absl::UnavailableError("x"),
                           .suspects = {Rank{1}}});
       }},
      {"failed ready",
       [](Fleet* f, StreamId) {
         if (!f->workers.contains(WorkerId{0})) return;
         f->Say(0,
                Ready{.epoch = f->Status().cells.front().epoch,
                      .status = absl::UnavailableError("x"),
                      .suspects = {Rank{7}}});
       }},
      {"loss of worker 0",
       [](Fleet* f, StreamId) {
         if (f->workers.contains(WorkerId{0})) f->Lose(0);
       }},
      {"link dialled again",
       [](Fleet* f, StreamId) {
         if (!f->workers.contains(WorkerId{0})) return;
         f->workers.at(WorkerId{0}).inbox.clear();
         f->workers.at(WorkerId{0}).machine->Leave();
         f->Tell(WorkerEnrolled{f->EnrolOf(0)});
       }},
      {"attach", [](Fleet* f, StreamId) { f->Attach("r"); }},
      {"the same request again", [](Fleet* f, StreamId) { f->Send(MakeRequest("r")); }},
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

// ---- Requests

TEST(CoordinatorTest, ARequestIsAnsweredWithItsTextUsageAndTimes) {
  auto fleet = RunningFleet(MakeOptions());
  const Request request = MakeRequest("r", 40, 5);

  const StreamId stream = fleet->Send(request);
  fleet->Pump();

  EXPECT_TRUE(fleet->acceptances.contains(stream));
  EXPECT_EQ(fleet->Text(stream), TextOf(request));
  const Finish& finish = fleet->FinishOf(stream);
  EXPECT_EQ(finish.reason, FinishReason::kLength);
  EXPECT_EQ(finish.usage.prompt_tokens, 40);
  EXPECT_EQ(finish.usage.completion_tokens, 5);
  EXPECT_EQ(finish.usage.cached_tokens, 0);
  EXPECT_TRUE(finish.is_last_choice);
  EXPECT_EQ(fleet->BlocksUsed(), 0);
}

TEST(CoordinatorTest, AStopTokenEndsTheTextAndIsItsLastToken) {
  auto fleet = RunningFleet(MakeOptions());
  Request request = MakeRequest("r", 4, 100);
  request.ignore_eos = false;
  // A seed whose text has a stop token after some others.
  sim::Expected expected;
  for (request.sampling.seed = 1;; ++request.sampling.seed) {
    expected = ExpectedOutput(
        {request.prompt.data(), request.prompt.size()}, request.sampling, 100, false);
    if (expected.reason == FinishReason::kStop && expected.output.size() > 5) break;
  }

  const StreamId stream = fleet->Send(request);
  fleet->Pump();

  EXPECT_EQ(fleet->Text(stream), expected.output);
  EXPECT_EQ(fleet->FinishOf(stream).reason, FinishReason::kStop);
  EXPECT_EQ(fleet->FinishOf(stream).stop_token, sim::kStopToken);
}

TEST(CoordinatorTest, ASequenceWithoutATokenFailsAlone) {
  auto fleet = RunningFleet(MakeOptions());
  Request poisoned = MakeRequest("p", 4, 20);
  poisoned.sampling.seed = 3;
  ASSERT_TRUE(sim::IsPoisoned(poisoned.sampling));
  const Request healthy = MakeRequest("h", 4, 20);

  const StreamId bad = fleet->Send(poisoned);
  const StreamId good = fleet->Send(healthy);
  fleet->Pump();

  EXPECT_EQ(fleet->FinishOf(bad).reason, FinishReason::kError);
  EXPECT_EQ(fleet->FinishOf(bad).error.code(), absl::StatusCode::kDataLoss);
  EXPECT_EQ(fleet->Text(bad).size(), 3u);
  EXPECT_EQ(fleet->Text(good), TextOf(healthy));
  EXPECT_EQ(fleet->Status().epochs, 1);
}

TEST(CoordinatorTest, ChoicesHaveTheirOwnSeedsAndShareThePrompt) {
  CoordinatorOptions options = MakeOptions(1);
  auto fleet = RunningFleet(options);
  Request request = MakeRequest("r", 70, 5);
  request.num_choices = 3;

  const StreamId stream = fleet->Send(request);
  fleet->Pump();

  EXPECT_NE(fleet->Text(stream, 0), fleet->Text(stream, 1));
  EXPECT_NE(fleet->Text(stream, 1), fleet->Text(stream, 2));
  EXPECT_EQ(fleet->FinishOf(stream, 0).usage.cached_tokens, 0);
  EXPECT_EQ(fleet->FinishOf(stream, 1).usage.cached_tokens, 64);
  EXPECT_EQ(fleet->FinishOf(stream, 2).usage.cached_tokens, 64);
  int last = 0;
  for (int32_t c = 0; c < 3; ++c) last += fleet->FinishOf(stream, c).is_last_choice ? 1 : 0;
  EXPECT_EQ(last, 1);
}

TEST(CoordinatorTest, TenantsAndSaltsDoNotSharePrefixes) {
  auto fleet = RunningFleet(MakeOptions(1));
  Request first = MakeRequest("a", 70, 2);
  fleet->Send(first);
  fleet->Pump();
  Request same = MakeRequest("b", 70, 2);
  Request other_tenant = MakeRequest("c", 70, 2);
  other_tenant.tenant = "u";
  Request salted = MakeRequest("d", 70, 2);
  salted.cache_salt = "s";

  const StreamId s1 = fleet->Send(same);
  const StreamId s2 = fleet->Send(other_tenant);
  const StreamId s3 = fleet->Send(salted);
  fleet->Pump();

  EXPECT_EQ(fleet->FinishOf(s1).usage.cached_tokens, 64);
  EXPECT_EQ(fleet->FinishOf(s2).usage.cached_tokens, 0);
  EXPECT_EQ(fleet->FinishOf(s3).usage.cached_tokens, 0);
}

TEST(CoordinatorTest, LogitsOfEveryPromptPositionComeInOrder) {
  CoordinatorOptions options = MakeOptions();
  options.prefill_chunk = 7;
  Fleet fleet(options);
  fleet.Enrol(0);
  fleet.Enrol(1);
  fleet.Pump();
  Request request = MakeRequest("r", 30, 0);
  request.wants_prompt_logits = true;

  const StreamId stream = fleet.Send(request);
  fleet.Pump();

  std::vector<int32_t> expected(30);
  std::iota(expected.begin(), expected.end(), 0);
  EXPECT_EQ(fleet.logit_positions, expected);
  EXPECT_EQ(fleet.FinishOf(stream).reason, FinishReason::kLength);
  EXPECT_EQ(fleet.FinishOf(stream).usage.completion_tokens, 0);
  EXPECT_EQ(fleet.BlocksUsed(), 0);
}

TEST(CoordinatorTest, RefusesWithTheNumbersThatWouldFit) {
  CoordinatorOptions options = MakeOptions();
  options.max_positions = 2000;
  auto fleet = RunningFleet(options);

  const StreamId too_long = fleet->Send(MakeRequest("a", 4, 1997));
  const StreamId too_big = fleet->Send(MakeRequest("b", 600, 100));
  Request request = MakeRequest("c");
  request.deadline = fleet->now;
  const StreamId too_late = fleet->Send(request);

  EXPECT_EQ(fleet->refusals.at(too_long).code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(std::string(fleet->refusals.at(too_long).message()), HasSubstr("up to 1996"));
  EXPECT_EQ(fleet->refusals.at(too_big).code(), absl::StatusCode::kResourceExhausted);
  // 18 or 20 blocks of 32 positions, and one token more that needs none.
  EXPECT_THAT(std::string(fleet->refusals.at(too_big).message()), HasSubstr("would fit"));
  EXPECT_EQ(fleet->refusals.at(too_late).code(), absl::StatusCode::kDeadlineExceeded);
}

TEST(CoordinatorTest, TheQueueIsBoundedAndSaysWhatIsMissing) {
  Fleet fleet(MakeOptions(3));
  fleet.Enrol(0);
  for (int i = 0; i < 4; ++i) {
    const StreamId stream = fleet.Send(MakeRequest(std::to_string(i)));
    EXPECT_FALSE(fleet.refusals.contains(stream));
    EXPECT_FALSE(fleet.acceptances.contains(stream));  // Nobody knows yet whether it will fit
  }

  const StreamId stream = fleet.Send(MakeRequest("one too many"));

  EXPECT_EQ(fleet.refusals.at(stream).code(), absl::StatusCode::kResourceExhausted);
  EXPECT_THAT(std::string(fleet.refusals.at(stream).message()),
              HasSubstr("1 of 3 workers are here"));
}

TEST(CoordinatorTest, TooLittleMemorySaysHowMuchIsMissing) {
  Fleet fleet(MakeOptions(2));
  fleet.Enrol(0, 3);
  fleet.Enrol(1, 3);
  fleet.Pump();
  for (int i = 0; i < 4; ++i) fleet.Send(MakeRequest(std::to_string(i)));

  const StreamId stream = fleet.Send(MakeRequest("r"));

  EXPECT_THAT(std::string(fleet.refusals.at(stream).message()),
              HasSubstr("2 workers have memory for 6 experts of 8"));
}

TEST(CoordinatorTest, ADeadlineEndsAQueuedAndARunningRequest) {
  auto fleet = RunningFleet(MakeOptions());
  Request request = MakeRequest("running", 4, 100);
  request.deadline = fleet->now + absl::Seconds(1);
  const StreamId running = fleet->Send(request);
  fleet->Pump(20);
  fleet->Lose(1);
  fleet->Lose(0);
  request.id = "queued";
  const StreamId queued = fleet->Send(request);

  EXPECT_LE(fleet->core.NextDeadline(), request.deadline);
  fleet->Wait(absl::Seconds(1));

  EXPECT_EQ(fleet->FinishOf(running).reason, FinishReason::kDeadline);
  EXPECT_EQ(fleet->FinishOf(queued).reason, FinishReason::kDeadline);
  EXPECT_THAT(std::string(fleet->FinishOf(queued).error.message()),
              HasSubstr("0 of 1 workers are here"));
}

// ---- Names and readers

TEST(CoordinatorTest, TheSameNameAndBodyIsTheSameRequest) {
  auto fleet = RunningFleet(MakeOptions());
  Request request = MakeRequest("r");
  request.is_named = true;
  const StreamId first = fleet->Send(request);
  fleet->Pump();
  const int plans = fleet->num_plans;

  const StreamId again = fleet->Send(request);
  request.body_hash = 2;
  const StreamId other = fleet->Send(request);

  EXPECT_EQ(fleet->Text(again), fleet->Text(first));
  EXPECT_TRUE(fleet->HasFinished(again));
  EXPECT_EQ(fleet->num_plans, plans);  // Nothing was computed again
  EXPECT_EQ(fleet->refusals.at(other).code(), absl::StatusCode::kAlreadyExists);
}

TEST(CoordinatorTest, AttachContinuesFromAnyIndexUntilTheRetentionEnds) {
  CoordinatorOptions options = MakeOptions();
  options.retention = absl::Seconds(10);
  auto fleet = RunningFleet(options);
  Request request = MakeRequest("r");
  request.is_named = true;
  fleet->Send(request);
  fleet->Pump();
  const std::vector<TokenId> text = TextOf(request);

  for (int32_t from = 0; from <= 7; ++from) {
    const StreamId stream = fleet->Attach("r", 0, from);
    const size_t begin = std::min<size_t>(static_cast<size_t>(from), text.size());
    EXPECT_EQ(fleet->Text(stream),
              std::vector<TokenId>(text.begin() + static_cast<ptrdiff_t>(begin), text.end()));
    EXPECT_TRUE(fleet->HasFinished(stream));
  }
  const StreamId no_choice = fleet->Attach("r", 1, 0);
  EXPECT_EQ(fleet->refusals.at(no_choice).code(), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(fleet->Status().retained, 1);
  fleet->Wait(absl::Seconds(10));
  EXPECT_EQ(fleet->Status().retained, 0);
  const StreamId late = fleet->Attach("r", 0, 0);
  EXPECT_EQ(fleet->refusals.at(late).code(), absl::StatusCode::kNotFound);
}

TEST(CoordinatorTest, RetainedRequestsAreBounded) {
  CoordinatorOptions options = MakeOptions();
  options.max_retained = 2;
  auto fleet = RunningFleet(options);
  for (int i = 0; i < 4; ++i) {
    Request request = MakeRequest(std::to_string(i));
    request.is_named = true;
    fleet->Send(request);
    fleet->Pump();
    fleet->Wait(absl::Milliseconds(1));
  }
  EXPECT_EQ(fleet->Status().retained, 2);
  EXPECT_TRUE(fleet->refusals.contains(fleet->Attach("1")));
  EXPECT_FALSE(fleet->refusals.contains(fleet->Attach("2")));
}

TEST(CoordinatorTest, ANamedRequestRunsOnWithoutReadersAnUnnamedOneEnds) {
  auto fleet = RunningFleet(MakeOptions());
  Request named = MakeRequest("named", 4, 50);
  named.is_named = true;
  const StreamId n = fleet->Send(named);
  const StreamId u = fleet->Send(MakeRequest("unnamed", 4, 50));
  fleet->Pump(10);

  fleet->Tell(ClientGone{n});
  fleet->Tell(ClientGone{u});
  fleet->Pump();

  const StreamId back = fleet->Attach("named");
  EXPECT_EQ(fleet->Text(back), TextOf(named));
  EXPECT_EQ(fleet->refusals.at(fleet->Attach("unnamed")).code(), absl::StatusCode::kNotFound);
  EXPECT_EQ(fleet->BlocksUsed(), 0);
}

TEST(CoordinatorTest, AParkedReaderFindsEverythingWhenItReturns) {
  CoordinatorOptions options = MakeOptions();
  options.retention = absl::Seconds(10);
  auto fleet = RunningFleet(options);
  const Request request = MakeRequest("r", 4, 50);
  const StreamId stream = fleet->Send(request);
  fleet->Pump(10);
  const int32_t heard = static_cast<int32_t>(fleet->Text(stream).size());

  fleet->Tell(ClientGone{stream, /*keep=*/true});
  fleet->Pump();
  const StreamId back = fleet->Attach("r", -1, heard);

  std::vector<TokenId> all = fleet->Text(stream);
  all.insert(all.end(), fleet->Text(back).begin(), fleet->Text(back).end());
  EXPECT_EQ(all, TextOf(request));
  EXPECT_TRUE(fleet->HasFinished(back));
}

TEST(CoordinatorTest, AStopStringCutsTheOutputForEveryLaterReader) {
  auto fleet = RunningFleet(MakeOptions());
  Request request = MakeRequest("r", 4, 50);
  request.is_named = true;
  const StreamId stream = fleet->Send(request);
  while (fleet->Text(stream).size() < 8) fleet->PumpOne();

  fleet->Tell(StopFound{"t", "r", 0, 4});
  fleet->Pump();

  EXPECT_EQ(fleet->FinishOf(stream).reason, FinishReason::kStopString);
  EXPECT_EQ(fleet->FinishOf(stream).usage.completion_tokens, 5);
  const StreamId later = fleet->Attach("r");
  EXPECT_EQ(fleet->Text(later).size(), 5u);
  EXPECT_EQ(fleet->FinishOf(later).reason, FinishReason::kStopString);
  EXPECT_EQ(fleet->BlocksUsed(), 0);
}

TEST(CoordinatorTest, CancelFreesTheBlocksOnceTheStepInFlightReturns) {
  auto fleet = RunningFleet(MakeOptions(1));
  fleet->Send(MakeRequest("r", 100, 50));

  fleet->Tell(CancelAsked{"t", "r"});
  EXPECT_GT(fleet->BlocksUsed(), 0);  // Rows are still being written
  fleet->Pump();

  EXPECT_EQ(fleet->BlocksUsed(), 0);
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

  EXPECT_THAT(fleet->closed, testing::ElementsAre(WorkerId{1}));
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
  Fleet fleet(options);
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
  Fleet fleet(MakeOptions(1));
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
  EXPECT_THAT(fleet->closed, testing::ElementsAre(WorkerId{1}));
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

}  // namespace
}  // namespace shoal
