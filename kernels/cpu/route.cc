// A dispatch planned on the device: chosen experts in, messages out; messages in, groups of pairs
// out. Integers and copies, on one thread: a step in slots has few rows. route_math.h has the
// layout.
#include <algorithm>
#include <cstring>
#include <vector>

#include "kernels/cpu/backend.h"
#include "kernels/kernel_check.h"
#include "kernels/numeric.h"

namespace shoal {
namespace {

// Of the message to or from `rank`.
struct Message {
  Message(const TensorView& messages, const SlotShape& shape, int32_t rank)
      : header(reinterpret_cast<SlotHeader*>(static_cast<std::byte*>(messages.data) +
                                             rank * shape.message_bytes())),
        experts(reinterpret_cast<int32_t*>(header + 1)) {}

  SlotHeader* header;
  int32_t* experts;  // [slot_rows, k]
};

}  // namespace

void CpuBackend::FillSlots(const FillSlotsArgs& args) {
  const SlotShape& shape = args.shape;
  const int32_t num_rows = *args.num_rows;
  KERNEL_CHECK(num_rows <= args.ids.rows && args.ids.rows <= shape.slot_rows);
  std::fill_n(args.home, args.ids.rows * shape.k, 0);
  for (int32_t rank = 0; rank < shape.num_ranks; ++rank) {
    const Message message(args.messages, shape, rank);
    int32_t count = 0;
    for (int32_t row = 0; row < num_rows; ++row) {
      const int32_t* const ids = args.ids.row<const int32_t>(row);
      if (!RouteGoesTo(args.table, ids, shape.k, row, rank)) continue;
      for (int32_t slot = 0; slot < shape.k; ++slot) {
        const bool is_here = RouteDestination(args.table, ids[slot], row) == rank;
        message.experts[count * shape.k + slot] = is_here ? ids[slot] : kNoExpert;
        if (is_here) args.home[row * shape.k + slot] = RoutePlace(shape, rank, count, slot);
      }
      std::memcpy(args.messages.row<Bf16>(RouteRow(shape, RoutePlace(shape, rank, count, 0))),
                  args.x.row<Bf16>(row),
                  static_cast<size_t>(shape.row_bytes));
      ++count;
    }
    *message.header = {.epoch = args.guard->fault == 0 ? args.guard->epoch : 0,
                       .seq = args.guard->seq,
                       .source = args.table.self,
                       .count = count};
  }
}

void CpuBackend::GroupSlots(const GroupSlotsArgs& args) {
  const SlotShape& shape = args.shape;
  SlotGuard& guard = *args.guard;
  // [num_places] local expert, or kNoExpert.
  std::vector<int32_t> locals(static_cast<size_t>(shape.num_places()), kNoExpert);
  std::fill_n(args.expert_offsets, args.num_local + 1, 0);
  for (int32_t rank = 0; rank < shape.num_ranks; ++rank) {
    const Message message(args.messages, shape, rank);
    bool is_sound = IsExpected(*message.header, guard, rank, shape);
    const int32_t num_pairs = is_sound ? message.header->count * shape.k : 0;
    for (int32_t pair = 0; pair < num_pairs; ++pair) {
      const int32_t local = RouteLocal(message.experts[pair],
                                       args.local_index.data,
                                       static_cast<int32_t>(args.local_index.size));
      is_sound = is_sound && local != kNotHeld;
      if (local < 0) continue;
      locals[static_cast<size_t>(rank * shape.num_pairs() + pair)] = local;
      ++args.expert_offsets[local + 1];
    }
    if (!is_sound && guard.fault == 0) guard.fault = 1 + rank;
  }
  ++guard.seq;
  for (int32_t e = 0; e < args.num_local; ++e) args.expert_offsets[e + 1] += args.expert_offsets[e];
  std::vector<int32_t> next(args.expert_offsets, args.expert_offsets + args.num_local);
  for (int32_t place = 0; place < shape.num_places(); ++place) {
    const int32_t local = locals[static_cast<size_t>(place)];
    if (local < 0) continue;
    const int32_t at = next[static_cast<size_t>(local)]++;
    args.pair_row[at] = RouteRow(shape, place);
    args.pair_out[at] = place;
  }
}

}  // namespace shoal
