// out[i] = from[index[i]], widened if `out` is wider: what Embed and PickRows are. A thread block a
// row.
#pragma once

#include <type_traits>

#include "kernels/cuda/device.cuh"
#include "kernels/cuda/ptx.cuh"
#include "kernels/cuda/rows.cuh"

namespace shoal::cuda {

inline constexpr int kCopyThreads = 128;

template <int kWidth, typename From, typename To>
__global__ void CopyRowsKernel(const From* from,
                               int64_t from_stride,
                               const int32_t* index,
                               To* out,
                               int64_t out_stride,
                               int64_t cols) {
  ptx::AwaitEarlierKernels();
  const From* const source = from + index[blockIdx.x] * from_stride;
  To* const to = out + int64_t{blockIdx.x} * out_stride;
  for (int64_t i = int64_t{threadIdx.x} * kWidth; i < cols; i += int64_t{kCopyThreads} * kWidth) {
    const Pack<From, kWidth> pack = LoadPack<kWidth>(source + i);
    if constexpr (std::is_same_v<From, To>) {
      StorePack<kWidth>(to + i, pack);
    } else {
      Pack<To, kWidth> wider;
#pragma unroll
      for (int j = 0; j < kWidth; ++j) wider.values[j] = ToFloat(pack.values[j]);
      StorePack<kWidth>(to + i, wider);
    }
  }
}

template <typename From, typename To>
void CopyRows(Device& device,
              const TensorView& from,
              const IndexView& index,
              const TensorView& out) {
  const bool is_wide = IsWide(from) && IsWide(out);
  device.Launch(is_wide ? CopyRowsKernel<8, From, To> : CopyRowsKernel<1, From, To>,
                dim3(static_cast<unsigned>(index.size)),
                kCopyThreads,
                0,
                from.row<const From>(0),
                from.stride,
                index.data,
                out.row<To>(0),
                out.stride,
                from.cols);
}

}  // namespace shoal::cuda
