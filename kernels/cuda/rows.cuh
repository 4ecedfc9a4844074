// Rows of bf16 eight at a time where their length and addresses allow it, else one at a time.
#pragma once

#include <cstdint>

#include "kernels/numeric.h"
#include "kernels/tensor.h"

namespace shoal::cuda {

template <int kWidth>
struct Bf16Pack {
  static_assert(kWidth == 1 || kWidth == 8);
  alignas(2 * kWidth) Bf16 values[kWidth];
};

template <int kWidth>
__device__ inline Bf16Pack<kWidth> LoadPack(const Bf16* from) {
  Bf16Pack<kWidth> pack;
  if constexpr (kWidth == 8) {
    *reinterpret_cast<uint4*>(pack.values) = *reinterpret_cast<const uint4*>(from);
  } else {
    pack.values[0] = *from;
  }
  return pack;
}

template <int kWidth>
__device__ inline void StorePack(Bf16* to, const Bf16Pack<kWidth>& pack) {
  if constexpr (kWidth == 8) {
    *reinterpret_cast<uint4*>(to) = *reinterpret_cast<const uint4*>(pack.values);
  } else {
    *to = pack.values[0];
  }
}

inline bool IsWide(const TensorView& x) {
  return x.empty() ||
         (x.cols % 8 == 0 && x.stride % 8 == 0 && reinterpret_cast<uintptr_t>(x.data) % 16 == 0);
}

}  // namespace shoal::cuda
