// What this machine can do at most, measured in the run that quotes a fraction of it.
#pragma once

#include <span>

#include "kernels/cpu/backend.h"

namespace shoal {

// Of several measurements. On a shared machine the best is nearest to the ceiling, and the distance
// of the median says how noisy the neighbours are.
struct Rate {
  double median = 0.0;
  double best = 0.0;
};

// Bytes per second that `num_threads` threads together read from memory: streams over 512 MiB, more
// than any cache we know gives one process. `cpus` as in CpuBackendOptions. Takes about a second.
Rate MeasureReadBandwidth(int num_threads, std::span<const int> cpus);

// Multiply-adds of 8-bit integers per second of `num_threads` threads together, from registers:
// vpdpbusd, or vpmaddubsw and vpmaddwd, or plain C++. REQUIRES: this processor has `isa`.
Rate MeasureIntDotRate(int num_threads, std::span<const int> cpus, CpuIsa isa);

}  // namespace shoal
