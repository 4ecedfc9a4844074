// The rotary embedding's frequencies, with YaRN's blend of two scales (spec 4.4). RopeTable, which
// most readers want, is declared in config.h.
#pragma once

#include <vector>

#include "absl/status/statusor.h"

#include "model/config.h"

namespace shoal {

struct RopeFrequencies {
  std::vector<double> omega;  // [head_dim / 2], radians per position
  double magnitude = 1.0;     // m: multiplies cos and sin of both q and k
};

// kInvalidArgument if YaRN's ramp does not lie inside the head (0 < low < high < head_dim / 2 - 1).
absl::StatusOr<RopeFrequencies> ComputeRopeFrequencies(const RopeConfig& rope, int head_dim);

// cos and sin of the same argument, for |x| <= 2^20. Error below 1e-15.
//
// The C library's differ in the last bit between processors with and without FMA, and two workers
// of one fleet must hold the same table; these use only +, - and * of doubles, unfused.
struct CosSin {
  double cos;
  double sin;
};

CosSin PortableCosSin(double x);

}  // namespace shoal
