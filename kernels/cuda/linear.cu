// (E3), (E9), (E10), (E17): out = x W^T + bias.
//
// Order of a sum: the inputs are split into LinearSplit(out, in) parts, a function of the weight's
// shape. Each part is summed from zero as gemm.cuh says, the parts are added in rising order, then
// the bias; one rounding if out is bf16.
//
// Up to 64 rows: a thread block for each (64 outputs, part, 64 rows); the last of an output tile's
// parts to arrive adds them all, in order, whoever was first. Kept: 3 to 8 stages of weights ahead,
// about 50 KB in flight for a block, two or three blocks to a multiprocessor. From 65 rows on: a
// block for each (128 outputs, 128 rows), which sums the parts one after the other.
//
// Bound: up to about 180 rows the bytes of W (2 in out), beyond that 2 rows in out FLOP. Fraction
// reached: not yet measured.
#include "kernels/cuda/device.cuh"
#include "kernels/cuda/gemm.cuh"

namespace shoal::cuda {
namespace {

struct LinearParams {
  const Bf16* x;
  int64_t x_stride;
  int64_t rows;
  const Bf16* weight;
  int64_t weight_stride;
  int64_t outs;
  int64_t in;
  const float* bias;
  void* out;  // bf16 or, if is_f32, f32
  int64_t out_stride;
  bool is_f32;
  int split;
  float* parts;        // [tiles, split, kColumns / 2, threads]: sums of unfinished tiles
  unsigned* counters;  // [tiles], zero between launches
};

template <int kColumns>
__device__ void StoreSums(const LinearParams& p,
                          const float (&acc)[kColumns / 2],
                          int64_t first_out,
                          int64_t first_row) {
  const int lane = static_cast<int>(threadIdx.x % 32);
  const int64_t out = first_out + 16 * static_cast<int64_t>(threadIdx.x / 32 % 4);
#pragma unroll
  for (int i = 0; i < kColumns / 2; ++i) {
    const int64_t o = out + FragmentCRow(lane, i % 4);
    const int64_t row = first_row + 8 * (i / 4) + FragmentCColumn(lane, i % 4);
    if (o >= p.outs || row >= p.rows) continue;
    const float sum = p.bias == nullptr ? acc[i] : acc[i] + p.bias[o];
    if (p.is_f32) {
      static_cast<float*>(p.out)[row * p.out_stride + o] = sum;
    } else {
      static_cast<Bf16*>(p.out)[row * p.out_stride + o] = ToBf16(sum);
    }
  }
}

template <int kColumns, int kThreads>
__device__ TokenRows<kColumns, kThreads> RowsFrom(const LinearParams& p, int64_t first_row) {
  const int64_t left = p.rows - first_row;
  const int num_rows = left < kColumns ? static_cast<int>(left) : kColumns;
  return TokenRows<kColumns, kThreads>(
      num_rows, p.x, [&](int c) { return p.x + (first_row + c) * p.x_stride; });
}

__device__ inline int PartBegin(const LinearParams& p, int part) {
  return static_cast<int>(SplitBegin((p.in + kTileInputs - 1) / kTileInputs, p.split, part));
}

template <int kColumns, int kStages>
__global__ void __launch_bounds__(kGroupThreads)
    LinearDecodeKernel(const __grid_constant__ LinearParams p) {
  using Product = Gemm<Bf16Weights, 1, kColumns, kStages>;
  __shared__ bool is_last;
  const int64_t first_row = static_cast<int64_t>(blockIdx.z) * kColumns;
  const int64_t first_out = static_cast<int64_t>(blockIdx.x) * kTileOuts;
  const int part = static_cast<int>(blockIdx.y);
  const auto tokens = RowsFrom<kColumns, Product::kThreads>(p, first_row);
  ptx::AwaitEarlierKernels();

  const Bf16Weights weights{p.weight, p.weight_stride, p.outs, p.in, first_out};
  const Product product{weights, tokens, static_cast<int>(p.in), AlignedShared()};
  float acc[kColumns / 2];
  product.Run(PartBegin(p, part), PartBegin(p, part + 1), acc);
  if (p.split == 1) return StoreSums<kColumns>(p, acc, first_out, first_row);

  const int64_t tile = static_cast<int64_t>(blockIdx.z) * gridDim.x + blockIdx.x;
  const auto at = [&](int s, int i) {
    return ((tile * p.split + s) * (kColumns / 2) + i) * kGroupThreads +
           static_cast<int64_t>(threadIdx.x);
  };
#pragma unroll
  for (int i = 0; i < kColumns / 2; ++i) p.parts[at(part, i)] = acc[i];
  __threadfence();
  __syncthreads();
  if (threadIdx.x == 0) {
    is_last = atomicAdd(p.counters + tile, 1u) == static_cast<unsigned>(p.split) - 1u;
    if (is_last) p.counters[tile] = 0;  // For the next launch.
  }
  __syncthreads();
  if (!is_last) return;
  __threadfence();
#pragma unroll
  for (int i = 0; i < kColumns / 2; ++i) acc[i] = __ldcg(p.parts + at(0, i));
  for (int s = 1; s < p.split; ++s) {
#pragma unroll
    for (int i = 0; i < kColumns / 2; ++i) acc[i] += __ldcg(p.parts + at(s, i));
  }
  StoreSums<kColumns>(p, acc, first_out, first_row);
}

constexpr int kPrefillGroups = 2;
constexpr int kPrefillStages = 3;

__global__ void __launch_bounds__(kPrefillGroups* kGroupThreads)
    LinearPrefillKernel(const __grid_constant__ LinearParams p) {
  constexpr int kColumns = kPrefillTokens;
  using Product = Gemm<Bf16Weights, kPrefillGroups, kColumns, kPrefillStages>;
  const int64_t first_row = static_cast<int64_t>(blockIdx.y) * kColumns;
  const int64_t first_out =
      (static_cast<int64_t>(blockIdx.x) * kPrefillGroups + threadIdx.x / kGroupThreads) * kTileOuts;
  const auto tokens = RowsFrom<kColumns, Product::kThreads>(p, first_row);
  ptx::AwaitEarlierKernels();

  const Bf16Weights weights{p.weight, p.weight_stride, p.outs, p.in, first_out};
  const Product product{weights, tokens, static_cast<int>(p.in), AlignedShared()};
  float total[kColumns / 2];
  product.Run(0, PartBegin(p, 1), total);
  for (int part = 1; part < p.split; ++part) {
    float acc[kColumns / 2];
    product.Run(PartBegin(p, part), PartBegin(p, part + 1), acc);
#pragma unroll
    for (int i = 0; i < kColumns / 2; ++i) total[i] += acc[i];
  }
  StoreSums<kColumns>(p, total, first_out, first_row);
}

template <int kColumns, int kStages>
void LaunchDecode(Device& device, LinearParams params) {
  const auto tiles = static_cast<unsigned>(CeilDiv(params.outs, kTileOuts));
  const auto columns = static_cast<unsigned>(CeilDiv(params.rows, kColumns));
  if (params.split > 1) {
    const size_t blocks = size_t{tiles} * columns;
    params.parts =
        static_cast<float*>(device.ScratchOf(ScratchFor::kSums,
                                             blocks * static_cast<size_t>(params.split) *
                                                 (kColumns / 2) * kGroupThreads * sizeof(float)));
    params.counters =
        static_cast<unsigned*>(device.ScratchOf(ScratchFor::kCounters, blocks * sizeof(unsigned)));
    if (params.parts == nullptr || params.counters == nullptr) return;
  }
  device.Launch(LinearDecodeKernel<kColumns, kStages>,
                dim3(tiles, static_cast<unsigned>(params.split), columns),
                kGroupThreads,
                Gemm<Bf16Weights, 1, kColumns, kStages>::kSharedBytes,
                params);
}

void LaunchPrefill(Device& device, const LinearParams& params) {
  constexpr int64_t kBlockOuts = kPrefillGroups * kTileOuts;
  device.Launch(LinearPrefillKernel,
                dim3(static_cast<unsigned>(CeilDiv(params.outs, kBlockOuts)),
                     static_cast<unsigned>(CeilDiv(params.rows, kPrefillTokens))),
                kPrefillGroups * kGroupThreads,
                Gemm<Bf16Weights, kPrefillGroups, kPrefillTokens, kPrefillStages>::kSharedBytes,
                params);
}

}  // namespace

void Device::Linear(const LinearArgs& args) {
  KERNEL_CHECK(args.x.cols == args.weight.cols && args.out.cols == args.weight.rows);
  KERNEL_CHECK(args.x.stride % 8 == 0 && args.weight.stride % 8 == 0);  // 16-byte copies
  const LinearParams params{.x = args.x.row<const Bf16>(0),
                            .x_stride = args.x.stride,
                            .rows = args.x.rows,
                            .weight = args.weight.row<const Bf16>(0),
                            .weight_stride = args.weight.stride,
                            .outs = args.weight.rows,
                            .in = args.weight.cols,
                            .bias = args.bias,
                            .out = args.out.data,
                            .out_stride = args.out.stride,
                            .is_f32 = args.out.dtype == DType::kF32,
                            .split = LinearSplit(args.weight.rows, args.weight.cols),
                            .parts = nullptr,
                            .counters = nullptr};
  switch (LinearTokens(args.x.rows)) {
    case 8:
      return LaunchDecode<8, 8>(*this, params);
    case 16:
      return LaunchDecode<16, 8>(*this, params);
    case 32:
      return LaunchDecode<32, 7>(*this, params);
    case 64:
      return LaunchDecode<64, 5>(*this, params);
    default:
      return LaunchPrefill(*this, params);
  }
}

}  // namespace shoal::cuda
