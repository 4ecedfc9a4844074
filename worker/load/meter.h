// Counts loaded bytes and passes them on to a LoadProgress.
#pragma once

#include <cstdint>

#include "absl/status/status.h"

#include "worker/load/loader.h"

namespace shoal {

class LoadMeter {
 public:
  // `progress` (may be empty) must outlive this.
  LoadMeter(const LoadProgress& progress, int64_t total_bytes)
      : progress_(progress), total_bytes_(total_bytes) {}

  absl::Status Add(int64_t bytes) {
    done_bytes_ += bytes;
    if (progress_ && !progress_(done_bytes_, total_bytes_)) {
      return absl::CancelledError("loading was cancelled");
    }
    return absl::OkStatus();
  }

 private:
  const LoadProgress& progress_;
  const int64_t total_bytes_;
  int64_t done_bytes_ = 0;
};

}  // namespace shoal
