// (E12)-(E15): out = W2 SwiGLU(W1 x + b1) + b2 for every (row, expert) pair.
//
// Two launches: W1 with the SwiGLU in its epilogue writes h (bf16) for every pair, W2 writes the
// outputs to their places. Weights are MXFP4, decoded to bf16 exactly (mx_layout.h), or bf16; the
// order of a sum is gemm.cuh's over all inputs, then the bias.
//
// A launch cannot know which experts were chosen, so it has thread blocks for the most tiles that
// so many pairs can make; each block finds its (expert, pairs) in the offsets, the surplus leaves.
//
// Who: a thread block for each (64 rows of W, up to 8, 16, 32 or 64 pairs of one expert), weights
// 10 stages ahead (22 KB each block in flight, four or five blocks to a multiprocessor): the
// bandwidth kernel. From 65 pairs of an expert on: 192 rows of W (three warpgroups, no padding for
// 5,760 and 2,880) by 128 pairs, where decoding takes about a quarter of the products' time and
// runs beside them. The width changes no bit.
//
// Bound: 13.2 MB for each expert with pairs, up to about 49 pairs per expert; beyond that
// 6 hidden intermediate FLOP per pair. Integer work: 1.4 operations per weight to place its bits,
// 0.4 for the scales, once per tile. Fraction reached: not yet measured.
#include "kernels/cuda/device.cuh"
#include "kernels/cuda/gemm.cuh"

