// Number formats and the few functions that kernels need, with the same bits under every compiler
// and instruction set: nothing here calls the C library's transcendentals, which pick their
// algorithm by CPU.
//
// Everything is always inlined: a file that is compiled for AVX-512 must not leave behind an
// out-of-line copy that the linker then shares with the others.
#pragma once

#include <bit>
#include <cmath>
#include <cstdint>
#include <limits>

// Also for the device where nvcc compiles: the CUDA kernels and the host's tests of their
// arithmetic share these functions.
#ifdef __CUDACC__
#define SHOAL_INLINE __host__ __device__ __forceinline__
#else
#define SHOAL_INLINE [[gnu::always_inline]] inline
#endif

namespace shoal {

// The upper half of an fp32: 8 exponent bits, 7 of mantissa.
struct Bf16 {
  uint16_t bits;

  friend constexpr bool operator==(Bf16, Bf16) = default;
};

static_assert(sizeof(Bf16) == 2);

SHOAL_INLINE constexpr float ToFloat(Bf16 x) {
  return std::bit_cast<float>(static_cast<uint32_t>(x.bits) << 16);
}

// Rounds to nearest, ties to even; beyond the largest bf16 to infinity. Every NaN becomes 0x7fc0:
// which payload survives an addition is the compiler's choice of operand order.
SHOAL_INLINE constexpr Bf16 ToBf16(float x) {
  const uint32_t bits = std::bit_cast<uint32_t>(x);
  if ((bits & 0x7fffffffu) > 0x7f800000u) return {0x7fc0};
  return {static_cast<uint16_t>((bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16)};
}

// An MXFP4 element (E2M1: sign, two exponent bits with bias 1, one mantissa bit), doubled so that
// it is an integer. REQUIRES: code < 16.
SHOAL_INLINE constexpr int DoubledE2m1(uint32_t code) {
  constexpr int kMagnitudes[8] = {0, 1, 2, 3, 4, 6, 8, 12};
  const int magnitude = kMagnitudes[code & 7u];
  return (code & 8u) != 0 ? -magnitude : magnitude;
}

// An MXFP4 scale (E8M0): 2^(byte - 127). Exact for every byte, 0 giving the fp32 subnormal 2^-127;
// 255 is the format's NaN.
SHOAL_INLINE constexpr float FromE8m0(uint8_t byte) {
  if (byte == 0) return 0x1.0p-127f;
  if (byte == 255) return std::numeric_limits<float>::quiet_NaN();
  return std::bit_cast<float>(static_cast<uint32_t>(byte) << 23);
}

// exp(x) in fp32, error below 1 ulp (the largest found by numeric_test is 0.88).
//
//   n = x / ln 2 rounded to an integer     by adding 1.5 * 2^23, whose ulp is 1: n is then in the
//                                          low bits, and shifting left by 23 leaves n << 23
//   r = x - n ln 2, |r| <= 0.3467          ln 2 in two parts, fma
//   e^r = 1 + r + r^2 P(r)                 P minimax of degree 4 (relative error 2^-28), Horner,
//   fma e^x = 2^n e^r                          n added to the exponent
//
// Below kExpMin, where the result would be subnormal, +0. Above kExpMax +infinity. NaN stays NaN.
// Lanes (kernels/cpu/lane_math.h) has the same steps on sixteen numbers and gives the same bits.
struct ExpConstants {
  static constexpr float kMin = -0x1.5d589ep+6f;  // -126 ln 2, rounded towards 0
  static constexpr float kMax = 0x1.62e42ep+6f;   // ln of the largest float, rounded towards 0
  static constexpr float kInverseLn2 = 0x1.715476p+0f;
  static constexpr float kRound = 0x1.8p+23f;
  static constexpr float kLn2High = 0x1.62e43p-1f;
  static constexpr float kLn2Low = -0x1.05c61p-29f;
  static constexpr float kP0 = 0x1.fffffcp-2f;
  static constexpr float kP1 = 0x1.555492p-3f;
  static constexpr float kP2 = 0x1.5558f2p-5f;
  static constexpr float kP3 = 0x1.123a2p-7f;
  static constexpr float kP4 = 0x1.6a23dp-10f;
};

SHOAL_INLINE float Exp(float x) {
  using C = ExpConstants;
  if (!(x <= C::kMax)) return x + std::numeric_limits<float>::infinity();  // Also NaN.
  if (x < C::kMin) return 0.0f;
  const float shifted = std::fma(x, C::kInverseLn2, C::kRound);
  const float n = shifted - C::kRound;
  const float r = std::fma(n, -C::kLn2Low, std::fma(n, -C::kLn2High, x));
  float p = C::kP4;
  p = std::fma(p, r, C::kP3);
  p = std::fma(p, r, C::kP2);
  p = std::fma(p, r, C::kP1);
  p = std::fma(p, r, C::kP0);
  p = std::fma(p, r, 1.0f);
  p = std::fma(p, r, 1.0f);
  return std::bit_cast<float>(std::bit_cast<uint32_t>(p) +
                              (std::bit_cast<uint32_t>(shifted) << 23));
}

// The natural logarithm of a positive, finite, normal double; error below 2 ulp.
//
//   x = 2^e m, m in [sqrt(1/2), sqrt(2));   s = (m - 1) / (m + 1), |s| < 0.1716
//   ln m = 2 atanh s = 2 (s + s^3/3 + s^5/5 + ... + s^21/21), remainder below 2^-59
SHOAL_INLINE double Log(double x) {
  constexpr double kLn2High = 0x1.62e42fefa3800p-1;  // 11 trailing zero bits: e * kLn2High is exact
  constexpr double kLn2Low = 0x1.ef35793c76730p-45;
  uint64_t bits = std::bit_cast<uint64_t>(x);
  int64_t exponent = static_cast<int64_t>(bits >> 52) - 1023;
  bits = (bits & 0x000fffffffffffffu) | 0x3ff0000000000000u;
  double m = std::bit_cast<double>(bits);
  if (m > 0x1.6a09e667f3bcdp+0) {  // sqrt(2)
    m *= 0.5;
    ++exponent;
  }
  const double s = (m - 1.0) / (m + 1.0);
  const double s2 = s * s;
  double series = 0.0;
  for (int k = 21; k >= 3; k -= 2) series = std::fma(series, s2, 1.0 / k);
  const double log_m = std::fma(2.0 * s * s2, series, 2.0 * s);
  const double e = static_cast<double>(exponent);
  return std::fma(e, kLn2High, std::fma(e, kLn2Low, log_m));
}

// 64 random bits that depend on their address alone: splitmix64's finaliser over a hashed seed.
SHOAL_INLINE constexpr uint64_t RandomMix(uint64_t z) {
  z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
  z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
  return z ^ (z >> 31);
}

SHOAL_INLINE constexpr uint64_t RandomBits(uint64_t seed, int64_t position) {
  constexpr uint64_t kStep = 0x9e3779b97f4a7c15u;
  return RandomMix(RandomMix(seed + kStep) + (static_cast<uint64_t>(position) + 1) * kStep);
}

// Uniform in [0, 1), a multiple of 2^-53.
SHOAL_INLINE constexpr double Uniform(uint64_t seed, int64_t position) {
  return static_cast<double>(RandomBits(seed, position) >> 11) * 0x1.0p-53;
}

}  // namespace shoal
