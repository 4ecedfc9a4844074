// A fleet in one thread and in virtual time, from one seed: the real coordinator core, workers with
// the real fence and records, simulated links, exchanges, clients and faults.
#pragma once

#include <cstdint>
#include <deque>
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <queue>
#include <set>
#include <string>
#include <vector>

#include "absl/time/time.h"

#include "base/prng.h"
#include "coordinator/coordinator.h"
#include "tests/sim/checkers.h"
#include "tests/sim/faults.h"
#include "tests/sim/sim_worker.h"

namespace shoal::sim {

struct RunOptions {
  uint64_t seed = 1;
  PlantedBug bug = PlantedBug::kNone;  // In the core
  bool is_fenced = true;               // false: a bug planted in the workers
  bool has_trace = false;              // Print what the coordinator notes
};

struct RunReport {
  std::optional<std::string> violation;  // The first: "checker: what"
  uint64_t fingerprint = 0;              // Of everything that happened
  int64_t num_events = 0;
  int64_t virtual_us = 0;
  int64_t num_output_tokens = 0;
  int64_t num_epochs = 0;
  int64_t num_preemptions = 0;
  int64_t num_cached_tokens = 0;
};

// Runs one seed to its end, or to the first violation.
RunReport RunSeed(const RunOptions& options);

class Simulator {
 public:
  explicit Simulator(const RunOptions& options);

  RunReport Run();

 private:
  using Micros = int64_t;

  // One connection of a worker. Messages of a link arrive in order, and only while it lives.
  struct Link {
    uint64_t number = 0;  // 0: none
    Micros last_down = 0;
    Micros last_up = 0;
  };

  struct Host {                         // A worker process's place
    std::unique_ptr<SimWorker> worker;  // Null: the process is not there
    Incarnation incarnation;
    Link link;
    Micros frozen_until = 0;
    StepId running;  // The step that it waits for; 0: none
  };

  struct ExchangeState {  // Of one epoch
    std::vector<WorkerId> members;
    std::set<WorkerId> joined;
    bool is_broken = false;
    std::vector<Rank> suspects;
    std::map<StepId, std::set<WorkerId>> arrived;
  };

  // Time.
  void At(Micros when, std::function<void()> what);

  Micros Delay() {
    return 50 + static_cast<Micros>(prng_.Below(static_cast<uint64_t>(scene_.faults.max_delay)));
  }

  absl::Time Now() const { return absl::UnixEpoch() + absl::Microseconds(now_); }

  bool IsQuiet() const { return now_ >= scene_.faults.end; }

  void Violate(const std::string& what);

  void Mix(uint64_t value) { report_.fingerprint = Mix64(report_.fingerprint ^ value) + 1; }

  // The coordinator.
  void Tell(const Event& event);
  void Do(const Action& action);
  void Deliver(const SendToWorker& send);
  void Print(WorkerId worker, const StepPlan& plan) const;
  void CheckBooks();

  // Workers and links.
  void Start(WorkerId id);
  void Crash(WorkerId id);
  void Dial(WorkerId id);
  void Unlink(WorkerId id, bool is_told);
  void Beat(WorkerId id, Incarnation incarnation);
  void SendUp(WorkerId id, FromWorker message);
  void Receive(WorkerId id, uint64_t link, const ToWorker& message);
  bool Lives(WorkerId id, Incarnation incarnation);

  // Exchanges.
  void Join(WorkerId id);
  void BreakExchange(WorkerId id);
  void Break(ExchangeState* exchange, std::vector<Rank> suspects);
  void FailRank(WorkerId id, Epoch epoch);
  void TryStart(WorkerId id);
  void CompleteStep(ExchangeState* exchange, Epoch epoch, StepId step);
  void FinishStep(WorkerId id, Incarnation incarnation, Epoch epoch, StepId step);

  // Clients and faults.
  void PlanRequests();
  Request DrawRequest(int32_t number);
  void Answer(const AskMask& ask);
  void Arrive(size_t asked);
  void LiveOn(StreamId stream, size_t asked);
  void Leave(StreamId stream, size_t asked, bool keep);
  void Attach(size_t asked, int32_t choice, int32_t next_index);
  void FindStop(StreamId stream, size_t asked);
  void PlanFaults();
  void Repeat(Micros every, const std::function<void()>& fault);
  WorkerId AnyWorker();

  // The end.
  bool IsIdle();
  void CheckEnd();

  const RunOptions options_;
  Prng prng_;
  Scene scene_;
  RunReport report_;
  Coordinator coordinator_;
  StreamChecker streams_;
  PlanChecker plans_;

  Micros now_ = 0;

  struct Entry {
    Micros when;
    uint64_t order;
    std::shared_ptr<std::function<void()>> what;

    bool operator>(const Entry& other) const {
      return std::pair(when, order) > std::pair(other.when, other.order);
    }
  };

  std::priority_queue<Entry, std::vector<Entry>, std::greater<>> heap_;
  uint64_t order_ = 0;

  std::map<WorkerId, Host> hosts_;
  std::map<Epoch, ExchangeState> exchanges_;
  uint64_t last_link_ = 0;
  uint64_t last_stream_ = 0;
  std::deque<Asked> asked_;
  std::deque<StreamId> first_streams_;
  int32_t num_arrived_ = 0;
};

}  // namespace shoal::sim
