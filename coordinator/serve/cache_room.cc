#include "coordinator/serve/cache_room.h"

#include <algorithm>

#include "proto/step.h"

namespace shoal {

void FitToCache(const FleetStatus& fleet, Request* request) {
  int32_t positions = 0;
  for (const CellStatus& cell : fleet.cells) {
    for (const WorkerStatus& worker : cell.workers) {
      positions = std::max(positions, worker.full_blocks * kPlanBlockTokens);
    }
  }
  const auto prompt = static_cast<int32_t>(std::ssize(request->prompt));
  // A prompt that does not fit by itself is refused with these numbers.
  if (positions <= prompt) return;
  request->max_tokens = std::min(request->max_tokens, positions - prompt);
}

}  // namespace shoal
