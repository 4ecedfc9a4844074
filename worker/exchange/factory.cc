#include "worker/exchange/factory.h"

#include <string>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/strip.h"

#include "worker/exchange/nccl.h"
#include "worker/exchange/shm.h"
#include "worker/exchange/socket.h"

namespace shoal {

absl::StatusOr<std::unique_ptr<ExchangeFactory>> MakeExchangeFactory(
    absl::string_view kind_and_address, const ExchangeResources& resources) {
  if (absl::StartsWith(kind_and_address, "local:")) {
    if (resources.hub == nullptr) {
      return absl::InvalidArgumentError(
          "an exchange of kind local joins the threads of one process; use unix:, shm: or "
          "tcp:HOST:PORT between processes");
    }
    return MakeLocalExchangeFactory(resources.hub);
  }
  if (absl::StartsWith(kind_and_address, "tcp:") || absl::StartsWith(kind_and_address, "unix:")) {
    return MakeSocketExchangeFactory(kind_and_address);
  }
  if (absl::StartsWith(kind_and_address, "shm:")) return MakeShmExchangeFactory(kind_and_address);
  if (kind_and_address == "nccl") return OpenNcclExchangeFactory("", resources.gpu);
  if (absl::ConsumePrefix(&kind_and_address, "nccl:")) {
    return OpenNcclExchangeFactory(std::string(kind_and_address), resources.gpu);
  }
  return absl::InvalidArgumentError(absl::StrCat("exchange \"",
                                                 kind_and_address,
                                                 "\" is none of local:, unix:PATH, shm:PATH, "
                                                 "tcp:HOST:PORT and nccl:LIBRARY"));
}

}  // namespace shoal
