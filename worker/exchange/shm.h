// The exchange through memory that the processes of one host share.
//
// Rank 0 makes a segment (memfd) for the epoch and hands it to the others over the UNIX sockets by
// which they met; after that those sockets only tell who has died. The segment goes with the last
// rank that maps it. Its size is what could be sent at most, but only pages that rows have touched
// take memory.
#pragma once

#include <memory>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"

#include "worker/exchange/exchange.h"

namespace shoal {

// `listen` is "shm:PATH"; see factory.h. All ranks must be on one host and trust each other: each
// may write everywhere in the segment. Limits must be equal on all ranks (else
// kFailedPrecondition). The factory listens until it is destroyed, which is after its exchanges.
absl::StatusOr<std::unique_ptr<ExchangeFactory>> MakeShmExchangeFactory(absl::string_view listen);

}  // namespace shoal
