// Threads that split output rows. They never split a sum, so their number changes no bit.
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <thread>
#include <type_traits>
#include <vector>

namespace shoal {

// A fixed set of threads; the calling thread is number 0. One thread at a time may call
// ParallelFor, and a body may not call it again. Idle workers sleep in the kernel after a spin of
// microseconds, because several processes share the cores of a host. A worker that the scheduler
// keeps waiting costs nothing: whoever is awake takes its share, and it finds the region closed.
class ThreadPool {
 public:
  // If `cpus` is not empty it has num_threads entries, and thread i runs on cpus[i] only. Thread 0,
  // the caller, is pinned when it first calls ParallelFor.
  ThreadPool(int num_threads, std::span<const int> cpus);
  ~ThreadPool();

  ThreadPool(const ThreadPool&) = delete;
  ThreadPool& operator=(const ThreadPool&) = delete;

  int num_threads() const { return static_cast<int>(workers_.size()) + 1; }

  // Calls body(begin, end, thread) for disjoint ranges of at most `grain` that cover [0, count);
  // `thread` is in [0, num_threads()). Returns when all have ended. Who runs which range is a
  // matter of time: the results may not depend on it.
  template <typename Body>
  void ParallelFor(int64_t count, int64_t grain, const Body& body) {
    Run(count, grain, {&body, [](const void* self, int64_t begin, int64_t end, int thread) {
                         (*static_cast<const Body*>(self))(begin, end, thread);
                       }});
  }

  // Memory of one thread for the length of one body, 64-byte aligned, at least `bytes` long; what
  // it holds is undefined. Grows to the largest request and stays.
  std::byte* Scratch(int thread, size_t bytes);

 private:
  struct Job {
    const void* self = nullptr;
    void (*call)(const void* self, int64_t begin, int64_t end, int thread) = nullptr;
  };

  struct ScratchBuffer {
    std::unique_ptr<std::byte[]> memory;
    size_t bytes = 0;
  };

  void Run(int64_t count, int64_t grain, Job job);
  void Work(int thread);
  void RunRanges(int thread);
  void PinCaller();

  // Written by the caller while the gate is closed and nobody is inside; see thread_pool.cc.
  Job job_;
  int64_t count_ = 0;
  int64_t grain_ = 1;
  alignas(64) std::atomic<int64_t> next_ = 0;

  alignas(64) std::atomic<int> region_ = 0;  // Rises with each region; workers sleep on it.
  alignas(64) std::atomic<int> gate_;  // Workers inside, plus kClosed; the caller waits on it.

  std::vector<int> cpus_;
  std::thread::id pinned_caller_;
  std::vector<ScratchBuffer> scratch_;  // [num_threads]; entry i belongs to thread i.
  std::atomic<bool> stopping_ = false;  // Atomic, as a late worker may look while it is set.
  std::vector<std::thread> workers_;
};

}  // namespace shoal
