// What the parts of the core share while one event is handled: the options, who is alive, the
// counters that never go back, and the list of actions.
#pragma once

#include <algorithm>
#include <cstdint>
#include <string>
#include <utility>
#include <vector>

#include "absl/time/time.h"

#include "base/check.h"
#include "base/prng.h"
#include "coordinator/cluster/roster.h"
#include "coordinator/coordinator.h"
#include "coordinator/events.h"

namespace shoal {

// Owned by the coordinator; its cells hold a reference.
class Fleet {
 public:
  explicit Fleet(const CoordinatorOptions& given)
      : options(given),
        roster(given.num_experts, given.num_layers),
        prng(given.seed),
        term_(given.term) {}

  Fleet(const Fleet&) = delete;
  Fleet& operator=(const Fleet&) = delete;

  // A message to the worker's present link. REQUIRES: the worker is a member.
  void Send(WorkerId worker, ToWorker message) {
    const Incarnation incarnation = roster.At(worker).enrol.incarnation;
    actions->push_back(SendToWorker{worker, incarnation, std::move(message)});
  }

  void Say(std::string text) { actions->push_back(Note{std::move(text)}); }

  // What is known of the worker beside its part in a cell. REQUIRES: it is a member.
  WorkerStatus Describe(WorkerId id, absl::Time at) const {
    const EnrolledWorker& worker = roster.At(id);
    WorkerStatus status;
    status.worker = id;
    status.incarnation = worker.enrol.incarnation;
    status.host = worker.enrol.host;
    status.process = worker.enrol.process;
    status.phase = worker.beat.phase;
    status.load_done_bytes = worker.beat.load_done_bytes;
    status.load_total_bytes = worker.beat.load_total_bytes;
    status.resident_bytes = worker.beat.resident_bytes;
    status.silent_for = at - worker.last_heard;
    return status;
  }

  Term term() const { return term_; }

  // REQUIRES: higher than the present one.
  void RaiseTerm(Term term) {
    CHECK_GT(term, term_);
    term_ = term;
  }

  // Numbers that no earlier membership, sequence or step of this or a lower term has had. Every
  // term has a range of 2^32 of its own, so that they need not be remembered across terms.
  Epoch NextEpoch() { return Epoch{last_epoch_ = Next(last_epoch_)}; }

  SequenceId NextSequence() { return SequenceId{last_sequence_ = Next(last_sequence_)}; }

  // After `last` of one cell.
  StepId NextStep(StepId last) const { return StepId{Next(last.value)}; }

  // A worker has seen an epoch that is not ours: go beyond it.
  void SkipEpochs(Epoch seen) { last_epoch_ = std::max(last_epoch_, seen.value); }

  uint64_t NextPlacementVersion() { return ++last_placement_version_; }

  const CoordinatorOptions options;
  Roster roster;
  Prng prng;
  absl::Time now;
  std::vector<Action>* actions = nullptr;  // Of the event being handled

 private:
  uint64_t Next(uint64_t last) const { return std::max(last, (term_.value - 1) << 32) + 1; }

  Term term_;
  uint64_t last_epoch_ = 0;
  uint64_t last_sequence_ = 0;
  uint64_t last_placement_version_ = 0;
};

}  // namespace shoal
