// Small deterministic generators: the same numbers with every compiler and library. For simulation,
// tests and ids; sampling on a device has its own, addressed by (seed, position), in
// kernels/numeric.h.
#pragma once

#include <cstdint>
#include <string_view>

namespace shoal {

inline constexpr uint64_t kFnvOffset = 0xcbf29ce484222325u;
inline constexpr uint64_t kFnvPrime = 0x100000001b3u;

// FNV-1a, 64 bits (Fowler, Noll, Vo). `hash` chains calls.
constexpr uint64_t Fnv1a64(std::string_view bytes, uint64_t hash = kFnvOffset) {
  for (const char c : bytes) hash = (hash ^ static_cast<uint8_t>(c)) * kFnvPrime;
  return hash;
}

// The finaliser of splitmix64 (Steele, Lea, Flood 2014): a bijection with good avalanche.
constexpr uint64_t Mix64(uint64_t z) {
  z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9u;
  z = (z ^ (z >> 27)) * 0x94D049BB133111EBu;
  return z ^ (z >> 31);
}

inline constexpr uint64_t kSplitMixStep = 0x9E3779B97F4A7C15u;

// splitmix64 as a generator.
class Prng {
 public:
  explicit constexpr Prng(uint64_t seed) : state_(seed) {}

  constexpr uint64_t Next() { return Mix64(state_ += kSplitMixStep); }

  // Uniform in [0, bound). REQUIRES: bound > 0. The modulo bias is below 2^-40 for our bounds.
  constexpr uint64_t Below(uint64_t bound) { return Next() % bound; }

  // True with probability percent / 100.
  constexpr bool Chance(double percent) {
    return static_cast<double>(Next() >> 11) * 0x1.0p-53 * 100.0 < percent;
  }

 private:
  uint64_t state_;
};

}  // namespace shoal
