// SIGINT and SIGTERM as something to wait for.
#pragma once

#include "absl/time/time.h"

namespace shoal {

// Blocks SIGINT and SIGTERM in this thread and in all that it starts later, and ignores SIGPIPE.
// REQUIRES: called before any other thread exists.
void BlockTerminationSignals();

// Waits for one of them, at most for `timeout`. True: it came.
bool WaitForTermination(absl::Duration timeout);

}  // namespace shoal
