#include "coordinator/schedule/plan.h"

#include <algorithm>

#include "base/check.h"

namespace shoal {

PlanEntry PlanNext(int32_t num_positions, Sequence* sequence) {
  CHECK_GT(num_positions, 0);
  CHECK_LE(num_positions, sequence->unplanned_positions());
  const int32_t end = sequence->planned_computed + num_positions;
  const BlockTable& table = sequence->table;
  CHECK_LE(NumBlocks(end), static_cast<int32_t>(table.full.size()));

  PlanEntry entry;
  entry.sequence = sequence->id;
  entry.first_position = sequence->planned_computed;
  entry.num_positions = num_positions;
  entry.first_block = sequence->num_blocks_sent;
  entry.full_blocks.assign(table.full.begin() + entry.first_block, table.full.end());
  entry.window_blocks.assign(table.window.begin() + entry.first_block, table.window.end());
  entry.wants_logits = sequence->wants_prompt_logits;
  entry.wants_sample = !sequence->wants_prompt_logits && end == sequence->planned_length;
  if (entry.wants_sample && sequence->is_constrained) entry.mask = sequence->mask;

  sequence->num_blocks_sent = static_cast<int32_t>(table.full.size());
  sequence->planned_computed = end;
  if (entry.wants_sample) ++sequence->planned_length;
  ++sequence->rows_in_flight;
  return entry;
}

void Settle(const PlanEntry& entry, Sequence* sequence) {
  CHECK_GT(sequence->rows_in_flight, 0);
  --sequence->rows_in_flight;
  CHECK_EQ(entry.first_position, sequence->computed);
  // A dropped token leaves the record shorter than the rows that ran after it.
  sequence->computed = std::min(entry.first_position + entry.num_positions, sequence->length());
}

void Rewind(Sequence* sequence) {
  sequence->rows_in_flight = 0;
  sequence->planned_computed = sequence->computed;
  sequence->planned_length = sequence->length();
  sequence->num_blocks_sent = 0;
}

}  // namespace shoal
