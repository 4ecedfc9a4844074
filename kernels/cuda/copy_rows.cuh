// out[i] = from[index[i]]: what Embed and PickRows are. A thread block a row.
#pragma once

#include "kernels/cuda/device.cuh"
#include "kernels/cuda/ptx.cuh"
#include "kernels/cuda/rows.cuh"

namespace shoal::cuda {

inline constexpr int kCopyThreads = 128;

template <int kWidth>
__global__ void CopyRowsKernel(const Bf16* from,
                               int64_t from_stride,
                               const int32_t* index,
                               Bf16* out,
                               int64_t out_stride,
                               int64_t cols) {
  ptx::AwaitEarlierKernels();
  const Bf16* const source = from + index[blockIdx.x] * from_stride;
  Bf16* const to = out + int64_t{blockIdx.x} * out_stride;
  for (int64_t i = int64_t{threadIdx.x} * kWidth; i < cols; i += int64_t{kCopyThreads} * kWidth) {
    StorePack<kWidth>(to + i, LoadPack<kWidth>(source + i));
  }
}

inline void CopyRows(Device& device,
                     const TensorView& from,
                     const IndexView& index,
                     const TensorView& out) {
  const bool is_wide = IsWide(from) && IsWide(out);
  device.Launch(is_wide ? CopyRowsKernel<8> : CopyRowsKernel<1>,
                dim3(static_cast<unsigned>(index.size)),
                kCopyThreads,
                0,
                from.row<const Bf16>(0),
                from.stride,
                index.data,
                out.row<Bf16>(0),
                out.stride,
                from.cols);
}

}  // namespace shoal::cuda
