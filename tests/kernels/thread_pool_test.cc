#include "kernels/cpu/thread_pool.h"

#include <atomic>
#include <cstring>
#include <vector>

#include "gtest/gtest.h"

namespace shoal {
namespace {

TEST(ThreadPoolTest, EveryIndexIsCoveredExactlyOnce) {
  for (const int num_threads : {1, 2, 3, 8}) {
    ThreadPool pool(num_threads, {});
    for (const int64_t count : {0, 1, 2, 7, 8, 9, 100, 1000}) {
      for (const int64_t grain : {1, 3, 8, 5000}) {
        std::vector<std::atomic<int>> visits(static_cast<size_t>(count));
        pool.ParallelFor(count, grain, [&](int64_t begin, int64_t end, int thread) {
          ASSERT_LE(end - begin, grain);
          ASSERT_GE(thread, 0);
          ASSERT_LT(thread, num_threads);
          for (int64_t i = begin; i < end; ++i) visits[static_cast<size_t>(i)].fetch_add(1);
        });
        for (const std::atomic<int>& visit : visits) ASSERT_EQ(visit.load(), 1);
      }
    }
  }
}

// Plain memory written by one region is read by the next through other threads: under tsan this
// proves the edges between caller and workers, and the many regions catch late wakers.
TEST(ThreadPoolTest, EachRegionSeesAllWritesOfTheOneBefore) {
  constexpr int kRegions = 3000;
  constexpr int64_t kCount = 16;
  ThreadPool pool(4, {});
  std::vector<int64_t> from(kCount, 0);
  std::vector<int64_t> to(kCount, 0);

  for (int region = 0; region < kRegions; ++region) {
    pool.ParallelFor(kCount, 1, [&](int64_t begin, int64_t end, int) {
      for (int64_t i = begin; i < end; ++i) {
        to[static_cast<size_t>(i)] = from[static_cast<size_t>((i + 1) % kCount)] + 1;
      }
    });
    std::swap(from, to);
  }

  for (const int64_t value : from) EXPECT_EQ(value, kRegions);
}

TEST(ThreadPoolTest, ScratchIsAlignedAndPrivateToItsThread) {
  ThreadPool pool(3, {});
  for (const size_t bytes : {size_t{1}, size_t{1000}, size_t{100}, size_t{100'000}}) {
    std::byte* memory[3];
    for (int thread = 0; thread < 3; ++thread) {
      memory[thread] = pool.Scratch(thread, bytes);
      ASSERT_EQ(reinterpret_cast<uintptr_t>(memory[thread]) % 64, 0u);
      std::memset(memory[thread], thread, bytes);
    }
    for (int thread = 0; thread < 3; ++thread) {
      EXPECT_EQ(memory[thread][0], std::byte(thread));
      EXPECT_EQ(memory[thread][bytes - 1], std::byte(thread));
    }
  }
}

TEST(ThreadPoolTest, PinnedThreadsComputeTheSame) {
  const int cpus[] = {0, 0};  // CPU 0 exists wherever a test runs; a refusal leaves them unpinned.
  ThreadPool pool(2, cpus);
  std::atomic<int64_t> sum = 0;

  pool.ParallelFor(1000, 7, [&](int64_t begin, int64_t end, int) {
    for (int64_t i = begin; i < end; ++i) sum.fetch_add(i);
  });

  EXPECT_EQ(sum.load(), 999 * 1000 / 2);
}

}  // namespace
}  // namespace shoal
