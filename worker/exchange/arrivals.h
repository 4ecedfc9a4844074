// What an exchange checks and computes whatever its transport: routes of this rank before they
// leave, pairs of others when they come.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "absl/status/status.h"

#include "kernels/tensor.h"
#include "worker/exchange/exchange.h"
#include "worker/exchange/route.h"

namespace shoal {

// The first fault of a membership or its limits: kInvalidArgument. These numbers come from the
// coordinator.
absl::Status CheckMembership(const Membership& membership, const ExchangeLimits& limits);

// kInvalidArgument if `route` sends a rank more rows or pairs than `max_rows` allows. REQUIRES: it
// is for `num_ranks` ranks, and `outgoing` has its rows.
absl::Status CheckRoute(const Route& route,
                        const TensorView& outgoing,
                        const ExchangeLimits& limits,
                        int32_t max_rows,
                        size_t num_ranks);

// Collects the pairs of all sources, ranks rising, into an Arrivals. Reused from one dispatch to
// the next. One thread.
class ArrivalsBuilder {
 public:
  ArrivalsBuilder(const Membership& membership, const ExchangeLimits& limits);

  void Begin(Arrivals* arrivals);

  // The next source sent `num_rows` rows and `pairs`, RoutedPairs as they travel. Errors:
  // kFailedPrecondition, pointing at that rank.
  absl::Status Add(uint32_t num_rows, std::span<const std::byte> pairs, Arrivals* arrivals);

  // Groups by expert what was added. REQUIRES: all sources were.
  void Finish(Arrivals* arrivals);

  // Of the sources added so far.
  size_t num_rows() const { return num_rows_; }

 private:
  const std::vector<int32_t> local_index_;
  const ExchangeLimits limits_;
  const size_t num_ranks_;
  const int32_t num_local_;  // Experts that this rank holds
  size_t num_sources_ = 0;
  size_t num_rows_ = 0;
  std::vector<int32_t> experts_;    // [pairs] by arrival
  std::vector<int32_t> pair_rows_;  // [pairs] by arrival
};

}  // namespace shoal
