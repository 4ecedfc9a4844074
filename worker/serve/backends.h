// Which device a worker computes on, from the words of an option to the two backends it needs.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/statusor.h"

#include "kernels/backend.h"

namespace shoal {

class CudaBackend;

struct BackendOptions {
  std::string backend = "cpu";  // cpu, cuda (the first GPU) or cuda:INDEX
  // Of the CPU:
  int threads = 1;
  std::vector<int> cpus;  // If not empty: thread i is pinned to cpus[i]
  std::string isa;        // scalar, avx2, avx512; empty: the best there is
};

struct Backends {
  std::unique_ptr<Backend> stepping;
  std::unique_ptr<Backend> loading;  // For the loading thread: another object of the same kind
  // `stepping`, if it is a GPU: it has a memory of its own, to which weights must be copied.
  CudaBackend* gpu = nullptr;
  int64_t free_bytes = 0;  // Of that memory, before anything is loaded
};

// kInvalidArgument: unknown words, CPUs that are not one for each thread. kFailedPrecondition: this
// machine or this binary cannot (no driver, no such GPU, a GPU that is full, an instruction set
// that is not there); the message says what would do.
absl::StatusOr<Backends> MakeBackends(const BackendOptions& options);

// What a worker plans with, of `free_bytes` of a GPU's memory before anything is loaded: what steps
// and the driver may still take is left out. kResourceExhausted, with the numbers: not even the
// dense weights, which every worker holds, leave room.
absl::StatusOr<int64_t> UsableGpuBytes(int64_t free_bytes, int64_t dense_bytes);

}  // namespace shoal
