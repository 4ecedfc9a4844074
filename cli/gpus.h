// The GPUs of this host and how they are connected, as the driver's library for monitoring tells it
// (libnvidia-ml.so.1, opened at run time: it comes with the driver).
#pragma once

#include <string>
#include <vector>

#include "absl/status/statusor.h"

namespace shoal {

struct Gpu {
  std::string name;  // "NVIDIA H200"
  std::string uuid;  // "GPU-8b1f..."
};

struct GpuTopology {
  std::string driver;  // Its version
  std::vector<Gpu> gpus;
  // [a][b] between two of them: "NVLink", "one PCIe switch", ...; empty on the diagonal.
  std::vector<std::vector<std::string>> paths;
};

// kNotFound, with the reason: no driver here, or no GPU behind it.
absl::StatusOr<GpuTopology> ListGpus();

}  // namespace shoal
