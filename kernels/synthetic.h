// The formula of synthetic weights (docs: `shoal synth`, `--load-format dummy`), for host and
// device: an element follows from its tensor's seed and its index, integers alone, so both make the
// same bits.
//
//     z = RandomMix(seed + (index + 1) 0x9e3779b97f4a7c15)     b = bits 40..47 of z
//
// and b means, by the tensor's kind:
//
//     code     b, two E2M1 codes            scale    base + b mod 3
//     number   (b - 128) 2^-shift           gain     (192 + b mod 64) / 256
//
// Numbers and gains are bf16 without rounding: eight bits, and the sign.
#pragma once

#include <bit>
#include <cstdint>

#include "kernels/numeric.h"

namespace shoal {

struct SyntheticFormula {
  enum class Kind : uint8_t { kCode, kScale, kNumber, kGain };

  uint64_t seed = 0;  // FNV-1a of the tensor's name
  Kind kind = Kind::kCode;
  int8_t shift = 0;  // Of a number
  uint8_t base = 0;  // Of a scale
};

SHOAL_INLINE constexpr uint8_t SyntheticByte(uint64_t seed, int64_t index) {
  constexpr uint64_t kStep = 0x9e3779b97f4a7c15u;
  return static_cast<uint8_t>(RandomMix(seed + (static_cast<uint64_t>(index) + 1) * kStep) >> 40);
}

// A code or scale.
SHOAL_INLINE constexpr uint8_t SyntheticU8(const SyntheticFormula& formula, uint8_t b) {
  const bool is_scale = formula.kind == SyntheticFormula::Kind::kScale;
  return is_scale ? static_cast<uint8_t>(formula.base + b % 3) : b;
}

// A number or gain. REQUIRES: shift below 127.
SHOAL_INLINE constexpr float SyntheticFloat(const SyntheticFormula& formula, uint8_t b) {
  if (formula.kind == SyntheticFormula::Kind::kGain) {
    return static_cast<float>(192 + (b & 63)) * 0x1.0p-8f;
  }
  const float unit = std::bit_cast<float>(static_cast<uint32_t>(127 - formula.shift) << 23);
  return static_cast<float>(static_cast<int>(b) - 128) * unit;
}

}  // namespace shoal
