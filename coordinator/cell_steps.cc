// The steps of a cell's epoch: when a plan leaves, what its answers do. The rest of Cell is in
// cell.cc. Next: coordinator/schedule/scheduler.cc
#include <algorithm>
#include <map>
#include <utility>

#include "absl/strings/str_cat.h"

#include "base/check.h"
#include "coordinator/cell.h"

namespace shoal {
namespace {

// A step may take so many times the slowest one seen, per row.
constexpr int kStepDeadlineFactor = 20;
// What a rank may take beyond the deadline of its exchanges until its answer is here: half.
constexpr double kAnswerGrace = 1.5;

}  // namespace

void Cell::SendPlans() {
  if (state_ != EpochState::kRunning || IsReadyToMove()) return;
  while (steps_.size() < static_cast<size_t>(fleet_->options.pipeline_depth)) {
    if (!SendStep()) return;
  }
}

// Plans for every rank, those without rows too: they serve their experts. False, sending nothing,
// if no rank has a row.
bool Cell::SendStep() {
  StepInFlight step;
  step.step = fleet_->NextStep(last_step_);
  const int32_t forced = fleet_->options.force_preempt_every;
  if (forced > 0 && step.step.value % static_cast<uint64_t>(forced) == 0) {
    const WorkerId victim_home = layout_.ranks[next_forced_++ % layout_.ranks.size()];
    homes_.at(victim_home).scheduler->PreemptNewest();
  }
  int32_t most_positions = 0;
  bool is_decode = true;
  for (const WorkerId id : layout_.ranks) {
    RankPart& part = step.parts.emplace_back();
    part.entries = homes_.at(id).scheduler->Plan();
    int32_t rows = 0;
    for (const PlanEntry& entry : part.entries) {
      rows += entry.num_positions;
      is_decode = is_decode && entry.num_positions == 1;
      most_positions = std::max(most_positions, entry.first_position + 1);
    }
    step.most_rows = std::max(step.most_rows, rows);
  }
  if (step.most_rows == 0) return false;

  last_step_ = step.step;
  step.sent = fleet_->now;
  step.allowed = Allowed(step.most_rows);
  for (size_t rank = 0; rank < layout_.ranks.size(); ++rank) {
    const WorkerId id = layout_.ranks[rank];
    step.parts[rank].forget = std::exchange(homes_.at(id).forget, {});
    fleet_->Send(id,
                 StepPlan{.term = fleet_->term(),
                          .cell = id_,
                          .epoch = epoch_,
                          .step = step.step,
                          .deadline_ms = absl::ToInt64Milliseconds(step.allowed),
                          .most_rows = step.most_rows,
                          .most_positions = is_decode ? most_positions : 0,
                          .entries = step.parts[rank].entries,
                          .forget = step.parts[rank].forget});
  }
  if (steps_.empty()) front_since_ = fleet_->now;
  steps_.push_back(std::move(step));
  return true;
}

absl::Duration Cell::Allowed(int32_t most_rows) const {
  return std::max(fleet_->options.step_deadline, kStepDeadlineFactor * row_time_ * most_rows);
}

absl::Time Cell::StepDeadline() const {
  if (steps_.empty()) return absl::InfiniteFuture();
  return front_since_ + steps_.front().allowed * kAnswerGrace;
}

void Cell::OnStepResult(WorkerId worker, const StepResult& message) {
  const std::optional<Rank> rank = RankOf(worker);
  if (state_ != EpochState::kRunning || message.epoch != epoch_ || !rank.has_value()) return;
  const auto step = std::find_if(
      steps_.begin(), steps_.end(), [&](const StepInFlight& s) { return s.step == message.step; });
  if (step == steps_.end()) return;
  RankPart& part = step->parts[static_cast<size_t>(rank->value)];
  if (part.has_returned) return;
  const Scheduler& scheduler = *homes_.at(worker).scheduler;
  absl::Status status = message.status;
  if (status.ok()) status = CheckResult(scheduler, part, message);
  if (!status.ok()) {
    std::vector<Sequence*> culprits;
    if (absl::IsInvalidArgument(status)) culprits = CountRejection(scheduler, part);
    FailEpoch(absl::StrCat("step ",
                           message.step.value,
                           " failed at worker ",
                           worker.value,
                           ": ",
                           status.ToString()),
              message.suspects);
    for (Sequence* culprit : culprits) listener_->OnRejected(culprit, status);
    return;
  }
  part.has_returned = true;
  Accept(worker, part, message);
  ++step->num_returned;
  while (!steps_.empty() && steps_.front().num_returned == layout_.ranks.size()) {
    Complete(steps_.front());
    steps_.pop_front();
  }
}

void Cell::Complete(const StepInFlight& step) {
  const absl::Duration took = fleet_->now - front_since_;
  row_time_ = std::max(took / std::max(step.most_rows, 1), row_time_ * 0.9);
  front_since_ = fleet_->now;
  num_failures_ = 0;
  accusations_.clear();
}

// The rank would not compute its part. Whoever was in it is a suspect; who was alone in it for the
// second time is at fault.
std::vector<Sequence*> Cell::CountRejection(const Scheduler& scheduler, const RankPart& part) {
  std::vector<Sequence*> culprits;
  for (const PlanEntry& entry : part.entries) {
    Sequence* const sequence = scheduler.Find(entry.sequence);
    if (sequence == nullptr || sequence->state != SequenceState::kRunning) continue;
    if (++sequence->rejections > 1 && part.entries.size() == 1) culprits.push_back(sequence);
  }
  return culprits;
}

// The result has one token for every entry that wants one, at its position. The row after a token
// that could not be sampled has none.
absl::Status Cell::CheckResult(const Scheduler& scheduler,
                               const RankPart& part,
                               const StepResult& result) {
  std::map<SequenceId, int32_t> positions;
  for (const SampledToken& token : result.tokens) positions[token.sequence] = token.position;
  for (const PlanEntry& entry : part.entries) {
    if (!entry.wants_sample) continue;
    const Sequence* const sequence = scheduler.Find(entry.sequence);
    if (sequence == nullptr || sequence->state == SequenceState::kEnded) continue;
    const int32_t position = entry.first_position + entry.num_positions;
    const auto found = positions.find(entry.sequence);
    if (found == positions.end() || found->second != position) {
      return absl::DataLossError(absl::StrCat("the result lacks the token of sequence ",
                                              entry.sequence.value,
                                              " at position ",
                                              position));
    }
  }
  return absl::OkStatus();
}

void Cell::Accept(WorkerId worker, const RankPart& part, const StepResult& result) {
  Scheduler& scheduler = *homes_.at(worker).scheduler;
  for (const LogitRows& rows : result.logits) {
    Sequence* const sequence = scheduler.Find(rows.sequence);
    if (sequence != nullptr && sequence->state != SequenceState::kEnded) {
      listener_->OnLogits(sequence, rows);
    }
  }
  // Tokens before rows: a row is settled by the length that its token gave the sequence.
  for (const SampledToken& token : result.tokens) {
    Sequence* const sequence = scheduler.Find(token.sequence);
    if (sequence != nullptr && sequence->state != SequenceState::kEnded) {
      listener_->OnToken(sequence, token);
    }
  }
  for (const PlanEntry& entry : part.entries) scheduler.Returned(entry);
}

}  // namespace shoal
