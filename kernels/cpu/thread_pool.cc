#include "kernels/cpu/thread_pool.h"

#include <immintrin.h>
#include <pthread.h>
#include <sched.h>

#include <algorithm>

#include "kernels/kernel_check.h"

// The gate. A region is open while its ranges last. A worker enters by adding one to gate_ and
// leaves by taking it away; if it finds kClosed on entering it leaves at once and touches nothing
// else. The caller sets kClosed when no range is left and waits until nobody is inside; only then
// does it change job_. So a worker that wakes late, even regions late, can neither run an old job
// nor delay the caller by more than two additions.

namespace shoal {
namespace {

constexpr int kClosed = 1 << 30;
// About 5 microseconds: longer than the gap between two regions of a step, far shorter than a
// scheduler's tick.
constexpr int kSpins = 100;

void PinTo(int cpu) {
  cpu_set_t set;
  CPU_ZERO(&set);
  CPU_SET(static_cast<size_t>(cpu), &set);
  // A CPU outside the container's set is refused; running unpinned is then right.
  static_cast<void>(pthread_setaffinity_np(pthread_self(), sizeof(set), &set));
}

// Waits until `value` differs from `old`: a short spin, then sleep.
void AwaitChange(const std::atomic<int>& value, int old) {
  for (int i = 0; i < kSpins; ++i) {
    if (value.load(std::memory_order_acquire) != old) return;
    _mm_pause();
  }
  value.wait(old, std::memory_order_acquire);
}

}  // namespace

ThreadPool::ThreadPool(int num_threads, std::span<const int> cpus)
    : gate_(kClosed),
      cpus_(cpus.begin(), cpus.end()),
      scratch_(static_cast<size_t>(std::max(num_threads, 1))) {
  KERNEL_CHECK(num_threads >= 1 && num_threads < kClosed);
  KERNEL_CHECK(cpus.empty() || cpus.size() == static_cast<size_t>(num_threads));
  workers_.reserve(static_cast<size_t>(num_threads) - 1);
  for (int i = 1; i < num_threads; ++i) workers_.emplace_back([this, i] { Work(i); });
}

ThreadPool::~ThreadPool() {
  stopping_.store(true, std::memory_order_relaxed);  // Published by region_.
  region_.fetch_add(1, std::memory_order_release);
  region_.notify_all();
  for (std::thread& worker : workers_) worker.join();
}

std::byte* ThreadPool::Scratch(int thread, size_t bytes) {
  constexpr size_t kAlign = 64;
  ScratchBuffer& buffer = scratch_[static_cast<size_t>(thread)];
  if (buffer.bytes < bytes) {
    buffer.memory.reset(new std::byte[bytes + kAlign]);
    buffer.bytes = bytes;
  }
  const auto address = reinterpret_cast<uintptr_t>(buffer.memory.get());
  return buffer.memory.get() + (kAlign - address % kAlign) % kAlign;
}

void ThreadPool::Run(int64_t count, int64_t grain, Job job) {
  KERNEL_CHECK(grain >= 1);
  if (count <= 0) return;
  if (!cpus_.empty()) PinCaller();
  if (workers_.empty() || count <= grain) {
    for (int64_t begin = 0; begin < count; begin += grain) {
      job.call(job.self, begin, std::min(count, begin + grain), 0);
    }
    return;
  }
  job_ = job;
  count_ = count;
  grain_ = grain;
  next_.store(0, std::memory_order_relaxed);
  gate_.fetch_and(~kClosed, std::memory_order_release);  // Publishes the job to those who enter.
  region_.fetch_add(1, std::memory_order_release);
  region_.notify_all();
  RunRanges(0);
  int inside = gate_.fetch_or(kClosed, std::memory_order_acq_rel) | kClosed;
  while (inside != kClosed) {  // Acquire pairs with the leavers' release: their writes are visible.
    AwaitChange(gate_, inside);
    inside = gate_.load(std::memory_order_acquire);
  }
}

void ThreadPool::RunRanges(int thread) {
  for (;;) {
    const int64_t begin = next_.fetch_add(grain_, std::memory_order_relaxed);
    if (begin >= count_) return;
    job_.call(job_.self, begin, std::min(count_, begin + grain_), thread);
  }
}

void ThreadPool::Work(int thread) {
  if (!cpus_.empty()) PinTo(cpus_[static_cast<size_t>(thread)]);
  int seen = 0;
  for (;;) {
    AwaitChange(region_, seen);
    seen = region_.load(std::memory_order_acquire);
    if (stopping_.load(std::memory_order_relaxed)) return;
    if ((gate_.fetch_add(1, std::memory_order_acquire) & kClosed) == 0) RunRanges(thread);
    const int left = gate_.fetch_sub(1, std::memory_order_release) - 1;
    if (left == kClosed) gate_.notify_one();
  }
}

void ThreadPool::PinCaller() {
  const std::thread::id caller = std::this_thread::get_id();
  if (caller == pinned_caller_) return;
  PinTo(cpus_[0]);
  pinned_caller_ = caller;
}

}  // namespace shoal
