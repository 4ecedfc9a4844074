// Rows eight elements at a time where their length and addresses allow it, else one at a time.
#pragma once

#include <cstdint>

#include "kernels/numeric.h"
#include "kernels/tensor.h"

namespace shoal::cuda {

// Neighbours of a row of bf16 or fp32, moved 16 bytes at a time if they are eight.
template <typename T, int kWidth>
struct Pack {
  static_assert(kWidth == 1 || kWidth == 8);
  static constexpr int kWords = kWidth * int{sizeof(T)} / int{sizeof(uint4)};
  alignas(kWidth == 8 ? sizeof(uint4) : sizeof(T)) T values[kWidth];
};

template <int kWidth, typename T>
__device__ inline Pack<T, kWidth> LoadPack(const T* from) {
  Pack<T, kWidth> pack;
  if constexpr (kWidth == 8) {
#pragma unroll
    for (int i = 0; i < pack.kWords; ++i) {
      reinterpret_cast<uint4*>(pack.values)[i] = reinterpret_cast<const uint4*>(from)[i];
    }
  } else {
    pack.values[0] = *from;
  }
  return pack;
}

template <int kWidth, typename T>
__device__ inline void StorePack(T* to, const Pack<T, kWidth>& pack) {
  if constexpr (kWidth == 8) {
#pragma unroll
    for (int i = 0; i < pack.kWords; ++i) {
      reinterpret_cast<uint4*>(to)[i] = reinterpret_cast<const uint4*>(pack.values)[i];
    }
  } else {
    *to = pack.values[0];
  }
}

inline bool IsWide(const TensorView& x) {
  return x.empty() ||
         (x.cols % 8 == 0 && x.stride % 8 == 0 && reinterpret_cast<uintptr_t>(x.data) % 16 == 0);
}

}  // namespace shoal::cuda
