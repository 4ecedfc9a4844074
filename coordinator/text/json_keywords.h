// The keywords of a schema object, before it is interpreted: which are supported where.
#pragma once

#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/strings/string_view.h"
#include "nlohmann/json_fwd.hpp"

namespace shoal {

// kInvalidArgument names the first keyword that would change which documents are valid and is not
// supported.
absl::Status CheckSchemaKeywords(const nlohmann::ordered_json& schema, const std::string& place);

// Beside `keyword`, which says all by itself, nothing else restricts the value; `type` may stand
// beside values.
absl::Status CheckStandsAlone(const nlohmann::ordered_json& schema,
                              absl::string_view keyword,
                              const std::string& place);

// `type`, be it one or a list; empty if it is left out.
absl::Status ReadSchemaTypes(const nlohmann::ordered_json& schema,
                             const std::string& place,
                             std::vector<std::string>* types);

// Without a `type`: what the other keywords are about. Empty: nothing, so any type will do.
std::vector<std::string> TypesImplied(const nlohmann::ordered_json& schema);

}  // namespace shoal
