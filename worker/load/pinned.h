// Host memory that a device reads without a copy between, while this exists.
#pragma once

#include <cstddef>
#include <span>
#include <utility>
#include <vector>

#include "kernels/backend.h"

namespace shoal {

// The ranges stay where they are and outlive this, and so does the backend.
class PinnedRanges {
 public:
  PinnedRanges(Backend* backend, std::vector<std::span<const std::byte>> ranges)
      : backend_(*backend), ranges_(std::move(ranges)) {
    for (const std::span<const std::byte> range : ranges_) backend_.Pin(range.data(), range.size());
  }

  ~PinnedRanges() {
    for (const std::span<const std::byte> range : ranges_) backend_.Unpin(range.data());
  }

  PinnedRanges(const PinnedRanges&) = delete;
  PinnedRanges& operator=(const PinnedRanges&) = delete;

 private:
  Backend& backend_;
  const std::vector<std::span<const std::byte>> ranges_;
};

}  // namespace shoal
