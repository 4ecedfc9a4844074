// What a GPU is to the worker, on a CPU: operations that are only queued when they return, on the
// stream on which NCCL's take their place; steps that are recorded and replayed, NCCL's operations
// in them; a host that learns of results only by waiting. It counts the waits.
//
// Rules of CUDA that it keeps, or dies: nothing waits, allocates or writes while it records.
#pragma once

#include <atomic>
#include <cstdint>
#include <memory>

#include "kernels/backend.h"
#include "worker/exchange/device_stream.h"

namespace shoal {

struct DeviceCounts {
  std::atomic<int64_t> reads{0};    // The host read or waited for what the backend did
  std::atomic<int64_t> waits{0};    // It waited for the stream until all was done
  std::atomic<int64_t> records{0};  // Steps recorded
  std::atomic<int64_t> replays{0};
  std::atomic<int64_t> kept{0};  // Recordings alive
};

class RecordingQueue;

// Threads: MakeBackend's and MakeStream's objects as their classes say.
class RecordingDevice {
 public:
  // Computes with `cpu`.
  explicit RecordingDevice(std::unique_ptr<Backend> cpu);
  ~RecordingDevice();

  // One each; they keep what they need of this alive.
  std::unique_ptr<Backend> MakeBackend();
  std::unique_ptr<DeviceStream> MakeStream();

  DeviceCounts& counts();

 private:
  const std::shared_ptr<RecordingQueue> queue_;
};

}  // namespace shoal
