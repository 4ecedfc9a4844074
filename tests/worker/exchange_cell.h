// A cell for tests of the exchange: traffic that every rank can compute for all ranks, so that each
// checks by itself what arrived and what came home. No gtest here: forked children use it too.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"

#include "base/ids.h"
#include "worker/exchange/exchange.h"
#include "worker/exchange/factory.h"

namespace shoal {

struct CellShape {
  int32_t num_ranks = 4;
  int32_t num_experts = 16;
  int32_t k = 4;
  int32_t hidden = 24;
  int32_t max_rows = 8;

  ExchangeLimits limits() const {
    return {.max_rows = max_rows, .experts_per_token = k, .row_bytes = int64_t{hidden} * 2};
  }
};

// One step's rows of all ranks, and where the experts are.
struct Traffic {
  std::vector<std::vector<Rank>> replicas;       // [expert]
  std::vector<std::vector<int32_t>> expert_ids;  // [rank][rows, k]
  uint64_t seed = 0;

  int32_t rows(size_t rank, int32_t k) const {
    return static_cast<int32_t>(expert_ids[rank].size()) / k;
  }
};

// rows_of_rank[rank] rows with random experts, each of one or two replicas on random ranks.
Traffic RandomTraffic(const CellShape& shape,
                      const std::vector<int32_t>& rows_of_rank,
                      uint64_t seed);

// All ranks of one cell, as rank `self` sees them. Incarnations are 100 + rank.
Membership MakeMembership(const std::vector<std::string>& endpoints,
                          uint64_t epoch,
                          int32_t self,
                          const std::vector<std::vector<Rank>>& replicas);

// Dispatch and Combine of rank `self`. The expert is a function of the element and the expert's id.
// kDataLoss if a row that arrived or came home is not what direct computation says.
absl::Status RunStep(const CellShape& shape,
                     const Traffic& traffic,
                     int32_t self,
                     Exchange* exchange,
                     absl::Time deadline);

// The same through the slots of `exchange`, filled and grouped by the CPU backend, `layers` times
// before one Settle.
absl::Status RunSlotStep(const CellShape& shape,
                         const Traffic& traffic,
                         int32_t self,
                         Exchange* exchange,
                         int32_t layers,
                         absl::Time deadline);

// A thread per rank calls run(rank); returns when all are done.
template <typename Run>
void OnEachRank(int32_t num_ranks, const Run& run) {
  std::vector<std::thread> threads;
  for (int32_t rank = 0; rank < num_ranks; ++rank)
    threads.emplace_back([&run, rank] { run(rank); });
  for (std::thread& thread : threads) thread.join();
}

}  // namespace shoal
