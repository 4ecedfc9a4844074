// Judges every message of the worker link by (term, epoch, step): the table of
// docs/step_protocol.md as code. Pure: the worker and the simulation use the same one.
#pragma once

#include <cstdint>
#include <optional>

#include "absl/status/status.h"

#include "base/ids.h"
#include "proto/cluster.h"

namespace shoal {

class Fence {
 public:
  enum class Verdict : uint8_t {
    kObey,
    kRepeatResult,  // The plan that ran last: send its stored result again
    kRefuse,        // refusal() says why
  };

  explicit Fence(Term highest_term) : term_(highest_term) {}

  // A message under `term`; a higher one is remembered.
  Verdict Judge(Term term);
  Verdict Judge(const Configure& message);
  Verdict Judge(const Abort& message);
  // At most two plans in hand.
  Verdict Judge(const StepPlan& message);

  // Takes the epoch in / leaves it. After Leave nothing of it is obeyed.
  void Enter(const Configure& message);
  void Leave();
  // A plan that was obeyed has run.
  void Ran(StepId step);

  absl::Status refusal() const { return refusal_; }

  Term term() const { return term_; }

  Epoch epoch() const { return epoch_; }

  StepId next_step() const { return next_step_; }

 private:
  Verdict Refuse(absl::Status why);

  Term term_;
  CellId cell_;
  Epoch epoch_;  // Highest ever entered or left
  bool in_epoch_ = false;
  StepId next_step_;  // Of the next plan to be accepted
  int plans_in_hand_ = 0;
  std::optional<StepPlan> last_plan_;  // Accepted last, to compare bytes with a repetition
  absl::Status refusal_;
};

}  // namespace shoal
