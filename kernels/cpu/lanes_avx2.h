// LanesScalar's contract in two AVX2 registers. Included only by files compiled for AVX2.
#pragma once

#include <immintrin.h>

#include <cstdint>
#include <cstring>

#include "kernels/numeric.h"

namespace shoal {

struct LanesAvx2 {
  static constexpr int kWidth = 16;
  static constexpr int kHeads = 1;

  __m256 low;   // Lanes 0 to 7.
  __m256 high;  // Lanes 8 to 15.

  SHOAL_INLINE static LanesAvx2 Broadcast(float x) {
    return {_mm256_set1_ps(x), _mm256_set1_ps(x)};
  }

  SHOAL_INLINE static LanesAvx2 Load(const float* from) {
    return {_mm256_loadu_ps(from), _mm256_loadu_ps(from + 8)};
  }

  SHOAL_INLINE static LanesAvx2 Load(const Bf16* from) {
    return {Widen(_mm_loadu_si128(reinterpret_cast<const __m128i*>(from))),
            Widen(_mm_loadu_si128(reinterpret_cast<const __m128i*>(from + 8)))};
  }

  template <typename T>
  SHOAL_INLINE static LanesAvx2 LoadFirst(const T* from, int64_t n) {
    T padded[kWidth] = {};
    std::memcpy(padded, from, FirstLanes(n) * sizeof(T));
    return Load(padded);
  }

  SHOAL_INLINE void Store(float* to) const {
    _mm256_storeu_ps(to, low);
    _mm256_storeu_ps(to + 8, high);
  }

  SHOAL_INLINE void Store(Bf16* to) const {
    // Packing works within 128-bit halves; the permutation puts the four quarters in order.
    const __m256i packed = _mm256_packus_epi32(Round(low), Round(high));
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(to), _mm256_permute4x64_epi64(packed, 0xd8));
  }

  template <typename T>
  SHOAL_INLINE void StoreFirst(T* to, int64_t n) const {
    T padded[kWidth];
    Store(padded);
    std::memcpy(to, padded, FirstLanes(n) * sizeof(T));
  }

  SHOAL_INLINE friend LanesAvx2 operator+(LanesAvx2 a, LanesAvx2 b) {
    return {_mm256_add_ps(a.low, b.low), _mm256_add_ps(a.high, b.high)};
  }

  SHOAL_INLINE friend LanesAvx2 operator-(LanesAvx2 a, LanesAvx2 b) {
    return {_mm256_sub_ps(a.low, b.low), _mm256_sub_ps(a.high, b.high)};
  }

  SHOAL_INLINE friend LanesAvx2 operator*(LanesAvx2 a, LanesAvx2 b) {
    return {_mm256_mul_ps(a.low, b.low), _mm256_mul_ps(a.high, b.high)};
  }

  SHOAL_INLINE friend LanesAvx2 operator/(LanesAvx2 a, LanesAvx2 b) {
    return {_mm256_div_ps(a.low, b.low), _mm256_div_ps(a.high, b.high)};
  }

  SHOAL_INLINE friend LanesAvx2 Fma(LanesAvx2 a, LanesAvx2 b, LanesAvx2 c) {
    return {_mm256_fmadd_ps(a.low, b.low, c.low), _mm256_fmadd_ps(a.high, b.high, c.high)};
  }

  SHOAL_INLINE friend LanesAvx2 Max(LanesAvx2 a, LanesAvx2 b) {
    return {_mm256_max_ps(a.low, b.low), _mm256_max_ps(a.high, b.high)};
  }

  SHOAL_INLINE friend LanesAvx2 Min(LanesAvx2 a, LanesAvx2 b) {
    return {_mm256_min_ps(a.low, b.low), _mm256_min_ps(a.high, b.high)};
  }

  SHOAL_INLINE friend LanesAvx2 SelectLessEqual(LanesAvx2 a,
                                                LanesAvx2 b,
                                                LanesAvx2 yes,
                                                LanesAvx2 no) {
    return {_mm256_blendv_ps(no.low, yes.low, _mm256_cmp_ps(a.low, b.low, _CMP_LE_OQ)),
            _mm256_blendv_ps(no.high, yes.high, _mm256_cmp_ps(a.high, b.high, _CMP_LE_OQ))};
  }

  SHOAL_INLINE friend LanesAvx2 KeepRange(LanesAvx2 x, int begin, int end, float outside) {
    const __m256 fill = _mm256_set1_ps(outside);
    return {_mm256_blendv_ps(fill, x.low, InRange(0, begin, end)),
            _mm256_blendv_ps(fill, x.high, InRange(8, begin, end))};
  }

  SHOAL_INLINE friend LanesAvx2 AddExponent(LanesAvx2 x, LanesAvx2 shifted) {
    return {AddExponent(x.low, shifted.low), AddExponent(x.high, shifted.high)};
  }

