// Waits for a fleet to be as a test needs it.
#pragma once

#include <functional>

#include "absl/time/clock.h"
#include "absl/time/time.h"
#include "cli/local_fleet.h"

namespace shoal {

// Asks again and again: nobody tells of changes. False: `deadline` passed, or a worker gave up.
inline bool AwaitStatus(LocalFleet* fleet,
                        const std::function<bool(const FleetStatus&)>& is_met,
                        absl::Time deadline) {
  while (!is_met(fleet->Status())) {
    if (absl::Now() > deadline || !fleet->Health().ok()) return false;
    absl::SleepFor(absl::Milliseconds(2));
  }
  return true;
}

}  // namespace shoal
