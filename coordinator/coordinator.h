// The coordinator's core: a value that turns (now, event) into actions. It owns all state of the
// fleet under one leader. No thread, socket, clock, log or text in it; one thread calls it. Driven
// by coordinator/serve/event_loop in production and by tests/sim in virtual time. Next:
// coordinator/cell.cc
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "absl/time/time.h"

#include "base/ids.h"
#include "coordinator/events.h"
#include "coordinator/schedule/planted_bug.h"

namespace shoal {

struct CoordinatorOptions {
  Term term{1};
  Incarnation incarnation{1};
  uint64_t seed = 1;  // For epoch keys and the like

  // Model facts the scheduler needs.
  int32_t num_experts = 0;
  int32_t num_layers = 0;
  int32_t max_positions = 0;   // Context limit
  int32_t sliding_window = 0;  // 0: the model has no window layers

  // Cells. A cell is formed when `workers_per_cell` compatible workers have enrolled; with fewer
  // left after a loss it goes on as long as their memory holds every expert and `min_workers` are
  // there.
  int32_t workers_per_cell = 1;
  int32_t min_workers = 1;
  int32_t expert_copies = 1;  // Replicas of each expert, where memory allows

  // Scheduling.
  int32_t max_rows = 512;       // Rows of one rank in one step
  int32_t prefill_chunk = 512;  // Of which one sequence's prefill takes at most so many
  int32_t max_running = 256;    // Sequences of one rank in one step
  int32_t max_waiting = 1024;   // Requests queued; beyond: refused with kResourceExhausted
  int32_t pipeline_depth = 2;   // Plans in flight: 1 or 2
  bool prefix_cache = true;
  // Test settings: both change timing and memory, never a token.
  int32_t force_preempt_every = 0;             // In steps; 0: preempt only for want of blocks
  PlantedBug planted_bug = PlantedBug::kNone;  // tests/sim only

  // Time.
  absl::Duration step_deadline = absl::Seconds(30);   // Floor of a step's deadline
  absl::Duration beat_deadline = absl::Seconds(5);    // Silence after which a worker is lost
  absl::Duration epoch_deadline = absl::Seconds(10);  // To build an exchange
  absl::Duration retention = absl::Seconds(120);      // A finished named request stays attachable
  int32_t max_retained = 4096;                        // And at most so many of them
  absl::Duration mask_patience = absl::Seconds(5);    // Then a mask is asked for again
};

struct WorkerStatus {
  WorkerId worker;
  Incarnation incarnation;
  std::string host;
  std::string process;
  std::string phase;
  CellId cell;
  Rank rank{-1};                                  // -1: not in an epoch
  int32_t full_blocks = 0, full_blocks_used = 0;  // Used: held by sequences
  int32_t window_blocks = 0, window_blocks_used = 0;
  int32_t full_blocks_cached = 0;  // Free to take, but still a known prefix
  int32_t sequences = 0;
  int64_t load_done_bytes = 0, load_total_bytes = 0, resident_bytes = 0;
  absl::Duration silent_for;
};

struct CellStatus {
  CellId cell;
  Epoch epoch;
  StepId step;
  std::string state;  // "forming", "loading", "configuring", "running", "waiting for workers"
  std::vector<WorkerStatus> workers;
  int32_t min_replicas = 0;
};

struct FleetStatus {
  Term term;
  std::vector<CellStatus> cells;
  std::vector<WorkerStatus> spare_workers;
  int32_t waiting = 0, running = 0, retained = 0;
  int64_t accepted = 0, refused = 0, finished = 0, preemptions = 0, epochs = 0;
  int64_t prompt_tokens = 0, cached_tokens = 0, output_tokens = 0;
  bool is_ready = false;  // Steps can run
};

class Coordinator {
 public:
  explicit Coordinator(const CoordinatorOptions& options);
  ~Coordinator();

  // Handles one event; appends what is to be done, in order.
  void Handle(absl::Time now, const Event& event, std::vector<Action>* actions);

  // The next time at which a Tick could change something.
  absl::Time NextDeadline() const;

  FleetStatus Status(absl::Time now) const;

 private:
  class Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace shoal
