// Device memory and the queue of work in which NCCL's operations take their place: the few things
// that the NCCL exchange asks of a device. Two kinds: a GPU (cuda_stream.h), and host memory for
// fleets of CPUs and the scripted NCCL (host_stream.h).
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"

namespace shoal {

// All work is done in the order in which it was asked for; nothing here but Allocate, Free and
// Wait may wait for the device. Threads: one, save that handle() may be used by NCCL's.
class DeviceStream {
 public:
  virtual ~DeviceStream() = default;

  // A cudaStream_t, for NCCL.
  virtual void* handle() = 0;

  // The backend's operations take their place in the same queue: it need not be waited for before
  // they read what it brings.
  virtual bool is_compute_stream() const = 0;

  // The device, as peers on its host can recognise it: two ranks on one are refused by NCCL unless
  // they pretend to be on two hosts. Empty: not to be compared.
  virtual std::string device_id() const = 0;

  // Null: there is not enough.
  virtual void* Allocate(size_t bytes) = 0;
  virtual void Free(void* data, size_t bytes) = 0;

  // Host memory from which and to which copies are made without a wait of the host. Null likewise.
  virtual void* AllocateHost(size_t bytes) = 0;
  virtual void FreeHost(void* data, size_t bytes) = 0;

  // In order with all other work. Host memory of Write and Read is the caller's until Wait says
  // that all is done.
  virtual void Write(void* device, const void* host, size_t bytes) = 0;
  virtual void Read(void* host, const void* device, size_t bytes) = 0;
  virtual void Copy(void* to, const void* from, size_t bytes) = 0;
  // Row i of `to` becomes row index[i] of `from`; rows of `row_bytes`. `index` is in host memory.
  virtual void Gather(
      void* to, const void* from, const int32_t* index, int64_t rows, int64_t row_bytes) = 0;

  // Waits for all work asked for so far, at most so long. False: not done yet. Errors: the device's
  // fault, which nothing here can mend.
  virtual absl::StatusOr<bool> Wait(absl::Duration at_most) = 0;
};

}  // namespace shoal
