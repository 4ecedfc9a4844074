// JSON from clients, with the order of its keys: a schema's order is part of the prompt. Included
// by .cc files only, because the library takes seconds to compile.
#pragma once

#include <string>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "nlohmann/json.hpp"

namespace shoal {

// Nesting of a request; two levels for each level of a schema. Deeper is an attack or a mistake.
inline constexpr int kMaxClientJsonDepth = 128;

// Linear in the text. kInvalidArgument: text that is not JSON in UTF-8 (names byte, line and
// column), a key given twice in one object (names it; one of the two would be dropped), nesting
// deeper than kMaxClientJsonDepth.
absl::StatusOr<nlohmann::ordered_json> ParseJson(absl::string_view text);

// No white space, keys in their order, non-ASCII as it is; numbers in the shortest form, as
// serde_json writes them: 1.0, 0.00001, 1e-6, 1e16. REQUIRES: strings are valid UTF-8.
std::string CompactJson(const nlohmann::ordered_json& value);

}  // namespace shoal
