// LanesScalar's contract in one AVX-512 register. Included only by files compiled for AVX-512.
#pragma once

#include <immintrin.h>

#include <cstdint>

#include "kernels/numeric.h"

namespace shoal {

struct LanesAvx512 {
  static constexpr int kWidth = 16;
  static constexpr int kHeads = 4;

  __m512 v;

  SHOAL_INLINE static LanesAvx512 Broadcast(float x) { return {_mm512_set1_ps(x)}; }

  SHOAL_INLINE static LanesAvx512 Load(const float* from) { return {_mm512_loadu_ps(from)}; }

  SHOAL_INLINE static LanesAvx512 Load(const Bf16* from) {
    return Widen(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(from)));
  }

  SHOAL_INLINE static LanesAvx512 LoadFirst(const float* from, int64_t n) {
    return {_mm512_maskz_loadu_ps(FirstLanes(n), from)};
  }

  SHOAL_INLINE static LanesAvx512 LoadFirst(const Bf16* from, int64_t n) {
    return Widen(_mm256_maskz_loadu_epi16(FirstLanes(n), from));
  }

  SHOAL_INLINE void Store(float* to) const { _mm512_storeu_ps(to, v); }

  SHOAL_INLINE void Store(Bf16* to) const {
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(to), Narrow());
  }

  SHOAL_INLINE void StoreFirst(float* to, int64_t n) const {
    _mm512_mask_storeu_ps(to, FirstLanes(n), v);
  }

  SHOAL_INLINE void StoreFirst(Bf16* to, int64_t n) const {
    _mm256_mask_storeu_epi16(to, FirstLanes(n), Narrow());
  }

  SHOAL_INLINE friend LanesAvx512 operator+(LanesAvx512 a, LanesAvx512 b) {
    return {_mm512_add_ps(a.v, b.v)};
  }

  SHOAL_INLINE friend LanesAvx512 operator-(LanesAvx512 a, LanesAvx512 b) {
    return {_mm512_sub_ps(a.v, b.v)};
  }

  SHOAL_INLINE friend LanesAvx512 operator*(LanesAvx512 a, LanesAvx512 b) {
    return {_mm512_mul_ps(a.v, b.v)};
  }

  SHOAL_INLINE friend LanesAvx512 operator/(LanesAvx512 a, LanesAvx512 b) {
    return {_mm512_div_ps(a.v, b.v)};
  }

  SHOAL_INLINE friend LanesAvx512 Fma(LanesAvx512 a, LanesAvx512 b, LanesAvx512 c) {
    return {_mm512_fmadd_ps(a.v, b.v, c.v)};
  }

  SHOAL_INLINE friend LanesAvx512 Max(LanesAvx512 a, LanesAvx512 b) {
    return {_mm512_max_ps(a.v, b.v)};
  }

  SHOAL_INLINE friend LanesAvx512 Min(LanesAvx512 a, LanesAvx512 b) {
    return {_mm512_min_ps(a.v, b.v)};
  }

  SHOAL_INLINE friend LanesAvx512 SelectLessEqual(LanesAvx512 a,
                                                  LanesAvx512 b,
                                                  LanesAvx512 yes,
                                                  LanesAvx512 no) {
    return {_mm512_mask_blend_ps(_mm512_cmp_ps_mask(a.v, b.v, _CMP_LE_OQ), no.v, yes.v)};
  }

  SHOAL_INLINE friend LanesAvx512 KeepRange(LanesAvx512 x, int begin, int end, float outside) {
    const __mmask16 inside = static_cast<__mmask16>(FirstLanes(end) & ~FirstLanes(begin));
    return {_mm512_mask_blend_ps(inside, _mm512_set1_ps(outside), x.v)};
  }

  SHOAL_INLINE friend LanesAvx512 AddExponent(LanesAvx512 x, LanesAvx512 shifted) {
    const __m512i exponent = _mm512_slli_epi32(_mm512_castps_si512(shifted.v), 23);
    return {_mm512_castsi512_ps(_mm512_add_epi32(_mm512_castps_si512(x.v), exponent))};
  }

  SHOAL_INLINE friend float Sum(LanesAvx512 x) {
    const __m256 eight = _mm256_add_ps(_mm512_castps512_ps256(x.v), _mm512_extractf32x8_ps(x.v, 1));
    const __m128 four = _mm_add_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps(eight, 1));
    const __m128 two = _mm_add_ps(four, _mm_movehl_ps(four, four));
    return _mm_cvtss_f32(_mm_add_ss(two, _mm_movehdup_ps(two)));
  }

  SHOAL_INLINE friend float MaxOf(LanesAvx512 x) {
    const __m256 eight = _mm256_max_ps(_mm512_castps512_ps256(x.v), _mm512_extractf32x8_ps(x.v, 1));
    const __m128 four = _mm_max_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps(eight, 1));
    const __m128 two = _mm_max_ps(four, _mm_movehl_ps(four, four));
    return _mm_cvtss_f32(_mm_max_ss(two, _mm_movehdup_ps(two)));
  }

  // A word holds two neighbouring bf16 of a row: one transpose of 16 x 16 words serves both, the
  // lower moved up, the upper kept by a mask.
  static void TransposeWiden(const Bf16* rows, int64_t stride, float* out, int64_t out_stride) {
    __m512i r[16];
    for (int p = 0; p < 16; ++p) r[p] = _mm512_loadu_si512(rows + p * stride);
    TransposeWords(r);
    const __m512i upper = _mm512_set1_epi32(static_cast<int>(0xffff0000u));
    for (int w = 0; w < 16; ++w) {
      _mm512_storeu_si512(out + (2 * w) * out_stride, _mm512_slli_epi32(r[w], 16));
      _mm512_storeu_si512(out + (2 * w + 1) * out_stride, _mm512_and_si512(r[w], upper));
    }
  }

 private:
  // A mask of the lanes below n, for any n.
  SHOAL_INLINE static __mmask16 FirstLanes(int64_t n) {
    if (n <= 0) return 0;
    return n >= 16 ? static_cast<__mmask16>(0xffff) : static_cast<__mmask16>((1u << n) - 1u);
  }

  SHOAL_INLINE static LanesAvx512 Widen(__m256i bf16) {
    return {_mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(bf16), 16))};
  }

  // ToBf16 on each lane.
  SHOAL_INLINE __m256i Narrow() const {
    const __m512i bits = _mm512_castps_si512(v);
    const __m512i odd = _mm512_and_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(1));
    const __m512i rounded =
        _mm512_add_epi32(bits, _mm512_add_epi32(odd, _mm512_set1_epi32(0x7fff)));
    const __mmask16 nan = _mm512_cmp_ps_mask(v, v, _CMP_UNORD_Q);
    return _mm512_cvtepi32_epi16(
        _mm512_mask_mov_epi32(_mm512_srli_epi32(rounded, 16), nan, _mm512_set1_epi32(0x7fc0)));
  }

  // Swaps ever larger squares: words, pairs of words, quarters, halves.
  SHOAL_INLINE static void TransposeWords(__m512i r[16]) {
    __m512i t[16];
    for (int i = 0; i < 16; i += 2) {
      t[i] = _mm512_unpacklo_epi32(r[i], r[i + 1]);
      t[i + 1] = _mm512_unpackhi_epi32(r[i], r[i + 1]);
    }
    for (int i = 0; i < 16; i += 4) {  // r[i + c]: column 4 q + c of rows i .. i + 3 in quarter q.
      r[i] = _mm512_unpacklo_epi64(t[i], t[i + 2]);
      r[i + 1] = _mm512_unpackhi_epi64(t[i], t[i + 2]);
      r[i + 2] = _mm512_unpacklo_epi64(t[i + 1], t[i + 3]);
      r[i + 3] = _mm512_unpackhi_epi64(t[i + 1], t[i + 3]);
    }
    for (int c = 0; c < 4; ++c) {  // Even and odd quarters of row groups 0 and 1, then 2 and 3.
      t[c] = _mm512_shuffle_i32x4(r[c], r[c + 4], 0x88);
      t[c + 4] = _mm512_shuffle_i32x4(r[c], r[c + 4], 0xdd);
      t[c + 8] = _mm512_shuffle_i32x4(r[c + 8], r[c + 12], 0x88);
      t[c + 12] = _mm512_shuffle_i32x4(r[c + 8], r[c + 12], 0xdd);
    }
    for (int c = 0; c < 4; ++c) {
      r[c] = _mm512_shuffle_i32x4(t[c], t[c + 8], 0x88);
      r[c + 8] = _mm512_shuffle_i32x4(t[c], t[c + 8], 0xdd);
      r[c + 4] = _mm512_shuffle_i32x4(t[c + 4], t[c + 12], 0x88);
      r[c + 12] = _mm512_shuffle_i32x4(t[c + 4], t[c + 12], 0xdd);
    }
  }
};

}  // namespace shoal
