#include "coordinator/masks.h"

namespace shoal {

void Masks::Ask(absl::Time now, const Sequence& sequence, std::vector<Action>* actions) {
  Forget(sequence.id);
  due_[sequence.id] = now + patience_;
  order_.emplace(now + patience_, sequence.id);
  actions->push_back(
      AskMask{.sequence = sequence.id,
              .output = {sequence.tokens.begin() + sequence.prompt_length, sequence.tokens.end()},
              .envelope = sequence.envelope});
}

bool Masks::Answer(const MaskReady& answer, Sequence* sequence) {
  if (answer.num_output != sequence->length() - sequence->prompt_length) return false;
  Forget(sequence->id);
  sequence->mask = answer.mask;
  sequence->mask_length = sequence->length();
  return true;
}

void Masks::Forget(SequenceId sequence) {
  const auto found = due_.find(sequence);
  if (found == due_.end()) return;
  order_.erase({found->second, sequence});
  due_.erase(found);
}

std::vector<SequenceId> Masks::Overdue(absl::Time now) const {
  std::vector<SequenceId> overdue;
  for (const auto& [when, sequence] : order_) {
    if (when > now) break;
    overdue.push_back(sequence);
  }
  return overdue;
}

absl::Time Masks::NextDeadline() const {
  return order_.empty() ? absl::InfiniteFuture() : order_.begin()->first;
}

}  // namespace shoal
