// Reads ahead, on several threads, of what one thread places in order: a single thread copies out
// of the page cache at a third of what a fast disk gives, and neither waits for the placing.
#pragma once

#include <cstdint>

#include "absl/functional/function_ref.h"
#include "absl/status/status.h"

namespace shoal {

// For items 0, 1, ... in order: read(item, buffer) on a thread of its own, then place(item, buffer)
// on the calling thread. Item i has buffer i mod num_buffers to itself meanwhile, so num_buffers -
// 1 reads run beside a placing. Returns the first error, when no read is under way any more.
absl::Status ReadAhead(int64_t num_items,
                       int num_buffers,
                       absl::FunctionRef<absl::Status(int64_t item, size_t buffer)> read,
                       absl::FunctionRef<absl::Status(int64_t item, size_t buffer)> place);

}  // namespace shoal
