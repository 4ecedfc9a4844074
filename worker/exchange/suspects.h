// Which ranks an error points at. Travels as a payload of the status, so that a failed
// ExchangeFactory::Create, which leaves no Exchange to ask, can name them too.
#pragma once

#include <span>
#include <vector>

#include "absl/status/status.h"

#include "base/ids.h"

namespace shoal {

// `status`, which is not OK, pointing at `suspects`.
absl::Status WithSuspects(absl::Status status, std::span<const Rank> suspects);

// The ranks that WithSuspects() attached, rising; empty if there are none.
std::vector<Rank> SuspectsOf(const absl::Status& status);

}  // namespace shoal