namespace shoal::cuda {
namespace {

constexpr int kMaxExperts = 128;

// Of one projection, by value in the launch: captured steps keep it.
struct ExpertTable {
  const std::byte* weights[kMaxExperts];
  const float* bias[kMaxExperts];
};

struct ExpertParams {
  const int32_t* offsets;  // [num_experts + 1]
  int num_experts;
  int64_t outs;  // Of this projection
  int64_t in;
  const Bf16* x;  // Tokens: row index[i], or row i if index is null, of pair i
  const int32_t* index;
  int64_t x_stride;
  Bf16* out;  // W1: h, row i of pair i. W2: row place[i].
  const int32_t* place;
  int64_t out_stride;
  float alpha;
  float limit;
};

// The block's tile: pairs [first, end) of `expert`; expert < 0: none is left for it.
struct ExpertTile {
  int expert;
  int first;
  int end;
};

// Tile `index` counted over the experts in order, each with ceil(pairs / kColumns). By the first
// warp, 32 experts at a time.
template <int kColumns>
__device__ ExpertTile FindTile(const ExpertParams& p, int index) {
  const int lane = static_cast<int>(threadIdx.x);
  int before = 0;  // Tiles of the experts already passed
  for (int base = 0; base < p.num_experts; base += 32) {
    const int e = base + lane;
    const int first = e < p.num_experts ? p.offsets[e] : 0;
    const int end = e < p.num_experts ? p.offsets[e + 1] : 0;
    const int tiles = (end - first + kColumns - 1) / kColumns;
    int sum = tiles;  // Of this lane's expert and those before it
    for (int offset = 1; offset < 32; offset *= 2) {
      const int other = __shfl_up_sync(0xffffffffu, sum, offset);
      if (lane >= offset) sum += other;
    }
    const bool is_mine = index >= before + sum - tiles && index < before + sum;
    const unsigned found = __ballot_sync(0xffffffffu, is_mine);
    if (found != 0) {
      const int owner = __ffs(static_cast<int>(found)) - 1;
      const int at = first + (index - (before + sum - tiles)) * kColumns;
      return {.expert = base + owner,
              .first = __shfl_sync(0xffffffffu, at, owner),
              .end = __shfl_sync(0xffffffffu, end, owner)};
    }
    before += __shfl_sync(0xffffffffu, sum, 31);
  }
  return {.expert = -1, .first = 0, .end = 0};
}

// A NaN stays NaN: the comparisons choose the second operand.
__device__ inline float SwiGlu(float gate, float up, float alpha, float limit) {
  const float a = limit < gate ? limit : gate;
  const float clipped = limit < up ? limit : up;
  const float b = -limit > clipped ? -limit : clipped;
  return a / (1.0f + Exp(-alpha * a)) * (b + 1.0f);
}

// Rows of W1 alternate gate and up: lanes 4 apart hold the two of an output. The even one computes
// for rows g, the odd one for rows g + 8; they swap what the other needs.
template <int kColumns>
__device__ void StoreHidden(const ExpertParams& p,
                            const float (&acc)[kColumns / 2],
                            const float* bias,
                            int64_t first_out,
                            const ExpertTile& tile) {
  const int lane = static_cast<int>(threadIdx.x % 32);
  const bool is_even = lane / 4 % 2 == 0;
  const int64_t low = first_out + 16 * static_cast<int64_t>(threadIdx.x / 32 % 4) + lane / 4;
  const float low_bias = low < p.outs ? bias[low] : 0.0f;
  const float high_bias = low + 8 < p.outs ? bias[low + 8] : 0.0f;
  const int64_t gate_row = is_even ? low : low + 7;
#pragma unroll
  for (int i = 0; i < kColumns / 2; i += 4) {
#pragma unroll
    for (int c = 0; c < 2; ++c) {
      const float of_low = acc[i + c] + low_bias;
      const float of_high = acc[i + c + 2] + high_bias;
      const float other = __shfl_xor_sync(0xffffffffu, is_even ? of_high : of_low, 4);
      const float h = is_even ? SwiGlu(of_low, other, p.alpha, p.limit)
                              : SwiGlu(other, of_high, p.alpha, p.limit);
      const int pair = tile.first + 2 * i + FragmentCColumn(lane, c);
      if (pair >= tile.end || gate_row >= p.outs) continue;
      p.out[pair * p.out_stride + gate_row / 2] = ToBf16(h);
    }
  }
}

template <int kColumns>
__device__ void StoreOutputs(const ExpertParams& p,
                             const float (&acc)[kColumns / 2],
                             const float* bias,
                             int64_t first_out,
                             const ExpertTile& tile) {
  const int lane = static_cast<int>(threadIdx.x % 32);
  const int64_t out = first_out + 16 * static_cast<int64_t>(threadIdx.x / 32 % 4);
#pragma unroll
  for (int i = 0; i < kColumns / 2; ++i) {
    const int64_t o = out + FragmentCRow(lane, i % 4);
    const int pair = tile.first + 8 * (i / 4) + FragmentCColumn(lane, i % 4);
    if (pair >= tile.end || o >= p.outs) continue;
    p.out[p.place[pair] * p.out_stride + o] = ToBf16(acc[i] + bias[o]);
  }
}

template <typename Weights>
__device__ Weights WeightsOf(const std::byte* expert, const ExpertParams& p, int64_t first_out) {
  if constexpr (Weights::kDecodes) {
    const int64_t tiles = (p.in + kTileInputs - 1) / kTileInputs;
    const bool is_inside = first_out < p.outs;
    return {is_inside ? expert + first_out / kTileOuts * tiles * kMxTileBytes : expert, is_inside};
  } else {
    return {reinterpret_cast<const Bf16*>(expert), p.in, p.outs, p.in, first_out};
  }
}

// One block to a multiprocessor as the least: shared memory, not registers, decides how many there
// are, and without the 1 ptxas spills on sm_80 to have one more.
template <typename Weights, bool kIsGateUp, int kGroups, int kColumns, int kStages>
__global__ void __launch_bounds__(kGroups* kGroupThreads, 1)
    ExpertKernel(const __grid_constant__ ExpertParams p,
                 const __grid_constant__ ExpertTable table) {
  using Product = Gemm<Weights, kGroups, kColumns, kStages>;
  __shared__ ExpertTile found;
  ptx::AwaitEarlierKernels();
  if (threadIdx.x < 32) {
    const ExpertTile tile = FindTile<kColumns>(p, static_cast<int>(blockIdx.y));
    if (threadIdx.x == 0) found = tile;
  }
  __syncthreads();
  const ExpertTile tile = found;
  if (tile.expert < 0) return;
  const TokenRows<kColumns, Product::kThreads> tokens(
      min(kColumns, tile.end - tile.first), p.x, [&](int c) {
        const int pair = tile.first + c;
        const int64_t row = p.index == nullptr ? pair : p.index[pair];
        return p.x + row * p.x_stride;
      });

  const int64_t first_out =
      (static_cast<int64_t>(blockIdx.x) * kGroups + threadIdx.x / kGroupThreads) * kTileOuts;
  const Weights weights = WeightsOf<Weights>(table.weights[tile.expert], p, first_out);
  const Product product{weights, tokens, static_cast<int>(p.in), AlignedShared()};
  float acc[kColumns / 2];
  product.Run(0, static_cast<int>((p.in + kTileInputs - 1) / kTileInputs), acc);
  if constexpr (kIsGateUp) {
    StoreHidden<kColumns>(p, acc, table.bias[tile.expert], first_out, tile);
  } else {
    StoreOutputs<kColumns>(p, acc, table.bias[tile.expert], first_out, tile);
  }
}

template <typename Weights, bool kIsGateUp, int kGroups, int kColumns, int kStages>
void LaunchTiles(Device& device, const ExpertParams& p, const ExpertTable& table, int64_t pairs) {
  device.Launch(ExpertKernel<Weights, kIsGateUp, kGroups, kColumns, kStages>,
                dim3(static_cast<unsigned>(CeilDiv(p.outs, int64_t{kGroups} * kTileOuts)),
                     static_cast<unsigned>(MaxExpertTiles(pairs, p.num_experts, kColumns))),
                kGroups * kGroupThreads,
                Gemm<Weights, kGroups, kColumns, kStages>::kSharedBytes,
                p,
                table);
}

template <bool kIsGateUp>
void LaunchProjection(Device& device,
                      const PackedMatrix& matrix,
                      std::span<const float* const> bias,
                      const ExpertParams& p,
                      int64_t pairs,
                      int64_t usual_pairs) {
  ExpertTable table{};
  for (int e = 0; e < p.num_experts; ++e) {
    table.weights[e] = matrix.experts[static_cast<size_t>(e)];
    table.bias[e] = bias[static_cast<size_t>(e)];
  }
  const int tokens = ExpertTokens(usual_pairs, p.num_experts);
  if (matrix.format == ExpertFormat::kBf16) {
    if (tokens == 8) return LaunchTiles<Bf16Weights, kIsGateUp, 1, 8, 8>(device, p, table, pairs);
    if (tokens <= 64) return LaunchTiles<Bf16Weights, kIsGateUp, 1, 64, 5>(device, p, table, pairs);
    return LaunchTiles<Bf16Weights, kIsGateUp, 2, 128, 3>(device, p, table, pairs);
  }
  switch (tokens) {
    case 8:
      return LaunchTiles<MxWeights, kIsGateUp, 1, 8, 12>(device, p, table, pairs);
    case 16:
      return LaunchTiles<MxWeights, kIsGateUp, 1, 16, 12>(device, p, table, pairs);
    case 32:
      return LaunchTiles<MxWeights, kIsGateUp, 1, 32, 8>(device, p, table, pairs);
    case 64:
      return LaunchTiles<MxWeights, kIsGateUp, 1, 64, 6>(device, p, table, pairs);
    default:
      return LaunchTiles<MxWeights, kIsGateUp, 3, 128, 4>(device, p, table, pairs);
  }
}

}  // namespace

void Device::ExpertMlp(const ExpertMlpArgs& args) {
  const int64_t pairs = args.pair_row.size;  // At most
  const int64_t usual_pairs = args.usual_pairs == 0 ? pairs : args.usual_pairs;
  const auto num_experts = static_cast<int>(args.expert_offsets.size()) - 1;
  const PackedMatrix& gate_up = *args.gate_up;
  const PackedMatrix& down = *args.down;
  KERNEL_CHECK(gate_up.out == 2 * down.in && gate_up.format == down.format);
  KERNEL_CHECK(args.x.cols == gate_up.in && args.out.cols == down.out);
  KERNEL_CHECK(num_experts <= kMaxExperts && args.pair_out.size == pairs);
  KERNEL_CHECK(args.x.stride % 8 == 0 && gate_up.in % 8 == 0 && down.in % 8 == 0);
  if (pairs == 0) return;
  auto* const h = static_cast<Bf16*>(
      ScratchOf(ScratchFor::kHidden,
                static_cast<size_t>(pairs) * static_cast<size_t>(down.in) * sizeof(Bf16)));
  if (h == nullptr) return;
  LaunchProjection<true>(*this,
                         gate_up,
                         args.gate_up_bias,
                         {.offsets = args.expert_offsets.data(),
                          .num_experts = num_experts,
                          .outs = gate_up.out,
                          .in = gate_up.in,
                          .x = args.x.row<const Bf16>(0),
                          .index = args.pair_row.data,
                          .x_stride = args.x.stride,
                          .out = h,
                          .place = nullptr,
                          .out_stride = down.in,
                          .alpha = args.alpha,
                          .limit = args.limit},
                         pairs,
                         usual_pairs);
  LaunchProjection<false>(*this,
                          down,
                          args.down_bias,
                          {.offsets = args.expert_offsets.data(),
                           .num_experts = num_experts,
                           .outs = down.out,
                           .in = down.in,
                           .x = h,
                           .index = nullptr,
                           .x_stride = down.in,
                           .out = args.out.row<Bf16>(0),
                           .place = args.pair_out.data,
                           .out_stride = args.out.stride,
                           .alpha = args.alpha,
                           .limit = args.limit},
                          pairs,
                          usual_pairs);
}

}  // namespace shoal::cuda
