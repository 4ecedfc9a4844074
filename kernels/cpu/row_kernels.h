// The inner loops of the dense operations, one row at a time: written once as templates over a
// vector of sixteen lanes (lanes_*.h), compiled once per instruction set (row_kernels_*.cc), equal
// bit for bit. The formulas' order of sums is in kernels/backend.h.
#pragma once

#include <cstddef>
#include <cstdint>

#include "kernels/cpu/attention_kernel.h"
#include "kernels/cpu/backend.h"
#include "kernels/cpu/lane_math.h"
#include "kernels/numeric.h"

namespace shoal {

struct RowKernels {
  // x += add (if not null); out = bf16(x / rms(x) * gain).
  void (*rms_norm)(float* x, const Bf16* add, const float* gain, float eps, int64_t n, Bf16* out);
  // Rotates the pairs (x[i], x[i + half]) of one head by (cos[i], sin[i]), in place.
  void (*rotate)(Bf16* x, const float* cos, const float* sin, int64_t half);
  // x += sum over s < k of shares[s] * rows[s * stride + i].
  void (*sum_slots)(
      float* x, const Bf16* rows, int64_t stride, const float* shares, int64_t k, int64_t n);
  // One task of attention; see attention_kernel.h.
  void (*attend)(const AttentionTask& task, std::byte* scratch);
  // The largest of n values, NaNs left out; -infinity if there is none.
  float (*max)(const float* x, int64_t n);
  // out[i] = exp(x[i] - shift).
  void (*exp)(const float* x, int64_t n, float shift, float* out);
  // The sum of exp(x[i] - shift): in chunks of kSumChunk by lanes, the chunks added in double.
  double (*sum_exp)(const float* x, int64_t n, float shift);
};

inline constexpr int64_t kSumChunk = 4096;

// REQUIRES: this processor has `isa`.
const RowKernels& GetRowKernels(CpuIsa isa);

namespace row_kernels {

// Lanes i to i + 15 of a row of n elements; those beyond n read as +0 and are not stored.
template <typename V, typename T>
SHOAL_INLINE V LoadAt(const T* from, int64_t i, int64_t n) {
  return i + V::kWidth <= n ? V::Load(from + i) : V::LoadFirst(from + i, n - i);
}

template <typename V, typename T>
SHOAL_INLINE void StoreAt(V x, T* to, int64_t i, int64_t n) {
  if (i + V::kWidth <= n) {
    x.Store(to + i);
  } else {
    x.StoreFirst(to + i, n - i);
  }
}

template <typename V>
void RmsNorm(float* x, const Bf16* add, const float* gain, float eps, int64_t n, Bf16* out) {
  V squares = V::Broadcast(0.0f);
  for (int64_t i = 0; i < n; i += V::kWidth) {
    V value = LoadAt<V>(x, i, n);
    if (add != nullptr) {
      value = value + LoadAt<V>(add, i, n);
      StoreAt(value, x, i, n);
    }
    squares = Fma(value, value, squares);
  }
  const float mean = Sum(squares) / static_cast<float>(n);
  const V scale = V::Broadcast(1.0f / std::sqrt(mean + eps));
  for (int64_t i = 0; i < n; i += V::kWidth) {
    StoreAt(LoadAt<V>(x, i, n) * scale * LoadAt<V>(gain, i, n), out, i, n);
  }
}

template <typename V>
void Rotate(Bf16* x, const float* cos, const float* sin, int64_t half) {
  Bf16* const y = x + half;
  for (int64_t i = 0; i < half; i += V::kWidth) {
    const V c = LoadAt<V>(cos, i, half);
    const V s = LoadAt<V>(sin, i, half);
    const V a = LoadAt<V>(x, i, half);
    const V b = LoadAt<V>(y, i, half);
    StoreAt(Fma(a, c, V::Broadcast(0.0f) - b * s), x, i, half);
    StoreAt(Fma(b, c, a * s), y, i, half);
  }
}

template <typename V>
void SumSlots(
    float* x, const Bf16* rows, int64_t stride, const float* shares, int64_t k, int64_t n) {
  for (int64_t i = 0; i < n; i += V::kWidth) {
    V sum = LoadAt<V>(x, i, n);
    for (int64_t s = 0; s < k; ++s) {
      sum = Fma(V::Broadcast(shares[s]), LoadAt<V>(rows + s * stride, i, n), sum);
    }
    StoreAt(sum, x, i, n);
  }
}

template <typename V>
float MaxOfRow(const float* x, int64_t n) {
  constexpr float kNone = -std::numeric_limits<float>::infinity();
  V max = V::Broadcast(kNone);
  for (int64_t i = 0; i < n; i += V::kWidth) {
    V value = LoadAt<V>(x, i, n);
    if (i + V::kWidth > n) value = KeepRange(value, 0, static_cast<int>(n - i), kNone);
    max = Max(value, max);
  }
  return MaxOf(max);
}

template <typename V>
void ExpOfRow(const float* x, int64_t n, float shift, float* out) {
  int64_t i = 0;
  for (; i + V::kWidth <= n; i += V::kWidth) {
    Exp(V::Load(x + i) - V::Broadcast(shift)).Store(out + i);
  }
  for (; i < n; ++i) out[i] = Exp(x[i] - shift);
}

template <typename V>
double SumExp(const float* x, int64_t n, float shift) {
  constexpr float kNone = -std::numeric_limits<float>::infinity();
  double total = 0.0;
  for (int64_t begin = 0; begin < n; begin += kSumChunk) {
    const int64_t end = begin + kSumChunk < n ? begin + kSumChunk : n;
    V sum = V::Broadcast(0.0f);
    for (int64_t i = begin; i < end; i += V::kWidth) {
      V value = LoadAt<V>(x, i, end);
      if (i + V::kWidth > end) value = KeepRange(value, 0, static_cast<int>(end - i), kNone);
      // A NaN compares false and counts as -infinity.
      value = SelectLessEqual(value, value, value, V::Broadcast(kNone));
      sum = sum + Exp(value - V::Broadcast(shift));
    }
    total += static_cast<double>(Sum(sum));
  }
  return total;
}

template <typename V>
constexpr RowKernels Make() {
  return {.rms_norm = RmsNorm<V>,
          .rotate = Rotate<V>,
          .sum_slots = SumSlots<V>,
          .attend = attention::Attend<V>,
          .max = MaxOfRow<V>,
          .exp = ExpOfRow<V>,
          .sum_exp = SumExp<V>};
}

}  // namespace row_kernels

extern const RowKernels kRowKernelsScalar;
extern const RowKernels kRowKernelsAvx2;
extern const RowKernels kRowKernelsAvx512;

}  // namespace shoal
