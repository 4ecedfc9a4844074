// How the rows of one step travel over NCCL, chosen by the batch alone: a table that every rank
// reads with the same number, so that all do the same operations of the same sizes. No choice
// changes a bit: each row meets the same experts, and its results are summed in the same order.
#pragma once

#include <cstddef>
#include <cstdint>

#include "worker/exchange/exchange.h"

namespace shoal {

struct ExchangeShape {
  // Rows that any rank may have in the step; messages of fixed size have room for so many.
  int32_t slot_rows = 0;
  // Rows ride in the message that tells their number, which is of fixed size then: one round, and
  // bytes for rows that are not there. Else they follow in a second round of the exact size.
  bool rows_ride_along = false;
  // A layer exchanges the batch in so many parts, one travelling while another is computed.
  int32_t num_parts = 1;

  friend bool operator==(const ExchangeShape&, const ExchangeShape&) = default;
};

// `most_rows`: of any rank in the step, the same number on all of them; at least 0.
ExchangeShape ChooseExchangeShape(int32_t most_rows, int32_t max_rows);

// The fixed part of a dispatch from one rank to another: how many rows and pairs, whose, and the
// pairs. Rows follow it, in the same message or in the next.
struct SlotHeader {
  static constexpr uint32_t kMagic = 0x746f6c73;  // "slot"

  uint32_t magic = kMagic;
  uint32_t rows = 0;
  uint32_t pairs = 0;
  int32_t src = 0;
  uint64_t epoch = 0;
  uint64_t seq = 0;  // Of the dispatch in its epoch, from 0
};

static_assert(sizeof(SlotHeader) == 32);

// Bytes of one rank's messages to another.
struct SlotBytes {
  size_t meta = 0;      // Header and room for the pairs of slot_rows rows
  size_t dispatch = 0;  // Of the first round: meta, and the rows if they ride along
};

SlotBytes SlotBytesOf(const ExchangeShape& shape, const ExchangeLimits& limits);

}  // namespace shoal
