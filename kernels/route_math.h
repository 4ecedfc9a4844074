// Which place a row, its experts' ids and their results take in slots of fixed size, one slot for
// each rank: the integers of a dispatch that no host has to see. worker/exchange/route.cc is the
// specification (which rank computes what, and in which order); these functions are what
// cpu/route.cc and cuda/route.cu compute with, and tests/worker/route_math_test.cc compares them
// with it.
//
//   to rank d:    head     [head_rows]         a SlotHeader, then experts [slot_rows, k] i32: the
//                                              row's experts that d computes, by slot; -1: another
//                                              rank's. Padded to whole rows, so that the rows of
//                                              all messages are rows of one matrix
//                 rows     [slot_rows, hidden]
//   back from d:  results  [slot_rows, k, hidden]  at the place of (message row, slot)
//
// Behind SlotHeader::count rows everything is undefined, and so are results nobody computed.
//
// constexpr: nvcc compiles them for both sides (--expt-relaxed-constexpr).
#pragma once

#include <cstdint>

namespace shoal {

// In front of every message. Epoch and number say that sender and receiver are in the same round: a
// communicator of one epoch keeps the order of what each sent, and this finds out if two ranks
// ever did not do the same.
struct SlotHeader {
  uint64_t epoch = 0;  // 0: the sender has found a fault
  uint32_t seq = 0;    // Of the dispatch in its epoch, from 0
  int32_t source = 0;  // Rank
  int32_t count = 0;   // Rows of this message, at most slot_rows
  int32_t unused = 0;
};

static_assert(sizeof(SlotHeader) == 24);

// A rank's own side of that, in device memory for the length of an epoch. FillSlots reads it,
// GroupSlots writes it.
struct SlotGuard {
  uint64_t epoch = 0;  // Above 0
  uint32_t seq = 0;    // Of the dispatch that is under way
  int32_t fault = 0;   // 1 + the first rank whose message was not as expected; 0: none
};

static_assert(sizeof(SlotGuard) == 16);

// The slots of one step, the same on all ranks.
struct SlotShape {
  int32_t num_ranks = 0;
  int32_t slot_rows = 0;  // At least as many as any rank has rows
  int32_t k = 0;
  int64_t row_bytes = 0;  // hidden * 2

  constexpr int32_t head_rows() const {
    const auto bytes = static_cast<int64_t>(sizeof(SlotHeader) + sizeof(int32_t) * num_pairs());
    return static_cast<int32_t>((bytes + row_bytes - 1) / row_bytes);
  }

  constexpr int32_t message_rows() const { return head_rows() + slot_rows; }

  constexpr int64_t message_bytes() const { return message_rows() * row_bytes; }

  constexpr int64_t result_bytes() const { return num_pairs() * row_bytes; }

  // Results of all ranks.
  constexpr int32_t num_places() const { return num_ranks * num_pairs(); }

  // Of one message at most.
  constexpr int32_t num_pairs() const { return slot_rows * k; }
};

// The placement of an epoch as a device holds it.
struct RouteTable {
  // [num_experts, max_replicas] -> ranks that hold it, rising; -1 behind the last.
  const int32_t* replicas = nullptr;
  int32_t num_experts = 0;
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

// Whether a row travels to `rank`: once, if any of its k experts `ids` is computed there.
constexpr bool RouteGoesTo(
    const RouteTable& table, const int32_t* ids, int32_t k, int32_t row, int32_t rank) {
  for (int32_t slot = 0; slot < k; ++slot) {
    if (RouteDestination(table, ids[slot], row) == rank) return true;
  }
  return false;
}

// The place of (message row, slot) of one rank's slot among all slots: of its result, in what goes
// back and in what comes home.
constexpr int32_t RoutePlace(const SlotShape& shape,
                             int32_t rank,
                             int32_t message_row,
                             int32_t slot) {
  return (rank * shape.slot_rows + message_row) * shape.k + slot;
}

// The row of all messages, heads included, in which the row of `place` lies.
constexpr int32_t RouteRow(const SlotShape& shape, int32_t place) {
  const int32_t row = place / shape.k;
  return row / shape.slot_rows * shape.message_rows() + shape.head_rows() + row % shape.slot_rows;
}

constexpr bool IsExpected(const SlotHeader& header,
                          const SlotGuard& guard,
                          int32_t source,
                          const SlotShape& shape) {
  return header.epoch == guard.epoch && header.seq == guard.seq && header.source == source &&
         header.count >= 0 && header.count <= shape.slot_rows;
}

// What an entry of `experts` may be besides a local expert: nothing to do here, or a fault.
inline constexpr int32_t kNoExpert = -1;
inline constexpr int32_t kNotHeld = -2;

// The local index of the expert that an entry names.
constexpr int32_t RouteLocal(int32_t entry, const int32_t* local_index, int32_t num_experts) {
  if (entry == kNoExpert) return kNoExpert;
  if (entry < 0 || entry >= num_experts || local_index[entry] < 0) return kNotHeld;
  return local_index[entry];
}

}  // namespace shoal
