// Who runs the next step on one rank, with how many positions; who is preempted. Decodes come
// first, then prefills in order of age, until the rank's rows are used up.
#pragma once

#include <cstdint>
#include <map>
#include <span>
#include <vector>

#include "base/ids.h"
#include "coordinator/schedule/kv_space.h"
#include "coordinator/schedule/planted_bug.h"
#include "coordinator/schedule/sequence.h"
#include "proto/step.h"

namespace shoal {

struct SchedulerLimits {
  int32_t max_rows = 0;       // Rows of the rank in one step
  int32_t prefill_chunk = 0;  // Of which one prefill takes at most so many
  int32_t max_running = 0;    // Sequences on the rank
  bool prefix_cache = true;
  int32_t window = 0;
  PlantedBug planted_bug = PlantedBug::kNone;
};

// One rank's sequences and their memory. A sequence is here from Admit until it appears in
// TakeDeparted(): then its blocks are back and it is kWaiting (preempted) or kEnded. Sequences are
// owned by the coordinator and outlive their stay.
class Scheduler {
 public:
  Scheduler(const SchedulerLimits& limits, int32_t num_full_blocks, int32_t num_window_blocks);

  // Positions that this rank would not have to compute.
  int32_t CachedPositions(const Sequence& sequence) const;

  // There is a place for it, and blocks for what it has computed so far.
  bool HasRoomFor(const Sequence& sequence) const;

  // Gives a waiting sequence a home here.
  void Admit(Sequence* sequence);

  // This rank's entries of the next step; empty if it has nothing to compute. A sequence whose last
  // step was rejected is planned alone.
  std::vector<PlanEntry> Plan();

  // An entry has returned. Its token, if accepted, has been appended to the sequence.
  void Returned(const PlanEntry& entry);

  // Every window block that later positions cannot see is given back at Returned(), not before: a
  // lost epoch may make positions in flight run again.
  void RewindAll();

  // Null if it is not here.
  Sequence* Find(SequenceId sequence) const;

  // The sequence is finished. REQUIRES: it is here, kRunning or kLeaving.
  void End(Sequence* sequence);

  // Preempts the newest sequence that has grown since it came; for tests of recomputation.
  // Returns whether there was one.
  bool PreemptNewest();

  // Everyone leaves at once, without blocks: the rank's memory is gone or not ours any more.
  void Evict();

  // Those who left since the last call, in order.
  std::vector<Sequence*> TakeDeparted();

  const KvSpace& space() const { return space_; }

  int32_t num_sequences() const { return static_cast<int32_t>(sequences_.size()); }

  // Rows that the present sequences ask for: the measure of load.
  int64_t RowsOwed() const;

  int64_t num_preemptions() const { return num_preemptions_; }

 private:
  void PlanOne(Sequence* sequence, int32_t max_positions, std::vector<PlanEntry>* entries);

  Sequence* OldestSuspect() const;

  bool Has(PlantedBug bug) const { return limits_.planted_bug == bug; }

  bool MakeRoom(const Sequence& sequence);
  void Publish(Sequence* sequence, int32_t computed);
  void Preempt(Sequence* sequence);
  void Depart(Sequence* sequence);

  const SchedulerLimits limits_;
  KvSpace space_;
  std::map<SequenceId, Sequence*> sequences_;  // By age
  std::vector<Sequence*> departed_;
  int32_t num_leaving_ = 0;  // Sequences here whose blocks will return without further plans
  int64_t num_preemptions_ = 0;
};

}  // namespace shoal
