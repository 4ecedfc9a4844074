// Integers and copies only: nothing here adds what a result depends on.
#include <cuda_runtime.h>

#include <cstdint>

#include "kernels/cuda/route.h"

namespace shoal {
namespace {

constexpr int kThreads = 256;
constexpr int kWarp = 32;
constexpr unsigned kAllLanes = 0xffffffffu;

// The number of threads of the block before this one for which `flag` holds, and of all of them.
__device__ int CountBefore(bool flag, int* warp_counts, int* total) {
  const int lane = threadIdx.x % kWarp;
  const int warp = threadIdx.x / kWarp;
  const unsigned votes = __ballot_sync(kAllLanes, flag);
  if (lane == 0) warp_counts[warp] = __popc(votes);
  __syncthreads();
  int before = 0;
  *total = 0;
  for (int w = 0; w < kThreads / kWarp; ++w) {
    if (w < warp) before += warp_counts[w];
    *total += warp_counts[w];
  }
  __syncthreads();
  return before + __popc(votes & ((1u << lane) - 1));
}

// A block for each destination. First its threads take rows, kThreads at a time, and find places by
// counting; then all of them copy, 16 bytes a thread, row after row.
//
// Traffic: each row is read once for each rank it goes to, and written there. The choice of experts
// is read by every block, 16 bytes a row.
__global__ void FillSlotsKernel(FillSlotsArgs args) {
  __shared__ int warp_counts[kThreads / kWarp];
  extern __shared__ int32_t row_of_place[];  // [slot_rows]
  const int32_t rank = static_cast<int32_t>(blockIdx.x);
  int count = 0;
  for (int32_t first = 0; first < args.num_rows; first += kThreads) {
    const int32_t row = first + static_cast<int32_t>(threadIdx.x);
    const bool goes = row < args.num_rows && RouteGoesTo(args.table, args.ids, args.k, row, rank);
    int total = 0;
    const int place = count + CountBefore(goes, warp_counts, &total);
    if (goes) {
      row_of_place[place] = row;
      for (int32_t slot = 0; slot < args.k; ++slot) {
        const int32_t entry = RouteExpertEntry(args.table, args.ids, args.k, row, slot, rank);
        const int32_t index = RoutePlace(rank, args.slot_rows, args.k, place, slot);
        args.experts[index] = entry;
        if (entry >= 0) args.home[int64_t{row} * args.k + slot] = index;
      }
    }
    count += total;
  }
  if (threadIdx.x == 0) args.counts[rank] = count;
  __syncthreads();

  const int64_t words = args.row_bytes / sizeof(uint4);
  const auto* from = static_cast<const uint4*>(args.x);
  auto* to = static_cast<uint4*>(args.rows) + int64_t{rank} * args.slot_rows * words;
  for (int64_t i = threadIdx.x; i < count * words; i += kThreads) {
    to[i] = from[row_of_place[i / words] * words + i % words];
  }
}

// One block. Each warp takes local experts in turn and looks through all places for theirs, 32 at a
// time: once to count, and, when all offsets are known, once to write. At most 128 experts, and 64
// rows of 8 ranks, so 2,048 places: a few microseconds, in L1 after the first pass.
__global__ void GroupSlotsKernel(GroupSlotsArgs args) {
  const int lane = threadIdx.x % kWarp;
  const int warp = threadIdx.x / kWarp;
  const int num_warps = blockDim.x / kWarp;
  const int32_t places = args.num_ranks * args.slot_rows * args.k;
  const auto local_of = [&](int32_t place) {
    if (place >= places) return -1;
    return RouteArrival(args.counts, args.experts, args.slot_rows, args.k, args.local_index, place);
  };
  for (int32_t local = warp; local < args.num_local; local += num_warps) {
    int32_t count = 0;
    for (int32_t first = 0; first < places; first += kWarp) {
      count += __popc(__ballot_sync(kAllLanes, local_of(first + lane) == local));
    }
    if (lane == 0) args.expert_offsets[local + 1] = count;
  }
  __syncthreads();
  if (threadIdx.x == 0) {
    args.expert_offsets[0] = 0;
    for (int32_t local = 0; local < args.num_local; ++local) {
      args.expert_offsets[local + 1] += args.expert_offsets[local];
    }
  }
  __syncthreads();
  for (int32_t local = warp; local < args.num_local; local += num_warps) {
    int32_t next = args.expert_offsets[local];
    for (int32_t first = 0; first < places; first += kWarp) {
      const int32_t place = first + lane;
      const bool is_ours = local_of(place) == local;
      const unsigned votes = __ballot_sync(kAllLanes, is_ours);
      if (is_ours) {
        const int32_t at = next + __popc(votes & ((1u << lane) - 1));
        args.pair_row[at] = place / args.k;
        args.pair_out[at] = place;
      }
      next += __popc(votes);
    }
  }
}

}  // namespace

void FillSlots(const FillSlotsArgs& args, CUstream_st* stream) {
  const size_t shared = static_cast<size_t>(args.slot_rows) * sizeof(int32_t);
  FillSlotsKernel<<<args.num_ranks, kThreads, shared, stream>>>(args);
}

void GroupSlots(const GroupSlotsArgs& args, CUstream_st* stream) {
  GroupSlotsKernel<<<1, 1024, 0, stream>>>(args);
}

}  // namespace shoal
