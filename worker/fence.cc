#include "worker/fence.h"

#include <utility>

#include "absl/strings/str_cat.h"

#include "base/check.h"

namespace shoal {
namespace {

// One plan runs while the next one waits: the leader's pipeline is at most two deep.
constexpr int kMaxPlansInHand = 2;

}  // namespace

Fence::Verdict Fence::Refuse(absl::Status why) {
  refusal_ = std::move(why);
  return Verdict::kRefuse;
}

Fence::Verdict Fence::Judge(Term term) {
  if (term < term_) {
    return Refuse(absl::AbortedError(
        absl::StrCat("stale term: message of term ", term.value, ", highest seen ", term_.value)));
  }
  term_ = term;
  return Verdict::kObey;
}

Fence::Verdict Fence::Judge(const Configure& message) {
  if (Judge(message.term) == Verdict::kRefuse) return Verdict::kRefuse;
  if (message.epoch <= epoch_) {
    return Refuse(absl::AbortedError(absl::StrCat(
        "stale epoch: Configure of epoch ", message.epoch.value, ", highest ", epoch_.value)));
  }
  if (message.cell == cell_ && message.next_step < next_step_) {
    return Refuse(absl::AbortedError(absl::StrCat("step goes back: epoch ",
                                                  message.epoch.value,
                                                  " begins with step ",
                                                  message.next_step.value,
                                                  ", the next one here is ",
                                                  next_step_.value)));
  }
  return Verdict::kObey;
}

Fence::Verdict Fence::Judge(const Abort& message) {
  if (Judge(message.term) == Verdict::kRefuse) return Verdict::kRefuse;
  if (in_epoch_ && message.epoch == epoch_ && message.cell == cell_) return Verdict::kObey;
  return Refuse(
      absl::AbortedError(absl::StrCat("Abort of epoch ",
                                      message.epoch.value,
                                      in_epoch_ ? ", in epoch " : ", in none since epoch ",
                                      epoch_.value)));
}

Fence::Verdict Fence::Judge(const StepPlan& message) {
  if (Judge(message.term) == Verdict::kRefuse) return Verdict::kRefuse;
  if (!in_epoch_ || message.epoch != epoch_ || message.cell != cell_) {
    return Refuse(absl::AbortedError(absl::StrCat("stale epoch: plan of cell ",
                                                  message.cell.value,
                                                  " epoch ",
                                                  message.epoch.value,
                                                  in_epoch_ ? ", in cell " : ", left cell ",
                                                  cell_.value,
                                                  " epoch ",
                                                  epoch_.value)));
  }
  if (last_plan_.has_value() && message.step == last_plan_->step && plans_in_hand_ == 0 &&
      message == *last_plan_) {
    return Verdict::kRepeatResult;
  }
  if (message.step < next_step_) {
    return Refuse(absl::AbortedError(absl::StrCat(
        "stale step: plan of step ", message.step.value, ", the next one is ", next_step_.value)));
  }
  if (message.step > next_step_) {
    return Refuse(absl::FailedPreconditionError(absl::StrCat(
        "gap: plan of step ", message.step.value, ", the next one is ", next_step_.value)));
  }
  if (plans_in_hand_ >= kMaxPlansInHand) {
    return Refuse(absl::FailedPreconditionError(absl::StrCat(
        "plan of step ", message.step.value, " beside ", plans_in_hand_, " plans in hand")));
  }
  ++next_step_.value;
  ++plans_in_hand_;
  last_plan_ = message;
  return Verdict::kObey;
}

void Fence::Enter(const Configure& message) {
  CHECK_GT(message.epoch, epoch_);
  cell_ = message.cell;
  epoch_ = message.epoch;
  in_epoch_ = true;
  next_step_ = message.next_step;
  plans_in_hand_ = 0;
  last_plan_.reset();
}

void Fence::Leave() {
  in_epoch_ = false;
  plans_in_hand_ = 0;
  last_plan_.reset();
}

void Fence::Ran(StepId step) {
  if (!in_epoch_) return;  // Left while the step ran.
  CHECK_GT(plans_in_hand_, 0);
  CHECK_EQ(step.value + static_cast<uint64_t>(plans_in_hand_), next_step_.value);
  --plans_in_hand_;
}

}  // namespace shoal
