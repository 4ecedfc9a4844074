// (E10)-(E11) The k largest scores, falling, equal ones by lower id; shares[s] = exp(score[s] -
// score[0]) / sum over the k, the sum in slot order. A NaN score counts as -infinity. The bits of
// the CPU, given the same scores.
//
// SelectExperts: a warp a row; slot after slot the warp finds the best of what comes after the slot
// before. GroupByExpert: one thread block sorts all pairs by counting, in passes of 1,024. Integers
// alone, so its order is exact. Both are bound by latency. Time taken: not yet measured.
#include "kernels/cuda/device.cuh"
#include "kernels/cuda/ptx.cuh"
#include "kernels/cuda/warp.cuh"
#include "kernels/numeric.h"

namespace shoal::cuda {
namespace {

constexpr int kRowsPerBlock = 4;
constexpr int kMaxSlots = 32;

struct SelectParams {
  const float* scores;
  int64_t scores_stride;
  int64_t rows;
  int num_experts;
  int k;
  int32_t* ids;
  int64_t ids_stride;
  float* shares;
  int64_t shares_stride;
};

__global__ void __launch_bounds__(32 * kRowsPerBlock)
    SelectExpertsKernel(const __grid_constant__ SelectParams p) {
  constexpr float kNone = -__builtin_inff();
  ptx::AwaitEarlierKernels();
  const int64_t row = int64_t{blockIdx.x} * kRowsPerBlock + threadIdx.x / 32;
  const int lane = static_cast<int>(threadIdx.x % 32);
  if (row >= p.rows) return;
  const float* const scores = p.scores + row * p.scores_stride;
  float last = __builtin_inff();  // The slot before: everything comes after (+inf, -1).
  int last_id = -1;
  float mine = 0.0f;  // Score of slot `lane`
  int mine_id = 0;
  for (int slot = 0; slot < p.k; ++slot) {
    float best = kNone;
    int best_id = 0x7fffffff;
    for (int e = lane; e < p.num_experts; e += 32) {
      const float raw = scores[e];
      const float score = raw == raw ? raw : kNone;
      if (IsBefore(last, last_id, score, e) && IsBefore(score, e, best, best_id)) {
        best = score;
        best_id = e;
      }
    }
    for (int offset = 16; offset > 0; offset /= 2) {
      const float other = __shfl_xor_sync(kAllLanes, best, offset);
      const int other_id = __shfl_xor_sync(kAllLanes, best_id, offset);
      if (IsBefore(other, other_id, best, best_id)) {
        best = other;
        best_id = other_id;
      }
    }
    if (lane == slot) {
      mine = best;
      mine_id = best_id;
    }
    last = best;
    last_id = best_id;
  }
  const float max = __shfl_sync(kAllLanes, mine, 0);
  const float exp = Exp(mine - max);
  float sum = 0.0f;
  for (int slot = 0; slot < p.k; ++slot) sum += __shfl_sync(kAllLanes, exp, slot);
  if (lane >= p.k) return;
  p.ids[row * p.ids_stride + lane] = mine_id;
  p.shares[row * p.shares_stride + lane] = exp / sum;
}

constexpr int kGroupThreads = 1024;
constexpr int kGroupWarps = kGroupThreads / 32;
constexpr int kMaxLocal = 128;

struct GroupParams {
  const int32_t* ids;
  int64_t ids_stride;
  int k;
  int pairs;
  const int32_t* local_index;
  int num_local;
  int32_t* expert_offsets;
  int32_t* pair_row;
  int32_t* pair_out;
};

__device__ inline int LocalOf(const GroupParams& p, int pair) {
  return p.local_index[p.ids[pair / p.k * p.ids_stride + pair % p.k]];
}

__global__ void __launch_bounds__(kGroupThreads)
    GroupByExpertKernel(const __grid_constant__ GroupParams p) {
  __shared__ int next[kMaxLocal];                  // Where an expert's next pair goes
  __shared__ int of_warp[kGroupWarps][kMaxLocal];  // Pairs of the pass, by warp and expert
  ptx::AwaitEarlierKernels();
  const int thread = static_cast<int>(threadIdx.x);
  const int warp = thread / 32;
  if (thread < kMaxLocal) next[thread] = 0;
  __syncthreads();
  for (int pair = thread; pair < p.pairs; pair += kGroupThreads) {
    atomicAdd(&next[LocalOf(p, pair)], 1);
  }
  __syncthreads();
  if (thread == 0) {
    int sum = 0;
    for (int e = 0; e < p.num_local; ++e) {
      const int count = next[e];
      next[e] = sum;
      p.expert_offsets[e] = sum;
      sum += count;
    }
    p.expert_offsets[p.num_local] = sum;
  }
  for (int first = 0; first < p.pairs; first += kGroupThreads) {
    for (int i = thread; i < kGroupWarps * kMaxLocal; i += kGroupThreads) {
      of_warp[i / kMaxLocal][i % kMaxLocal] = 0;
    }
    __syncthreads();
    const int pair = first + thread;
    const int local = pair < p.pairs ? LocalOf(p, pair) : -1;
    // Lanes of this warp with the same expert; those below come first.
    const unsigned same = __match_any_sync(kAllLanes, local);
    const int before = __popc(same & ((1u << (thread % 32)) - 1u));
    if (local >= 0 && before == 0) of_warp[warp][local] = __popc(same);
    __syncthreads();
    if (thread < p.num_local) {  // Each warp's first place for the expert
      int at = next[thread];
      for (int w = 0; w < kGroupWarps; ++w) {
        const int count = of_warp[w][thread];
        of_warp[w][thread] = at;
        at += count;
      }
      next[thread] = at;
    }
    __syncthreads();
    if (local >= 0) {
      const int at = of_warp[warp][local] + before;
      p.pair_row[at] = pair / p.k;
      p.pair_out[at] = pair;
    }
    __syncthreads();
  }
}

}  // namespace

void Device::SelectExperts(const SelectExpertsArgs& args) {
  const int64_t k = args.ids.cols;
  KERNEL_CHECK(k <= kMaxSlots && k <= args.scores.cols);
  Launch(SelectExpertsKernel,
         dim3(static_cast<unsigned>((args.scores.rows + kRowsPerBlock - 1) / kRowsPerBlock)),
         32 * kRowsPerBlock,
         0,
         SelectParams{.scores = args.scores.row<const float>(0),
                      .scores_stride = args.scores.stride,
                      .rows = args.scores.rows,
                      .num_experts = static_cast<int>(args.scores.cols),
                      .k = static_cast<int>(k),
                      .ids = args.ids.row<int32_t>(0),
                      .ids_stride = args.ids.stride,
                      .shares = args.shares.row<float>(0),
                      .shares_stride = args.shares.stride});
}

void Device::GroupByExpert(const GroupByExpertArgs& args) {
  KERNEL_CHECK(args.num_local <= kMaxLocal);
  Launch(GroupByExpertKernel,
         dim3(1),
         kGroupThreads,
         0,
         GroupParams{.ids = args.ids.row<const int32_t>(0),
                     .ids_stride = args.ids.stride,
                     .k = static_cast<int>(args.ids.cols),
                     .pairs = static_cast<int>(args.ids.rows * args.ids.cols),
                     .local_index = args.local_index.data,
                     .num_local = args.num_local,
                     .expert_offsets = args.expert_offsets,
                     .pair_row = args.pair_row,
                     .pair_out = args.pair_out});
}

}  // namespace shoal::cuda
