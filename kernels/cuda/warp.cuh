// Reductions over a warp and a thread block, each in one fixed order.
#pragma once

#include <cstdint>

namespace shoal::cuda {

inline constexpr unsigned kAllLanes = 0xffffffffu;

// Every lane gets the sum; the tree is the butterfly 16, 8, 4, 2, 1. Addition commutes, so all
// lanes get the same bits.
__device__ inline float WarpSum(float x) {
  for (int offset = 16; offset > 0; offset /= 2) x += __shfl_xor_sync(kAllLanes, x, offset);
  return x;
}

__device__ inline float WarpMax(float x) {
  for (int offset = 16; offset > 0; offset /= 2) {
    const float other = __shfl_xor_sync(kAllLanes, x, offset);
    x = x > other ? x : other;
  }
  return x;
}

// Over a thread block of kThreads: warps by WarpSum, then the warps' sums in rising order. All
// threads must call it. `scratch` has one value per warp and may be used again after a barrier.
template <int kThreads>
__device__ inline float BlockSum(float x, float* scratch) {
  x = WarpSum(x);
  if (threadIdx.x % 32 == 0) scratch[threadIdx.x / 32] = x;
  __syncthreads();
  float sum = scratch[0];
  for (int w = 1; w < kThreads / 32; ++w) sum += scratch[w];
  return sum;
}

template <int kThreads>
__device__ inline float BlockMax(float x, float* scratch) {
  x = WarpMax(x);
  if (threadIdx.x % 32 == 0) scratch[threadIdx.x / 32] = x;
  __syncthreads();
  float max = scratch[0];
  for (int w = 1; w < kThreads / 32; ++w) max = max > scratch[w] ? max : scratch[w];
  return max;
}

// The order of scores and logits: falling, equal ones by lower id.
__device__ inline bool IsBefore(float score, int id, float other, int other_id) {
  return score > other || (score == other && id < other_id);
}

}  // namespace shoal::cuda
