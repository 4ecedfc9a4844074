// The exchange over TCP or UNIX sockets: a connection between every two ranks of an epoch.
#pragma once

#include <memory>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"

#include "worker/exchange/exchange.h"

namespace shoal {

// `listen` is "tcp:HOST:PORT" or "unix:PATH"; see factory.h. The factory listens until it is
// destroyed, which is after its exchanges.
absl::StatusOr<std::unique_ptr<ExchangeFactory>> MakeSocketExchangeFactory(
    absl::string_view listen);

}  // namespace shoal
