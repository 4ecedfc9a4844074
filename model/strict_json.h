// JSON from files that we did not write: nothing is thrown, nothing silently dropped.
#pragma once

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "nlohmann/json.hpp"

namespace shoal {

// Nesting that no file of a checkpoint comes near; deeper is an attack or a mistake.
inline constexpr int kMaxJsonDepth = 64;

// Parses one JSON object. Refused, with kInvalidArgument that begins with `what` (a file's name):
// text that is not JSON (names the byte), a key given twice in one object (the library would keep
// the last), nesting deeper than kMaxJsonDepth, anything but an object at the top.
absl::StatusOr<nlohmann::json> ParseStrictJson(absl::string_view text, absl::string_view what);

}  // namespace shoal
