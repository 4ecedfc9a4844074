// What surrounds the products: bf16 rows in, sums out. Written once over a vector of sixteen lanes
// (lanes_*.h), compiled once per instruction set, equal bit for bit. V is a parameter of the plain
// loops, too, so that each instruction set has a copy of its own.
#pragma once

#include <bit>
#include <cstdint>
#include <limits>

#include "kernels/cpu/dot.h"
#include "kernels/cpu/lane_math.h"
#include "kernels/numeric.h"

namespace shoal::epilogue {

SHOAL_INLINE float PowerOfTwo(int exponent) {  // REQUIRES: -149 <= exponent <= 127.
  return std::bit_cast<float>(exponent >= -126 ? static_cast<uint32_t>(exponent + 127) << 23
                                               : uint32_t{1} << (exponent + 149));
}

// x rounded to an integer, to nearest even: the sum's ulp is 1. REQUIRES: |x| < 2^22.
SHOAL_INLINE int32_t RoundToInt(float x) {
  constexpr float kShift = 0x1.8p23f;
  return std::bit_cast<int32_t>(x + kShift) - std::bit_cast<int32_t>(kShift);
}

// The largest |x| is 1.m * 2^E. With the scale 2^(E - 14) its q is 1.m * 2^14 <= 32,512 if m is not
// all ones, and 32,640, one too many, if it is. Adding one to the bits carries into the exponent in
// exactly that case. Subnormals count as exponent -126, where every q is exact anyway.
SHOAL_INLINE void QuantizeBlock(const Bf16* x, QuantBlock* block) {
  int largest = 0;
  for (int k = 0; k < kMxBlock; ++k) {
    const int magnitude = x[k].bits & 0x7fff;
    largest = magnitude > largest ? magnitude : largest;
  }
  const bool finite = largest < 0x7f80;
  const int carried = (largest + 1) >> 7;
  const int biased = carried > 1 ? carried : 1;  // E + 127, or one more.

  // 1 / scale = 2^(141 - biased) may be beyond fp32: two factors, each exact.
  const float first = !finite ? 0.0f : biased < 15 ? 0x1p64f : 1.0f;
  const float second = !finite ? 0.0f : PowerOfTwo(biased < 15 ? 77 - biased : 141 - biased);
  int32_t sum = 0;
  for (int k = 0; k < kMxBlock; ++k) {
    const float value = finite ? ToFloat(x[k]) : 0.0f;
    const int32_t q = RoundToInt(value * first * second);
    const int32_t hi = (q + 128) >> 8;
    block->hi[k] = static_cast<int8_t>(hi);
    block->lo[k] = static_cast<int8_t>(q - 256 * hi);
    sum += q;
  }
  block->half_scale = finite ? PowerOfTwo(biased - 142) : std::numeric_limits<float>::quiet_NaN();
  block->offset = -kCodeBias * sum;
}

template <typename V>
void Quantize(const Bf16* x, int64_t num_blocks, QuantBlock* blocks) {
  for (int64_t b = 0; b < num_blocks; ++b) QuantizeBlock(x + b * kMxBlock, blocks + b);
}

// A NaN stays NaN: Min and Max give their second argument.
template <typename V>
SHOAL_INLINE V SwiGluLanes(V gate, V up, float alpha, float limit) {
  const V one = V::Broadcast(1.0f);
  const V a = Min(V::Broadcast(limit), gate);
  const V b = Max(V::Broadcast(-limit), Min(V::Broadcast(limit), up));
  return a / (one + Exp(V::Broadcast(-alpha) * a)) * (b + one);
}

template <typename V>
void SwiGlu(const SwiGluArgs& args) {
  for (int64_t j = 0; j < args.count; j += V::kWidth) {
    const int64_t count = args.count - j < V::kWidth ? args.count - j : V::kWidth;
    float gate[V::kWidth] = {};
    float up[V::kWidth] = {};
    for (int64_t i = 0; i < count; ++i) {
      gate[i] = args.sums[2 * (j + i)] + args.bias[2 * (j + i)];
      up[i] = args.sums[2 * (j + i) + 1] + args.bias[2 * (j + i) + 1];
    }
    const V h = SwiGluLanes(V::Load(gate), V::Load(up), args.alpha, args.limit);
    h.StoreFirst(args.h + j, count);
  }
}

template <typename V>
void Widen(const Bf16* x, int64_t count, float* out) {
  int64_t i = 0;
  for (; i + V::kWidth <= count; i += V::kWidth) V::Load(x + i).Store(out + i);
  for (; i < count; ++i) out[i] = ToFloat(x[i]);
}

template <typename V>
void FinishBf16(const float* sums, const float* bias, int64_t count, Bf16* out) {
  for (int64_t i = 0; i < count; i += V::kWidth) {
    const int64_t left = count - i;
    V value = left >= V::kWidth ? V::Load(sums + i) : V::LoadFirst(sums + i, left);
    if (bias != nullptr) {
      value = value + (left >= V::kWidth ? V::Load(bias + i) : V::LoadFirst(bias + i, left));
    }
    if (left >= V::kWidth) {
      value.Store(out + i);
    } else {
      value.StoreFirst(out + i, left);
    }
  }
}

// One NaN for all: which payload survives an addition is the compiler's choice of operand order.
template <typename V>
void FinishF32(const float* sums, const float* bias, int64_t count, float* out) {
  for (int64_t i = 0; i < count; ++i) {
    const float value = bias == nullptr ? sums[i] : sums[i] + bias[i];
    out[i] = value == value ? value : std::numeric_limits<float>::quiet_NaN();
  }
}

}  // namespace shoal::epilogue
