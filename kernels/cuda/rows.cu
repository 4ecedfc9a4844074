// Rows on their way to the experts and back. PickRows: out[i] = x[index[i]], a copy.
//
// (E16) SumSlots: x[r] = x[r] + sum over s of shares[r][s] * rows[r * k + s]. fp32, one fma per
// slot in the order of the slots.
//
// A thread block a row, eight elements a thread. Bound: 2 k + 8 bytes per element. Fraction
// reached: not yet measured.
#include "kernels/cuda/copy_rows.cuh"
#include "kernels/cuda/device.cuh"

namespace shoal::cuda {
namespace {

constexpr int kThreads = 128;

struct SumSlotsParams {
  const Bf16* rows;
  int64_t rows_stride;
  const float* shares;
  int64_t shares_stride;
  int k;
  float* x;
  int64_t x_stride;
  int64_t cols;
};

template <int kWidth>
__global__ void __launch_bounds__(kThreads)
    SumSlotsKernel(const __grid_constant__ SumSlotsParams p) {
  ptx::AwaitEarlierKernels();
  const int64_t row = blockIdx.x;
  float* const x = p.x + row * p.x_stride;
  const float* const shares = p.shares + row * p.shares_stride;
  const Bf16* const rows = p.rows + row * p.k * p.rows_stride;
  for (int64_t i = int64_t{threadIdx.x} * kWidth; i < p.cols; i += int64_t{kThreads} * kWidth) {
    Pack<float, kWidth> sum = LoadPack<kWidth>(x + i);
    for (int s = 0; s < p.k; ++s) {
      const float share = shares[s];
      const Pack<Bf16, kWidth> value = LoadPack<kWidth>(rows + s * p.rows_stride + i);
#pragma unroll
      for (int j = 0; j < kWidth; ++j) {
        sum.values[j] = fmaf(share, ToFloat(value.values[j]), sum.values[j]);
      }
    }
    StorePack<kWidth>(x + i, sum);
  }
}

}  // namespace

void Device::PickRows(const PickRowsArgs& args) {
  if (args.x.dtype == DType::kBf16) {
    CopyRows<Bf16, Bf16>(*this, args.x, args.index, args.out);
  } else {
    CopyRows<float, float>(*this, args.x, args.index, args.out);
  }
}

void Device::SumSlots(const SumSlotsArgs& args) {
  const bool is_wide = IsWide(args.x) && IsWide(args.rows);
  Launch(is_wide ? SumSlotsKernel<8> : SumSlotsKernel<1>,
         dim3(static_cast<unsigned>(args.x.rows)),
         kThreads,
         0,
         SumSlotsParams{.rows = args.rows.row<const Bf16>(0),
                        .rows_stride = args.rows.stride,
                        .shares = args.shares.row<const float>(0),
                        .shares_stride = args.shares.stride,
                        .k = static_cast<int>(args.shares.cols),
                        .x = args.x.row<float>(0),
                        .x_stride = args.x.stride,
                        .cols = args.x.cols});
}

}  // namespace shoal::cuda
