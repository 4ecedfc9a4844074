#include "kernels/cpu/ceiling.h"

#include <sys/mman.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstring>
#include <vector>

#include "kernels/cpu/dot.h"
#include "kernels/cpu/thread_pool.h"
#include "kernels/kernel_check.h"

namespace shoal {
namespace {

constexpr int kMeasurements = 9;

// `work` divided by the seconds that run() takes, measured several times after one run to warm up.
template <typename Run>
Rate Measure(double work, const Run& run) {
  using Clock = std::chrono::steady_clock;
  run();
  std::vector<double> rates;
  for (int i = 0; i < kMeasurements; ++i) {
    const Clock::time_point start = Clock::now();
    run();
    rates.push_back(work / std::chrono::duration<double>(Clock::now() - start).count());
  }
  std::sort(rates.begin(), rates.end());
  return {.median = rates[kMeasurements / 2], .best = rates.back()};
}

// Results go here, so that no compiler finds the loops useless.
std::atomic<int64_t> sink;

}  // namespace

Rate MeasureReadBandwidth(int num_threads, std::span<const int> cpus) {
  constexpr size_t kBytes = size_t{512} << 20;
  constexpr int64_t kChunk = 2 << 20;
  void* memory = mmap(nullptr, kBytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  KERNEL_CHECK(memory != MAP_FAILED);
  static_cast<void>(madvise(memory, kBytes, MADV_HUGEPAGE));
  std::memset(memory, 1, kBytes);  // Each page needs memory of its own.

  ThreadPool pool(num_threads, cpus);
  const DotTable& dot = GetDotTable(BestCpuIsa());
  const auto* bytes = static_cast<const std::byte*>(memory);
  const Rate rate = Measure(static_cast<double>(kBytes), [&] {
    pool.ParallelFor(int64_t{kBytes} / kChunk, 1, [&](int64_t begin, int64_t end, int /*thread*/) {
      sink += dot.read_bytes(bytes + begin * kChunk, (end - begin) * kChunk);
    });
  });
  static_cast<void>(munmap(memory, kBytes));
  return rate;
}

Rate MeasureIntDotRate(int num_threads, std::span<const int> cpus, CpuIsa isa) {
  constexpr int64_t kRounds = 20'000;  // Of kIntDotsPerRound: below a millisecond with AVX-512.
  constexpr int64_t kShares = 16;      // Per thread.
  ThreadPool pool(num_threads, cpus);
  const DotTable& dot = GetDotTable(isa);
  const double work = static_cast<double>(kRounds * kIntDotsPerRound * kShares) * num_threads;
  return Measure(work, [&] {
    pool.ParallelFor(kShares * num_threads, 1, [&](int64_t begin, int64_t end, int /*thread*/) {
      sink += dot.int_dots((end - begin) * kRounds);
    });
  });
}

}  // namespace shoal
