#include "coordinator/schedule/scheduler.h"

#include <algorithm>
#include <utility>

#include "base/check.h"
#include "coordinator/schedule/plan.h"

namespace shoal {
namespace {

// What a running sequence weighs beside the rows it owes: it will ask for one row in every step to
// come.
constexpr int64_t kRowsPerRunningSequence = 16;

bool IsDecode(const Sequence& sequence) {
  return sequence.unplanned_positions() == 1 && sequence.planned_computed > 0;
}

}  // namespace

Scheduler::Scheduler(const SchedulerLimits& limits,
                     int32_t num_full_blocks,
                     int32_t num_window_blocks)
    : limits_(limits), space_(num_full_blocks, num_window_blocks, limits.window) {}

int32_t Scheduler::CachedPositions(const Sequence& sequence) const {
  if (!limits_.prefix_cache || !sequence.uses_prefix_cache) return 0;
  return space_.CachedPositions(sequence.cache_scope, sequence.tokens);
}

bool Scheduler::HasRoomFor(const Sequence& sequence) const {
  // Every sequence gets a row in each step, so no decode waits behind another.
  if (num_sequences() >= std::min(limits_.max_running, limits_.max_rows)) return false;
  if (!space_.CouldEverHold(sequence.max_positions())) return false;
  if (sequences_.empty()) return true;
  return NumBlocks(sequence.length() + 1) <= space_.full().num_available() &&
         space_.ReachablePositions(BlockTable()) >= std::min(sequence.length(), space_.window());
}

void Scheduler::Admit(Sequence* sequence) {
  CHECK(sequence->state == SequenceState::kWaiting);
  CHECK_EQ(sequence->rows_in_flight, 0);
  sequence->state = SequenceState::kRunning;
  sequence->computed = 0;
  if (limits_.prefix_cache && sequence->uses_prefix_cache) {
    sequence->computed = space_.Adopt(sequence->cache_scope, sequence->tokens, &sequence->table);
  }
  sequence->length_at_admission = sequence->length();
  Rewind(sequence);
  CHECK(sequences_.emplace(sequence->id, sequence).second);
}

std::vector<PlanEntry> Scheduler::Plan() {
  std::vector<PlanEntry> entries;
  if (Sequence* const suspect = OldestSuspect(); suspect != nullptr) {
    const bool has_next = suspect->rows_in_flight == 0 && suspect->unplanned_positions() > 0;
    if (has_next) PlanOne(suspect, std::min(limits_.max_rows, limits_.prefill_chunk), &entries);
    return entries;
  }
  int32_t rows = limits_.max_rows;
  std::vector<Sequence*> decodes;
  std::vector<Sequence*> prefills;
  for (const auto& [id, sequence] : sequences_) {
    if (sequence->state != SequenceState::kRunning || sequence->unplanned_positions() == 0) {
      continue;
    }
    (IsDecode(*sequence) ? decodes : prefills).push_back(sequence);
  }
  for (const std::vector<Sequence*>& group : {decodes, prefills}) {
    for (Sequence* sequence : group) {
      if (rows == 0) return entries;
      if (sequence->state != SequenceState::kRunning) continue;  // An elder has preempted it
      const size_t num_entries = entries.size();
      PlanOne(sequence, std::min(rows, limits_.prefill_chunk), &entries);
      if (entries.size() > num_entries) rows -= entries.back().num_positions;
    }
  }
  return entries;
}

Sequence* Scheduler::OldestSuspect() const {
  for (const auto& [id, sequence] : sequences_) {
    if (sequence->state == SequenceState::kRunning && sequence->rejections > 0) return sequence;
  }
  return nullptr;
}

void Scheduler::PlanOne(Sequence* sequence,
                        int32_t max_positions,
                        std::vector<PlanEntry>* entries) {
  const auto reachable = [&] {
    return space_.ReachablePositions(sequence->table) - sequence->planned_computed;
  };
  while (reachable() <= 0) {
    if (!MakeRoom(*sequence)) return;
  }
  const int32_t num_positions =
      std::min({max_positions, sequence->unplanned_positions(), reachable()});
  CHECK(space_.Grow(sequence->planned_computed + num_positions, &sequence->table));
  entries->push_back(PlanNext(num_positions, sequence));
  if (Has(PlantedBug::kSlideAhead)) space_.Slide(sequence->planned_computed, &sequence->table);
  if (Has(PlantedBug::kPublishAhead)) Publish(sequence, sequence->planned_computed);
}

// Preempts the newest sequence with blocks that is younger than `sequence`. Returns whether blocks
// came back at once; if not, they come back with rows in flight, or elders keep them. The oldest
// sequence always gets what it needs, hence all do in the end.
bool Scheduler::MakeRoom(const Sequence& sequence) {
  if (num_leaving_ > 0) return false;
  for (auto it = sequences_.rbegin(); it->second != &sequence; ++it) {
    Sequence* const victim = it->second;
    if (victim->table.full.empty()) continue;
    const bool at_once = victim->rows_in_flight == 0;
    Preempt(victim);
    return at_once;
  }
  return false;
}

void Scheduler::Preempt(Sequence* sequence) {
  ++num_preemptions_;
  ++sequence->preemptions;
  sequence->state = SequenceState::kLeaving;
  ++num_leaving_;
  if (sequence->rows_in_flight == 0) Depart(sequence);
}

bool Scheduler::PreemptNewest() {
  for (auto it = sequences_.rbegin(); it != sequences_.rend(); ++it) {
    Sequence* const sequence = it->second;
    if (sequence->state != SequenceState::kRunning) continue;
    if (sequence->length() <= sequence->length_at_admission) continue;
    Preempt(sequence);
    return true;
  }
  return false;
}

void Scheduler::Returned(const PlanEntry& entry) {
  const auto found = sequences_.find(entry.sequence);
  if (found == sequences_.end() && Has(PlantedBug::kFreeInFlight)) return;
  CHECK(found != sequences_.end());
  Sequence* const sequence = found->second;
  Settle(entry, sequence);
  sequence->rejections = 0;
  Publish(sequence, sequence->computed);
  space_.Slide(sequence->computed, &sequence->table);
  if (sequence->state != SequenceState::kRunning && sequence->rows_in_flight == 0) {
    Depart(sequence);
  }
}

void Scheduler::Publish(Sequence* sequence, int32_t computed) {
  if (!limits_.prefix_cache || !sequence->uses_prefix_cache) return;
  const int32_t known = std::min(computed, sequence->length());
  space_.Publish(sequence->cache_scope, sequence->tokens, known, &sequence->table);
}

void Scheduler::RewindAll() {
  std::vector<Sequence*> leaving;
  for (const auto& [id, sequence] : sequences_) {
    const int32_t num_blocks_sent = sequence->num_blocks_sent;
    Rewind(sequence);
    if (Has(PlantedBug::kKeepTables)) sequence->num_blocks_sent = num_blocks_sent;
    if (sequence->state != SequenceState::kRunning) leaving.push_back(sequence);
  }
  for (Sequence* sequence : leaving) Depart(sequence);
}

Sequence* Scheduler::Find(SequenceId sequence) const {
  const auto found = sequences_.find(sequence);
  return found == sequences_.end() ? nullptr : found->second;
}

void Scheduler::End(Sequence* sequence) {
  CHECK(sequences_.contains(sequence->id));
  if (sequence->state == SequenceState::kRunning) ++num_leaving_;
  sequence->state = SequenceState::kEnded;
  if (Has(PlantedBug::kFreeInFlight)) Rewind(sequence);
  if (sequence->rows_in_flight == 0) Depart(sequence);
}

void Scheduler::Depart(Sequence* sequence) {
  CHECK_EQ(sequence->rows_in_flight, 0);
  CHECK_EQ(sequences_.erase(sequence->id), 1u);
  if (sequence->state != SequenceState::kRunning) --num_leaving_;
  if (sequence->state != SequenceState::kEnded) sequence->state = SequenceState::kWaiting;
  space_.Release(&sequence->table);
  sequence->computed = 0;
  Rewind(sequence);
  departed_.push_back(sequence);
}

void Scheduler::Evict() {
  std::vector<Sequence*> all;
  for (const auto& [id, sequence] : sequences_) all.push_back(sequence);
  for (Sequence* sequence : all) {
    Rewind(sequence);
    Depart(sequence);
  }
}

std::vector<Sequence*> Scheduler::TakeDeparted() {
  return std::exchange(departed_, {});
}

int64_t Scheduler::RowsOwed() const {
  int64_t rows = 0;
  for (const auto& [id, sequence] : sequences_) {
    if (sequence->state != SequenceState::kRunning) continue;
    rows += kRowsPerRunningSequence + sequence->length() - sequence->computed;
  }
  return rows;
}

}  // namespace shoal
