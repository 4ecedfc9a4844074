// The dense weights in the memory of a device that cannot read the host's.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <utility>

#include "absl/status/statusor.h"

#include "kernels/backend.h"
#include "worker/load/dense_plan.h"
#include "worker/load/loader.h"
#include "worker/load/meter.h"
#include "worker/weights.h"

namespace shoal {

class DeviceDense {
 public:
  // From the source to the device, read on several threads, with no copy kept by the host;
  // synthetic weights are made there if the device can. One allocation; kResourceExhausted: there
  // is too little memory. kUnavailable: the device failed.
  static absl::StatusOr<std::unique_ptr<DeviceDense>> Load(const WeightSource& source,
                                                           const LoadProgress& progress,
                                                           Backend* backend);
  ~DeviceDense();

  DeviceDense(const DeviceDense&) = delete;
  DeviceDense& operator=(const DeviceDense&) = delete;

  int64_t bytes() const { return bytes_; }

  const DenseWeights& weights() const { return weights_; }

 private:
  DeviceDense(std::byte* memory, int64_t bytes, DenseWeights weights, Backend* backend)
      : memory_(memory), bytes_(bytes), weights_(std::move(weights)), backend_(backend) {}

  absl::Status Read(const WeightSource& source, const DensePlan& plan, LoadMeter* meter);
  absl::Status Synthesize(const WeightSource& source, const DensePlan& plan, LoadMeter* meter);

  std::byte* const memory_;
  const int64_t bytes_;
  const DenseWeights weights_;  // Points into memory_
  Backend* const backend_;
};

}  // namespace shoal
