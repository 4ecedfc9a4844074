// The masks that constrained sequences wait for. A mask is made from text, which the core does not
// know: it asks, and goes on with others until the answer is there. An answer may be lost; then it
// asks again.
#pragma once

#include <map>
#include <set>
#include <utility>
#include <vector>

#include "absl/time/time.h"

#include "base/ids.h"
#include "coordinator/events.h"
#include "coordinator/schedule/sequence.h"

namespace shoal {

class Masks {
 public:
  // Unanswered for so long, a mask is asked for again.
  explicit Masks(absl::Duration patience) : patience_(patience) {}

  // For the token after the sequence's last one. It replaces an earlier question.
  void Ask(absl::Time now, const Sequence& sequence, std::vector<Action>* actions);

  // Gives the sequence its mask. False if it has grown since the question.
  bool Answer(const MaskReady& answer, Sequence* sequence);

  // Nobody needs the answer any more.
  void Forget(SequenceId sequence);

  // Whom to ask for again.
  std::vector<SequenceId> Overdue(absl::Time now) const;
  absl::Time NextDeadline() const;

 private:
  const absl::Duration patience_;
  std::map<SequenceId, absl::Time> due_;               // Of questions without an answer
  std::set<std::pair<absl::Time, SequenceId>> order_;  // The same, by time
};

}  // namespace shoal
