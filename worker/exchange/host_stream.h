// A device that is host memory and a thread: what CUDA's stream is to a GPU, for fleets of CPUs
// that exchange through a NCCL made for it (the scripted one of tests/worker/fake_nccl).
#pragma once

#include <memory>

#include "worker/exchange/device_stream.h"

// What handle() of a host stream points to, across the boundary of a loaded library, hence C. The
// library queues its operations with it; `run` is called on the stream's thread, in order, and
// `done` when it will not be called again: once each, or, where the stream is one that records, as
// often as the record is replayed, and when that is dropped.
extern "C" struct ShoalHostStream {
  void (*enqueue)(ShoalHostStream* self, void (*run)(void*), void (*done)(void*), void* argument);
  int (*is_recording)(ShoalHostStream* self);
};

namespace shoal {

std::unique_ptr<DeviceStream> MakeHostStream();

// Live in the process, for tests of leaks.
struct HostStreamCounts {
  int64_t streams = 0;
  int64_t buffers = 0;
};

HostStreamCounts CountHostStreams();

}  // namespace shoal
