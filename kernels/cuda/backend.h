// The CUDA backend: the same operations on one NVIDIA GPU.
//
// This header needs no CUDA: a binary built without it (no_cuda.cc) says so when asked to open a
// device. With CUDA the runtime is linked statically and the driver is found at run time, so one
// binary runs on machines with and without a GPU.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "kernels/backend.h"

struct CUstream_st;  // cudaStream_t is a pointer to it.

namespace shoal {

struct CudaDevice {
  int index = 0;
  std::string name;  // "NVIDIA H200"
  int major = 0;     // Compute capability
  int minor = 0;
  int num_multiprocessors = 0;
  int64_t total_bytes = 0;
};

struct CudaBackendOptions {
  int device = 0;
  bool replays = true;            // Keep steps as CUDA graphs
  bool overlaps_launches = true;  // A kernel's start-up may overlap the end of the one before
};

// Threads: as Backend. Every operation is queued on stream(); Write() copies its source before it
// returns. A device that failed stays failed: every later Read() throws DeviceFault again.
class CudaBackend : public Backend {
 public:
  // Null, and a sentence for people in *error: this binary has no CUDA, no driver, too old a
  // driver, no such device, an architecture without kernels, a device that is full or that other
  // settings forbid.
  static std::unique_ptr<CudaBackend> Open(const CudaBackendOptions& options, std::string* error);

  // The stream that everything is queued on, for an exchange that queues on it too. Not null.
  virtual CUstream_st* stream() const = 0;

  virtual const CudaDevice& device() const = 0;

  // Bytes that Allocate() may still give, what the driver and other processes hold taken off.
  virtual int64_t FreeBytes() const = 0;

  // The first error of the device; empty: none so far. Does not wait.
  virtual std::string Fault() const = 0;
};

}  // namespace shoal
