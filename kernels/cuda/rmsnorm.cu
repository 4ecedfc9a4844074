// (E2) x = x + add; out = bf16(x * (1 / sqrt(mean(x^2) + eps)) * gain). fp32 throughout,
// division and square root IEEE.
//
// A thread block a row. Sum of squares: a thread's elements rising by fma (eight neighbours of
// every 8 x 256, or single ones of every 256 where rows are not multiples of eight), then BlockSum.
// Kept: nothing; the row is read a second time from the caches. Bound: bytes, 6 to 12 times cols a
// row. Fraction reached: not yet measured.
#include "kernels/cuda/device.cuh"
#include "kernels/cuda/ptx.cuh"
#include "kernels/cuda/rows.cuh"
#include "kernels/cuda/warp.cuh"

namespace shoal::cuda {
namespace {

constexpr int kThreads = 256;

struct RmsNormParams {
  float* x;
  int64_t x_stride;
  const Bf16* add;  // May be null
  int64_t add_stride;
  const float* gain;
  float eps;
  Bf16* out;
  int64_t out_stride;
  int64_t cols;
};

template <int kWidth>
__global__ void __launch_bounds__(kThreads) RmsNormKernel(const __grid_constant__ RmsNormParams p) {
  __shared__ float sums[kThreads / 32];
  ptx::AwaitEarlierKernels();
  float* const x = p.x + int64_t{blockIdx.x} * p.x_stride;
  float squares = 0.0f;
  for (int64_t i = int64_t{threadIdx.x} * kWidth; i < p.cols; i += int64_t{kThreads} * kWidth) {
    Pack<float, kWidth> pack = LoadPack<kWidth>(x + i);
    if (p.add != nullptr) {
      const Pack<Bf16, kWidth> add =
          LoadPack<kWidth>(p.add + int64_t{blockIdx.x} * p.add_stride + i);
#pragma unroll
      for (int j = 0; j < kWidth; ++j) pack.values[j] += ToFloat(add.values[j]);
      StorePack<kWidth>(x + i, pack);  // The same thread reads it below.
    }
#pragma unroll
    for (int j = 0; j < kWidth; ++j) squares = fmaf(pack.values[j], pack.values[j], squares);
  }
  const float mean = BlockSum<kThreads>(squares, sums) / static_cast<float>(p.cols);
  const float scale = 1.0f / sqrtf(mean + p.eps);
  Bf16* const out = p.out + int64_t{blockIdx.x} * p.out_stride;
  for (int64_t i = int64_t{threadIdx.x} * kWidth; i < p.cols; i += int64_t{kThreads} * kWidth) {
    const Pack<float, kWidth> pack = LoadPack<kWidth>(x + i);
    Pack<Bf16, kWidth> normed;
#pragma unroll
    for (int j = 0; j < kWidth; ++j) {
      normed.values[j] = ToBf16(pack.values[j] * scale * p.gain[i + j]);
    }
    StorePack<kWidth>(out + i, normed);
  }
}

}  // namespace

void Device::RmsNorm(const RmsNormArgs& args) {
  const bool has_add = !args.add.empty();
  const bool is_wide = IsWide(args.x) && IsWide(args.add) && IsWide(args.out);
  Launch(is_wide ? RmsNormKernel<8> : RmsNormKernel<1>,
         dim3(static_cast<unsigned>(args.x.rows)),
         kThreads,
         0,
         RmsNormParams{.x = args.x.row<float>(0),
                       .x_stride = args.x.stride,
                       .add = has_add ? args.add.row<const Bf16>(0) : nullptr,
                       .add_stride = args.add.stride,
                       .gain = args.gain,
                       .eps = args.eps,
                       .out = args.out.row<Bf16>(0),
                       .out_stride = args.out.stride,
                       .cols = args.x.cols});
}

}  // namespace shoal::cuda
