// How a sequence's numbers move when a part of it is planned, returns, or is lost with its epoch.
#pragma once

#include <cstdint>

#include "coordinator/schedule/sequence.h"
#include "proto/step.h"

namespace shoal {

// The entry that computes the next `num_positions` positions, counted as in flight from here on.
// REQUIRES: 0 < num_positions <= unplanned_positions(), and blocks for them.
PlanEntry PlanNext(int32_t num_positions, Sequence* sequence);

// The entry has returned from its rank: its positions are computed. The sampled token, if any, is
// appended to `tokens` by the caller before this.
void Settle(const PlanEntry& entry, Sequence* sequence);

// The epoch is over: what was in flight has not happened, and the next epoch's plans send the block
// table from its beginning.
void Rewind(Sequence* sequence);

}  // namespace shoal
