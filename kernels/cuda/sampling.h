// The arithmetic of sampling that host and device share: weights, shares and the order of tokens.
// The CPU's cpu/sample.cc says what it means; equal logits give equal tokens there and here.
#pragma once

#include <cstdint>

#include "kernels/numeric.h"

namespace shoal::cuda {

inline constexpr float kGreedyBelow = 1e-5f;
inline constexpr float kWeightOfLikeliest = 0x1.0p40f;
inline constexpr float kHeavy = 0x1.0p-10f;  // exp(z_i - z) of a heavy token

// A number that orders as the logit does, -0 as +0. REQUIRES: not NaN.
SHOAL_INLINE constexpr uint32_t OrderedBits(float logit) {
  const uint32_t bits = std::bit_cast<uint32_t>(logit == 0.0f ? 0.0f : logit);
  return bits >> 31 != 0 ? ~bits : bits | 0x80000000u;
}

SHOAL_INLINE constexpr float FromOrderedBits(uint32_t ordered) {
  return std::bit_cast<float>(ordered >> 31 != 0 ? ordered & 0x7fffffffu : ~ordered);
}

// Larger is earlier: by logit falling, then by id rising.
SHOAL_INLINE constexpr uint64_t SortKey(float logit, uint32_t id) {
  return uint64_t{OrderedBits(logit)} << 32 | (0xffffffffu - id);
}

SHOAL_INLINE constexpr uint32_t IdOfSortKey(uint64_t key) {
  return 0xffffffffu - static_cast<uint32_t>(key);
}

SHOAL_INLINE constexpr float LogitOfSortKey(uint64_t key) {
  return FromOrderedBits(static_cast<uint32_t>(key >> 32));
}

SHOAL_INLINE uint64_t TokenWeight(float exp) {
  return static_cast<uint64_t>(exp * kWeightOfLikeliest);
}

// ceil(share * total), at least 1 and at most total.
SHOAL_INLINE uint64_t ShareOfWeight(uint64_t total, float share) {
  const double exact = static_cast<double>(share) * static_cast<double>(total);
  const uint64_t floor = exact > 0.0 ? static_cast<uint64_t>(exact) : 0;
  const uint64_t ceil = floor + (static_cast<double>(floor) < exact ? 1 : 0);
  return ceil < 1 ? 1 : ceil > total ? total : ceil;
}

}  // namespace shoal::cuda
