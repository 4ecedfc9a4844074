#include "model/rope.h"

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <numbers>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"

#include "base/check.h"

namespace shoal {
namespace {

// The index, not rounded, of the pair that turns `rotations` times over the original context.
double PairOfRotations(const RopeConfig& rope, int head_dim, double rotations) {
  return head_dim * std::log(rope.original_positions / (rotations * 2 * std::numbers::pi)) /
         (2 * std::log(rope.theta));
}

// Taylor's series of sin(r)/r and cos(r) in r^2. On |r| <= pi/4 the first term left out is below
// (pi/4)^19 / 19! = 8.4e-20, far below half a unit in the last place.
double SinSeries(double r) {
  const double s = r * r;
  double sum = 1.0;
  for (int n = 16; n >= 2; n -= 2) sum = 1.0 - s / (n * (n + 1)) * sum;
  return r * sum;
}

double CosSeries(double r) {
  const double s = r * r;
  double sum = 1.0;
  for (int n = 17; n >= 1; n -= 2) sum = 1.0 - s / (n * (n + 1)) * sum;
  return sum;
}

}  // namespace

CosSin PortableCosSin(double x) {
  // pi/2 in three parts of 33, 33 and 53 bits: k * kHigh and k * kMiddle are exact for k < 2^20.
  constexpr double kHigh = 0x1.921fb544p+0;
  constexpr double kMiddle = 0x1.0b4611a6p-34;
  constexpr double kLow = 0x1.3198a2e037073p-69;
  DCHECK(std::abs(x) <= 0x1.0p20);
  const double k = std::nearbyint(x * (2 / std::numbers::pi));
  const double r = ((x - k * kHigh) - k * kMiddle) - k * kLow;
  const double sine = SinSeries(r);
  const double cosine = CosSeries(r);
  switch (static_cast<int64_t>(k) & 3) {
    case 0:
      return {.cos = cosine, .sin = sine};
    case 1:
      return {.cos = -sine, .sin = cosine};
    case 2:
      return {.cos = -cosine, .sin = -sine};
    case 3:
      return {.cos = sine, .sin = -cosine};
  }
  return {};  // Not reached: the switch covers k mod 4.
}

absl::StatusOr<RopeFrequencies> ComputeRopeFrequencies(const RopeConfig& rope, int head_dim) {
  const int half = head_dim / 2;
  RopeFrequencies result;
  result.omega.reserve(static_cast<size_t>(half));
  for (int i = 0; i < half; ++i) {
    result.omega.push_back(std::pow(rope.theta, -2.0 * i / head_dim));
  }
  if (rope.factor <= 1.0) {
    if (rope.attention_factor > 0) result.magnitude = rope.attention_factor;
    return result;
  }
  result.magnitude =
      rope.attention_factor > 0 ? rope.attention_factor : 0.1 * std::log(rope.factor) + 1.0;
  double low = PairOfRotations(rope, head_dim, rope.beta_fast);
  double high = PairOfRotations(rope, head_dim, rope.beta_slow);
  if (!(0 < low && low < high && high < half - 1)) {
    return absl::InvalidArgumentError(
        absl::StrCat("the YaRN settings blend pairs ",
                     low,
                     " to ",
                     high,
                     " of a head with ",
                     half,
                     " pairs; 0 < low < high < ",
                     half - 1,
                     " is needed: see head_dim, rope_theta, beta_fast, ",
                     "beta_slow and original_max_position_embeddings"));
  }
  if (rope.truncate) {
    low = std::max(std::floor(low), 0.0);
    high = std::min(std::ceil(high), head_dim - 1.0);
  }
  for (int i = 0; i < half; ++i) {
    const double ramp = std::clamp((i - low) / (high - low), 0.0, 1.0);
    double& omega = result.omega[static_cast<size_t>(i)];
    omega = omega / rope.factor * ramp + omega * (1.0 - ramp);
  }
  return result;
}

std::vector<float> RopeTable(const ModelConfig& config, int num_positions) {
  const absl::StatusOr<RopeFrequencies> rope = ComputeRopeFrequencies(config.rope, config.head_dim);
  CHECK(rope.ok());  // REQUIRES: config.Validate() is OK.
  std::vector<float> table;
  table.reserve(static_cast<size_t>(num_positions) * rope->omega.size() * 2);
  for (int position = 0; position < num_positions; ++position) {
    for (const double omega : rope->omega) {
      // The product is rounded to fp32, as the references do: at position 131,071 that moves the
      // angle by up to 4e-3.
      const float angle = static_cast<float>(position) * static_cast<float>(omega);
      const CosSin turn = PortableCosSin(angle);
      table.push_back(static_cast<float>(turn.cos * rope->magnitude));
      table.push_back(static_cast<float>(turn.sin * rope->magnitude));
    }
  }
  return table;
}

}  // namespace shoal
