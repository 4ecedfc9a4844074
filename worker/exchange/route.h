// Which row goes to which rank, and back: pure arithmetic on chosen experts and placement.
// A row travels once to each rank that serves at least one of its experts; results travel home
// unsummed, one row for each (row, slot), so the sum's order never depends on the placement.
// Next: kernels/backend.h
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "base/ids.h"
#include "kernels/tensor.h"

namespace shoal {

// One (row, slot) to be computed at the destination.
struct RoutedPair {
  uint32_t message_row = 0;  // Index of the row within the message to that rank
  int32_t expert = 0;        // Global expert id

  friend bool operator==(const RoutedPair&, const RoutedPair&) = default;
};

// One layer's traffic of one step, from the sender's side. Ranks rising; rows rising within a rank;
// pairs by row, then slot.
struct Route {
  std::vector<int32_t> rank_rows;   // [ranks + 1] offsets into send_rows
  std::vector<int32_t> send_rows;   // Local row indexes, to be picked
  std::vector<int32_t> rank_pairs;  // [ranks + 1] offsets into pairs and return_rows
  std::vector<RoutedPair> pairs;
  std::vector<int32_t> return_rows;  // [pairs] row * k + slot
};

// From the receiver's side: what ExpertMlp needs.
struct Arrivals {
  TensorView rows;                    // [n, hidden] bf16, sources rising
  std::vector<int32_t> source_pairs;  // [ranks + 1] offsets: pairs of each source, in arrival order
  std::vector<int32_t> pair_rows;  // [pairs] index into rows; by local expert, then arrival order
  std::vector<int32_t> pair_outs;  // [pairs] arrival index of the pair, where its result goes
  std::vector<int32_t> expert_offsets;  // [local experts + 1] into pair_rows and pair_outs

  int32_t num_pairs() const { return static_cast<int32_t>(pair_rows.size()); }
};

// The placement of one layer in one epoch, as a rank uses it.
struct LayerPlacement {
  // [expert] -> ranks that hold a replica, rising.
  std::span<const std::vector<Rank>> ranks_of_expert;
  Rank self;
  int32_t num_ranks = 0;
};

// expert_ids [rows, k]: the chosen experts of this rank's rows. Of an expert's replicas the
// sender's own is taken if there is one, else one chosen by row, which changes no bit. Reuses
// `route`'s memory.
void PlanRoute(std::span<const int32_t> expert_ids,
               int32_t rows,
               int32_t k,
               const LayerPlacement& placement,
               Route* route);

// Groups arrived pairs by expert. `experts[i]` is the global expert of arriving pair i and
// `rows[i]` its index into the arrived rows; local_index[expert] is the rank's local index, -1 if
// not held. Fills pair_rows, pair_outs and expert_offsets. False if a pair names an expert that is
// not held here.
bool GroupByExpert(std::span<const int32_t> experts,
                   std::span<const int32_t> rows,
                   std::span<const int32_t> local_index,
                   int32_t num_local,
                   Arrivals* arrivals);

}  // namespace shoal
