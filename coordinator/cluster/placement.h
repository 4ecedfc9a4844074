// Which worker holds which experts. Every layer's expert e lies with the same workers: an expert of
// one layer is as much work as that of another.
#pragma once

#include <cstdint>
#include <set>
#include <span>
#include <string>
#include <vector>

#include "absl/status/statusor.h"

#include "base/ids.h"

namespace shoal {

struct PlacementSite {
  std::string host;            // Failure domain
  int32_t max_experts = 0;     // That its memory holds
  std::set<ExpertId> experts;  // That it holds already, ready to serve
};

// [expert] -> indexes of sites, rising; never empty.
using Placement = std::vector<std::vector<int32_t>>;

enum class PlacementGoal : uint8_t {
  // Serve as soon as possible: everything stays where it is; only an expert that nobody holds is
  // given to someone.
  kUrgent,
  // `copies` of every expert, on different hosts where there are any, sites balanced to within one
  // expert, with as few new copies as that takes.
  kBalanced,
};

// Deterministic, and a fixed point: sites that hold a balanced placement get the same one again.
// kResourceExhausted, saying what is missing, if the sites cannot hold one copy of each expert.
absl::StatusOr<Placement> PlaceExperts(std::span<const PlacementSite> sites,
                                       int32_t num_experts,
                                       int32_t copies,
                                       PlacementGoal goal);

// Copies of the expert that has fewest.
int32_t MinReplicas(const Placement& placement);

}  // namespace shoal
