// A dispatch planned on the device: chosen experts in, filled slots out; slots in, groups of pairs
// out. kernels/route_math.h has the integers. Fixed shapes and no wait of the host, so a step that
// exchanges in this way can be captured in a graph.
#pragma once

#include <cstdint>

#include "kernels/route_math.h"

struct CUstream_st;

namespace shoal {

// Row pointers are bf16 [.., hidden], 16-byte aligned; row_bytes a multiple of 16.
struct FillSlotsArgs {
  RouteTable table;
  const int32_t* ids = nullptr;  // [num_rows, k]
  const void* x = nullptr;       // [num_rows, hidden]
  int32_t num_rows = 0;
  int32_t k = 0;
  int32_t num_ranks = 0;
  int32_t slot_rows = 0;  // At least num_rows
  int64_t row_bytes = 0;
  int32_t* counts = nullptr;   // [ranks], written
  int32_t* experts = nullptr;  // [ranks, slot_rows, k], written up to each count
  void* rows = nullptr;        // [ranks, slot_rows, hidden], likewise
  int32_t* home = nullptr;  // [num_rows, k], written: the place of each result in what comes home
};

// What ExpertMlp takes, of slots that arrived. pair_row indexes the arrived rows as [ranks *
// slot_rows, hidden], pair_out the results as [ranks * slot_rows * k, hidden].
struct GroupSlotsArgs {
  const int32_t* counts = nullptr;       // [ranks]
  const int32_t* experts = nullptr;      // [ranks, slot_rows, k]
  const int32_t* local_index = nullptr;  // [num_experts], -1: not held
  int32_t num_local = 0;
  int32_t num_ranks = 0;
  int32_t slot_rows = 0;
  int32_t k = 0;
  int32_t* expert_offsets = nullptr;  // [num_local + 1], written
  int32_t* pair_row = nullptr;        // [ranks * slot_rows * k], written up to the last offset
  int32_t* pair_out = nullptr;        // Likewise
};

// Both only queue their kernel on `stream`.
void FillSlots(const FillSlotsArgs& args, CUstream_st* stream);
void GroupSlots(const GroupSlotsArgs& args, CUstream_st* stream);

}  // namespace shoal
