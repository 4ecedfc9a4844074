// How the rows of one step travel over NCCL, chosen by the batch alone: a table that every rank
// reads with the same number, so that all do the same operations of the same sizes.
#pragma once

#include <cstddef>
#include <cstdint>

#include "worker/exchange/exchange.h"

namespace shoal {

// Steps of more rows are routed on the host.
inline constexpr int32_t kMaxSlotRows = 64;

// `most_rows`: of any rank in the step, the same number on all of them; at least 0.
ExchangeShape ChooseExchangeShape(int32_t most_rows, int32_t max_rows);

// The fixed part of a dispatch that the host planned, from one rank to another: how many rows and
// pairs, whose, and the pairs. The rows follow in the next round.
struct DispatchHeader {
  static constexpr uint32_t kMagic = 0x746f6c73;  // "slot"

  uint32_t magic = kMagic;
  uint32_t rows = 0;
  uint32_t pairs = 0;
  int32_t src = 0;
  uint64_t epoch = 0;
  uint64_t seq = 0;  // Of the dispatch in its epoch, from 0
};

static_assert(sizeof(DispatchHeader) == 32);

// Bytes of that: the header and room for the pairs of `most_rows` rows.
size_t DispatchHeaderBytes(int32_t most_rows, const ExchangeLimits& limits);

}  // namespace shoal
