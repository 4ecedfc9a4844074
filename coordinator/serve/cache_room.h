// How long an answer may get when its client has not said so.
#pragma once

#include "coordinator/coordinator.h"
#include "coordinator/events.h"

namespace shoal {

// A chat's client seldom bounds its answer, and the model's context may be larger than what a
// rank's cache can ever hold: then the answer's bound is what fits, instead of a refusal. REQUIRES:
// request->max_tokens is nobody's wish.
void FitToCache(const FleetStatus& fleet, Request* request);

}  // namespace shoal
