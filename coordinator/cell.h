// One cell: its epochs (who is in, who holds which experts), its steps in flight, and when the next
// plan may leave. Two questions run through it: is there an epoch (EpochState), and is there a
// better membership to go to (target_). Everything that happens ends in Advance(), which takes the
// next step of both. Next: coordinator/cell_steps.cc
#pragma once

#include <cstdint>
#include <deque>
#include <map>
#include <memory>
#include <optional>
#include <set>
#include <string>
#include <vector>

#include "absl/time/time.h"

#include "base/ids.h"
#include "coordinator/cluster/placement.h"
#include "coordinator/fleet.h"
#include "coordinator/schedule/scheduler.h"
#include "proto/cluster.h"
#include "proto/step.h"

namespace shoal {

// What a cell tells the coordinator while it handles an event. Calls may end the sequence.
class CellListener {
 public:
  virtual ~CellListener() = default;

  // The home rank sampled the next token of a running or leaving sequence.
  virtual void OnToken(Sequence* sequence, const SampledToken& token) = 0;
  virtual void OnLogits(Sequence* sequence, const LogitRows& rows) = 0;
  // Its home rank refuses to compute it.
  virtual void OnRejected(Sequence* sequence, const absl::Status& why) = 0;
};

class Cell {
 public:
  // `fleet` and `listener` outlive the cell.
  Cell(CellId id, Fleet* fleet, CellListener* listener);

  // Membership. A worker belongs to the cell from Join to Leave, in an epoch or on its way into
  // one. Leave: it is lost; its sequences depart.
  void Join(WorkerId worker);
  void Leave(WorkerId worker);

  // Messages of members.
  // Not OK: the worker cannot serve at all.
  absl::Status OnExpertsLoaded(WorkerId worker, const ExpertsLoaded& message);
  // Rank 0 tells how it can be found: handed to the other ranks of the epoch being built.
  void OnBootstrap(WorkerId worker, const Bootstrap& message);
  void OnReady(WorkerId worker, const Ready& message);
  void OnStepResult(WorkerId worker, const StepResult& message);
  void OnRefusal(WorkerId worker, const Refusal& message);

  // Members that are lost because they kept the others waiting: silent when an epoch was built, or
  // named again and again by failing ranks. Ends the epoch of a step that passed its deadline.
  std::vector<WorkerId> Overdue();

  // Moves to the target membership if that is due; sends plans while there is work.
  void Advance();

  // The next time at which Overdue or Advance could change something.
  absl::Time NextDeadline() const;

  // Sequences. `home` is an index into homes().
  void Admit(size_t home, Sequence* sequence);
  // Brings its count of epoch changes up to date.
  void CountEpochs(Sequence* sequence) const;
  void End(Sequence* sequence);
  // The record is not needed any more.
  void Forget(WorkerId worker, SequenceId sequence);
  // Gives up all homes' sequences: another cell can go on with them.
  void EvictAll();
  std::vector<Sequence*> TakeDeparted();

  // The ranks that can take sequences; empty unless running. By rank.
  std::vector<const Scheduler*> homes() const;

  CellId id() const { return id_; }

  const std::set<WorkerId>& workers() const { return workers_; }

  bool is_running() const { return state_ == EpochState::kRunning; }

  // No membership can be formed by the workers that are here; why_waiting() says what is missing.
  bool is_stuck() const { return state_ == EpochState::kNone && !target_.has_value(); }

  const std::string& why_waiting() const { return why_waiting_; }

  int64_t num_epochs() const { return num_epochs_; }

  int64_t num_preemptions() const;

  CellStatus Status(absl::Time now) const;

 private:
  enum class EpochState : uint8_t { kNone, kConfiguring, kRunning };

  // A membership with everything that Configure says about it.
  struct Layout {
    std::vector<WorkerId> ranks;
    Placement placement;  // Over ranks

    std::set<ExpertId> Share(size_t rank) const;

    friend bool operator==(const Layout&, const Layout&) = default;
  };

  struct Home {
    std::unique_ptr<Scheduler> scheduler;
    std::vector<SequenceId> forget;  // Not yet told to the worker
  };

  struct RankPart {
    std::vector<PlanEntry> entries;
    std::vector<SequenceId> forget;
    bool has_returned = false;
  };

  struct StepInFlight {
    StepId step;
    absl::Time sent;
    absl::Duration allowed;
    int32_t most_rows = 0;        // Of one rank
    std::vector<RankPart> parts;  // By rank
    size_t num_returned = 0;
  };

  // Membership.
  void Retarget();
  std::optional<Layout> BestLayout();
  absl::StatusOr<Layout> Place(const std::vector<WorkerId>& ranks, PlacementGoal goal) const;
  void AskLoads();
  bool IsLoaded(const Layout& layout) const;

  bool IsReadyToMove() const { return target_.has_value() && IsLoaded(*target_); }

  void Configure();
  void BuildHomes();
  void EndEpoch();
  void FailEpoch(const std::string& why, const std::vector<Rank>& suspects);

  // Steps (cell_steps.cc).
  void SendPlans();
  bool SendStep();
  absl::Duration Allowed(int32_t most_rows) const;
  void Complete(const StepInFlight& step);
  static absl::Status CheckResult(const Scheduler& scheduler,
                                  const RankPart& part,
                                  const StepResult& result);
  std::vector<Sequence*> CountRejection(const Scheduler& scheduler, const RankPart& part);
  void Accept(WorkerId worker, const RankPart& part, const StepResult& result);
  absl::Time StepDeadline() const;

  WorkerStatus StatusOf(WorkerId worker, absl::Time now) const;
  std::optional<Rank> RankOf(WorkerId worker) const;

  const CellId id_;
  Fleet* const fleet_;
  CellListener* const listener_;

  std::set<WorkerId> workers_;
  std::map<WorkerId, Home> homes_;  // Of workers that have been in an epoch; a subset of workers_
  std::vector<Sequence*> departed_;

  EpochState state_ = EpochState::kNone;
  Layout layout_;  // Of the epoch; of the last one if there is none
  Epoch epoch_;
  StepId last_step_;
  bool has_run_ = false;
  std::set<WorkerId> ready_;
  absl::Time configure_deadline_;

  std::optional<Layout> target_;
  std::string why_waiting_;
  absl::Time retry_at_;
  int num_failures_ = 0;                 // Epochs that ended badly since a step completed
  std::map<WorkerId, int> accusations_;  // Of which so many named this worker

  std::deque<StepInFlight> steps_;  // In order; at most pipeline_depth
  absl::Time front_since_;          // When the first of them had nothing before it
  absl::Duration row_time_;         // Slowest step's time per row, slowly forgotten
  int64_t num_epochs_ = 0;
  int64_t num_past_preemptions_ = 0;  // Of homes that are gone
  size_t next_forced_ = 0;            // Rank of the next forced preemption
};

}  // namespace shoal