  SHOAL_INLINE friend float Sum(LanesAvx2 x) {
    const __m256 eight = _mm256_add_ps(x.low, x.high);
    const __m128 four = _mm_add_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps(eight, 1));
    const __m128 two = _mm_add_ps(four, _mm_movehl_ps(four, four));
    return _mm_cvtss_f32(_mm_add_ss(two, _mm_movehdup_ps(two)));
  }

  SHOAL_INLINE friend float MaxOf(LanesAvx2 x) {
    const __m256 eight = _mm256_max_ps(x.low, x.high);
    const __m128 four = _mm_max_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps(eight, 1));
    const __m128 two = _mm_max_ps(four, _mm_movehl_ps(four, four));
    return _mm_cvtss_f32(_mm_max_ss(two, _mm_movehdup_ps(two)));
  }

  // In squares of 8 x 8 words, each word two neighbouring bf16 of a row.
  static void TransposeWiden(const Bf16* rows, int64_t stride, float* out, int64_t out_stride) {
    const __m256i upper = _mm256_set1_epi32(static_cast<int>(0xffff0000u));
    for (int p = 0; p < 16; p += 8) {
      for (int d = 0; d < 32; d += 16) {
        __m256 r[8];
        for (int i = 0; i < 8; ++i) {
          r[i] = _mm256_loadu_ps(reinterpret_cast<const float*>(rows + (p + i) * stride + d));
        }
        TransposeWords(r);
        for (int w = 0; w < 8; ++w) {
          const __m256i words = _mm256_castps_si256(r[w]);
          float* const to = out + (d + 2 * w) * out_stride + p;
          _mm256_storeu_ps(to, _mm256_castsi256_ps(_mm256_slli_epi32(words, 16)));
          _mm256_storeu_ps(to + out_stride, _mm256_castsi256_ps(_mm256_and_si256(words, upper)));
        }
      }
    }
  }

 private:
  SHOAL_INLINE static size_t FirstLanes(int64_t n) {
    return static_cast<size_t>(n < 0 ? 0 : n > kWidth ? kWidth : n);
  }

  SHOAL_INLINE static __m256 Widen(__m128i bf16) {
    return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(bf16), 16));
  }

  // ToBf16 on each lane, in the low half of its word.
  SHOAL_INLINE static __m256i Round(__m256 x) {
    const __m256i bits = _mm256_castps_si256(x);
    const __m256i odd = _mm256_and_si256(_mm256_srli_epi32(bits, 16), _mm256_set1_epi32(1));
    const __m256i rounded =
        _mm256_add_epi32(bits, _mm256_add_epi32(odd, _mm256_set1_epi32(0x7fff)));
    const __m256i nan = _mm256_castps_si256(_mm256_cmp_ps(x, x, _CMP_UNORD_Q));
    return _mm256_blendv_epi8(_mm256_srli_epi32(rounded, 16), _mm256_set1_epi32(0x7fc0), nan);
  }

  SHOAL_INLINE static __m256 AddExponent(__m256 x, __m256 shifted) {
    const __m256i exponent = _mm256_slli_epi32(_mm256_castps_si256(shifted), 23);
    return _mm256_castsi256_ps(_mm256_add_epi32(_mm256_castps_si256(x), exponent));
  }

  // All ones in the lanes i with begin <= first + i < end.
  SHOAL_INLINE static __m256 InRange(int first, int begin, int end) {
    const __m256i index =
        _mm256_add_epi32(_mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7), _mm256_set1_epi32(first));
    const __m256i below = _mm256_cmpgt_epi32(_mm256_set1_epi32(begin), index);
    const __m256i before_end = _mm256_cmpgt_epi32(_mm256_set1_epi32(end), index);
    return _mm256_castsi256_ps(_mm256_andnot_si256(below, before_end));
  }

  SHOAL_INLINE static void TransposeWords(__m256 r[8]) {
    __m256 t[8];
    for (int i = 0; i < 8; i += 2) {
      t[i] = _mm256_unpacklo_ps(r[i], r[i + 1]);
      t[i + 1] = _mm256_unpackhi_ps(r[i], r[i + 1]);
    }
    for (int i = 0; i < 8; i += 4) {
      r[i] = _mm256_shuffle_ps(t[i], t[i + 2], 0x44);
      r[i + 1] = _mm256_shuffle_ps(t[i], t[i + 2], 0xee);
      r[i + 2] = _mm256_shuffle_ps(t[i + 1], t[i + 3], 0x44);
      r[i + 3] = _mm256_shuffle_ps(t[i + 1], t[i + 3], 0xee);
    }
    for (int c = 0; c < 4; ++c) {
      t[c] = _mm256_permute2f128_ps(r[c], r[c + 4], 0x20);
      t[c + 4] = _mm256_permute2f128_ps(r[c], r[c + 4], 0x31);
    }
    for (int i = 0; i < 8; ++i) r[i] = t[i];
  }
};

}  // namespace shoal
