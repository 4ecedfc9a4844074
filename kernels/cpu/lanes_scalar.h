// Sixteen floats in plain C++: what LanesAvx2 and LanesAvx512 compute, said without intrinsics.
#pragma once

#include <cmath>
#include <cstdint>

#include "kernels/numeric.h"

namespace shoal {

// The vector type of every row kernel; the kernels are templates over it, so that one text makes
// the three instruction sets' code. All functions are exact (moves, selections) or round each lane
// once, to nearest even; hence the types agree bit for bit.
struct LanesScalar {
  static constexpr int kWidth = 16;
  // How many query heads attention keeps in registers at a time.
  static constexpr int kHeads = 1;

  float lane[kWidth];

  // lane[i] = f(i).
  template <typename F>
  SHOAL_INLINE static LanesScalar Make(const F& f) {
    LanesScalar result;
    for (int i = 0; i < kWidth; ++i) result.lane[i] = f(i);
    return result;
  }

  SHOAL_INLINE static LanesScalar Broadcast(float x) {
    return Make([=](int) { return x; });
  }

  SHOAL_INLINE static LanesScalar Load(const float* from) {
    return Make([=](int i) { return from[i]; });
  }

  SHOAL_INLINE static LanesScalar Load(const Bf16* from) {
    return Make([=](int i) { return ToFloat(from[i]); });
  }

  // The first n lanes; the others are +0 and their memory is not read.
  SHOAL_INLINE static LanesScalar LoadFirst(const float* from, int64_t n) {
    return Make([=](int i) { return i < n ? from[i] : 0.0f; });
  }

  SHOAL_INLINE static LanesScalar LoadFirst(const Bf16* from, int64_t n) {
    return Make([=](int i) { return i < n ? ToFloat(from[i]) : 0.0f; });
  }

  SHOAL_INLINE void Store(float* to) const {
    for (int i = 0; i < kWidth; ++i) to[i] = lane[i];
  }

  SHOAL_INLINE void Store(Bf16* to) const {
    for (int i = 0; i < kWidth; ++i) to[i] = ToBf16(lane[i]);
  }

  SHOAL_INLINE void StoreFirst(float* to, int64_t n) const {
    for (int i = 0; i < kWidth && i < n; ++i) to[i] = lane[i];
  }

  SHOAL_INLINE void StoreFirst(Bf16* to, int64_t n) const {
    for (int i = 0; i < kWidth && i < n; ++i) to[i] = ToBf16(lane[i]);
  }

  SHOAL_INLINE friend LanesScalar operator+(const LanesScalar& a, const LanesScalar& b) {
    return Make([&](int i) { return a.lane[i] + b.lane[i]; });
  }

  SHOAL_INLINE friend LanesScalar operator-(const LanesScalar& a, const LanesScalar& b) {
    return Make([&](int i) { return a.lane[i] - b.lane[i]; });
  }

  SHOAL_INLINE friend LanesScalar operator*(const LanesScalar& a, const LanesScalar& b) {
    return Make([&](int i) { return a.lane[i] * b.lane[i]; });
  }

  SHOAL_INLINE friend LanesScalar operator/(const LanesScalar& a, const LanesScalar& b) {
    return Make([&](int i) { return a.lane[i] / b.lane[i]; });
  }

  // a * b + c, rounded once.
  SHOAL_INLINE friend LanesScalar Fma(const LanesScalar& a,
                                      const LanesScalar& b,
                                      const LanesScalar& c) {
    return Make([&](int i) { return std::fma(a.lane[i], b.lane[i], c.lane[i]); });
  }

  // a > b ? a : b; a NaN in either gives b.
  SHOAL_INLINE friend LanesScalar Max(const LanesScalar& a, const LanesScalar& b) {
    return Make([&](int i) { return a.lane[i] > b.lane[i] ? a.lane[i] : b.lane[i]; });
  }

  // a < b ? a : b; a NaN in either gives b.
  SHOAL_INLINE friend LanesScalar Min(const LanesScalar& a, const LanesScalar& b) {
    return Make([&](int i) { return a.lane[i] < b.lane[i] ? a.lane[i] : b.lane[i]; });
  }

  // a <= b ? yes : no; a NaN gives no.
  SHOAL_INLINE friend LanesScalar SelectLessEqual(const LanesScalar& a,
                                                  const LanesScalar& b,
                                                  const LanesScalar& yes,
                                                  const LanesScalar& no) {
    return Make([&](int i) { return a.lane[i] <= b.lane[i] ? yes.lane[i] : no.lane[i]; });
  }

  // Lanes in [begin, end), which may reach beyond the register, from x; the others `outside`.
  SHOAL_INLINE friend LanesScalar KeepRange(const LanesScalar& x,
                                            int begin,
                                            int end,
                                            float outside) {
    return Make([&](int i) { return begin <= i && i < end ? x.lane[i] : outside; });
  }

  // Exp's last step: x times 2 to the integer in the low bits of `shifted`. See numeric.h.
  SHOAL_INLINE friend LanesScalar AddExponent(const LanesScalar& x, const LanesScalar& shifted) {
    return Make([&](int i) {
      return std::bit_cast<float>(std::bit_cast<uint32_t>(x.lane[i]) +
                                  (std::bit_cast<uint32_t>(shifted.lane[i]) << 23));
    });
  }

  // (l[i] + l[i + 8]), then [i] + [i + 4], [i] + [i + 2], [i] + [i + 1].
  SHOAL_INLINE friend float Sum(const LanesScalar& x) {
    float sum[8];
    for (int i = 0; i < 8; ++i) sum[i] = x.lane[i] + x.lane[i + 8];
    for (int i = 0; i < 4; ++i) sum[i] = sum[i] + sum[i + 4];
    return (sum[0] + sum[2]) + (sum[1] + sum[3]);
  }

  // The same tree with Max.
  SHOAL_INLINE friend float MaxOf(const LanesScalar& x) {
    const auto max = [](float a, float b) { return a > b ? a : b; };
    float m[8];
    for (int i = 0; i < 8; ++i) m[i] = max(x.lane[i], x.lane[i + 8]);
    for (int i = 0; i < 4; ++i) m[i] = max(m[i], m[i + 4]);
    return max(max(m[0], m[2]), max(m[1], m[3]));
  }

  // out[d][p] = rows[p][d], widened, for 16 rows and 32 columns. Strides in elements.
  static void TransposeWiden(const Bf16* rows, int64_t stride, float* out, int64_t out_stride) {
    for (int d = 0; d < 32; ++d) {
      for (int p = 0; p < kWidth; ++p) out[d * out_stride + p] = ToFloat(rows[p * stride + d]);
    }
  }
};

}  // namespace shoal
