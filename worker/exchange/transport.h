// What a transport of host memory has to do: bring one frame from each rank to each other rank.
// HostExchange (host_exchange.h) says what the frames mean; local, socket and shm move them.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <span>

#include "absl/status/status.h"
#include "absl/time/time.h"

#include "base/ids.h"

namespace shoal {

enum class ExchangeOp : uint32_t { kOpen = 1, kDispatch = 2, kCombine = 3 };

// Opens every frame, in the byte order of the host: ranks of unequal order would not agree on the
// rows either, and are refused by the handshake's magic. The body, `bytes` long, is `pairs`
// RoutedPairs (Dispatch only), then `rows` rows.
struct FrameHeader {
  static constexpr uint32_t kMagic = 0x6d617266;  // "fram"

  uint32_t magic = kMagic;
  ExchangeOp op = ExchangeOp::kOpen;
  uint64_t epoch = 0;
  uint64_t seq = 0;  // Of the operation in its epoch, from 0
  uint32_t rows = 0;
  uint32_t pairs = 0;
  uint64_t bytes = 0;
  int32_t src = 0;
  int32_t dst = 0;
};

static_assert(sizeof(FrameHeader) == 48);

// To one rank. The parts are sent one after the other and stay valid during AllToAll.
struct OutFrame {
  FrameHeader header;
  std::array<std::span<const std::byte>, 2> parts;

  size_t bytes() const { return parts[0].size() + parts[1].size(); }
};

// From one rank. The caller says in `max_bytes` how long a body it would accept.
struct InFrame {
  size_t max_bytes = 0;
  FrameHeader header;
  std::span<const std::byte> body;  // In the transport's memory, until the next AllToAll
};

// One operation of one rank. Both arrays are by rank; the own entry is not looked at.
struct Round {
  std::span<const OutFrame> out;
  std::span<InFrame> in;
  absl::Time deadline;
  absl::Duration waited;  // Set by the transport: spent blocked
};

// OK if `got`, from rank `src`, answers `sent`, the frame that this rank sent to it in the same
// round. Else kFailedPrecondition (another epoch, another order, more bytes than `max_bytes`) or
// kUnavailable (not a frame), naming `src` as the suspect.
absl::Status CheckHeader(const FrameHeader& got, const FrameHeader& sent, size_t max_bytes);

// Connects the ranks of one epoch. Threads: one calls AllToAll; Wake() may come from any.
class Transport {
 public:
  virtual ~Transport() = default;

  // Collective: number of calls so far. Errors as in exchange.h, with suspects attached
  // (suspects.h); after one the transport is only good for being destroyed.
  virtual absl::Status AllToAll(Round* round) = 0;

  // Thread-safe, never blocks: AllToAll in progress and all later ones return kAborted soon.
  virtual void Wake() = 0;
};

}  // namespace shoal
