// Exchange factories by name, for the command line.
#pragma once

#include <memory>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"

#include "worker/exchange/exchange.h"
#include "worker/exchange/local.h"

namespace shoal {

class CudaBackend;

// What some kinds are made of; both may be null for the others.
struct ExchangeResources {
  std::shared_ptr<LocalHub> hub;  // "local:"
  // "nccl:": what the worker computes on, outlives the factory; null: a CPU.
  CudaBackend* gpu = nullptr;
};

// kind_and_address:
//   "local:"         the threads that share the hub
//   "tcp:HOST:PORT"  PORT 0 takes any; endpoint() says which
//   "unix:PATH"      an empty PATH takes one of its own in a private folder, removed at exit
//   "shm:PATH"       shared memory; PATH as for unix. All ranks must be on one host
//   "nccl:LIBRARY"   NCCL; without a LIBRARY ("nccl", "nccl:") that of this host (nccl_api.h)
// Errors: kInvalidArgument for another kind or a malformed
// address; kUnavailable if the address cannot be listened on (in use, not this host's); for "nccl:"
// those of OpenNcclExchangeFactory.
absl::StatusOr<std::unique_ptr<ExchangeFactory>> MakeExchangeFactory(
    absl::string_view kind_and_address, const ExchangeResources& resources);

}  // namespace shoal
