// Which place a row, its experts' ids and their results take in slots of fixed size, one slot for
// each rank: the integers of a dispatch that no host has to see. worker/exchange/route.cc is the
// specification (which rank computes what, and in which order); these functions are what
// cuda/route.cu computes with, and tests/worker/route_math_test.cc compares the two on the host.
//
//   to rank d:    count               rows of this message, at most S ("slot rows")
//                 experts [S, k]      the row's experts that d computes, by slot; -1: somebody
//                 else's rows    [S, hidden]
//   back from d:  results [S, k, hidden]  at the place of (message row, slot); others undefined
//
// constexpr: nvcc compiles them for both sides (--expt-relaxed-constexpr).
#pragma once

#include <cstdint>

namespace shoal {

// The placement of an epoch as a device holds it.
struct RouteTable {
  // [num_experts, max_replicas] -> ranks that hold it, rising; -1 behind the last.
  const int32_t* replicas = nullptr;
  int32_t max_replicas = 0;
  int32_t self = 0;
};

// The rank that computes `expert` for this rank's row `row`: this one if it can, else the replicas
// in turn, begun at another one by each rank and row.
constexpr int32_t RouteDestination(const RouteTable& table, int32_t expert, int32_t row) {
  const int32_t* const replicas = table.replicas + int64_t{expert} * table.max_replicas;
  int32_t count = 0;
  while (count < table.max_replicas && replicas[count] >= 0) {
    if (replicas[count] == table.self) return table.self;
    ++count;
  }
  return replicas[(row + table.self) % count];
}

// Whether `row` travels to `rank`: once, if any of its k experts is computed there.
constexpr bool RouteGoesTo(
    const RouteTable& table, const int32_t* ids, int32_t k, int32_t row, int32_t rank) {
  for (int32_t slot = 0; slot < k; ++slot) {
    if (RouteDestination(table, ids[int64_t{row} * k + slot], row) == rank) return true;
  }
  return false;
}

// The entry of `experts` for a row that travels to `rank`.
constexpr int32_t RouteExpertEntry(const RouteTable& table,
                                   const int32_t* ids,
                                   int32_t k,
                                   int32_t row,
                                   int32_t slot,
                                   int32_t rank) {
  const int32_t expert = ids[int64_t{row} * k + slot];
  return RouteDestination(table, expert, row) == rank ? expert : -1;
}

// The place of (message row, slot) of one rank's slot among all slots: of its result, in what goes
// back and in what comes home; and, divided by k, of the row among all rows that arrive.
constexpr int32_t RoutePlace(
    int32_t rank, int32_t slot_rows, int32_t k, int32_t message_row, int32_t slot) {
  return (rank * slot_rows + message_row) * k + slot;
}

// What an arrival at `place` is: the local index of its expert, or -1 if nothing is to be computed
// there. counts [ranks] and experts [ranks, slot_rows, k] as they came.
constexpr int32_t RouteArrival(const int32_t* counts,
                               const int32_t* experts,
                               int32_t slot_rows,
                               int32_t k,
                               const int32_t* local_index,
                               int32_t place) {
  const int32_t row = place / k;
  if (row % slot_rows >= counts[row / slot_rows]) return -1;
  const int32_t expert = experts[place];
  return expert < 0 ? -1 : local_index[expert];
}

}  // namespace shoal
