// A coordinator, its workers and its readers in one hand, for tests that go event by event. The
// workers are those of the simulation; they answer when the test says so.
#pragma once

#include <algorithm>
#include <cstdint>
#include <deque>
#include <map>
#include <memory>
#include <optional>
#include <set>
#include <string>
#include <utility>
#include <variant>
#include <vector>

#include "gtest/gtest.h"

#include "coordinator/coordinator.h"
#include "tests/sim/oracle.h"
#include "tests/sim/sim_worker.h"

namespace shoal {

inline CoordinatorOptions MakeOptions(int32_t workers = 2) {
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

inline Request MakeRequest(const std::string& id, int32_t prompt = 4, int32_t max_tokens = 6) {
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

inline std::vector<TokenId> TextOf(const Request& request) {
  return sim::ExpectedOutput({request.prompt.data(), request.prompt.size()},
                             request.sampling,
                             request.max_tokens,
                             request.ignore_eos,
                             request.is_constrained)
      .output;
}

class FleetRig {
 public:
  explicit FleetRig(const CoordinatorOptions& options)
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
      } else if (auto* ask = std::get_if<AskMask>(&action)) {
        asked_masks.push_back(std::move(*ask));
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
        std::make_unique<sim::SimWorker>(sim::SimWorkerOptions{.num_full_blocks = 20,
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
      } else if (std::holds_alternative<StepPlan>(message) &&
                 worker.machine->next_plan() != nullptr) {
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
    std::unique_ptr<sim::SimWorker> machine;
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
  std::vector<AskMask> asked_masks;
  std::vector<int32_t> logit_positions;
  std::optional<Rank> accused;  // Every step fails, and this one is named
  WorkerId last_turn;
  int num_plans = 0;
  uint64_t last_incarnation = 0;
  uint64_t last_stream = 0;
};

inline std::unique_ptr<FleetRig> RunningFleet(const CoordinatorOptions& options) {
  auto fleet = std::make_unique<FleetRig>(options);
  for (int32_t w = 0; w < options.workers_per_cell; ++w) fleet->Enrol(static_cast<uint32_t>(w));
  fleet->Pump();
  EXPECT_EQ(fleet->CellState(), "running");
  return fleet;
}

}  // namespace shoal
