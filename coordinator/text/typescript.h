// A JSON schema as the TypeScript-like type that harmony prompts show, spelled as openai-harmony
// spells it, its quirks included: the model was trained on that text. Pure.
#pragma once

#include <string>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"

namespace shoal {

// What has no spelling of its own ($ref, anyOf, allOf, const, ...) is `any`. kInvalidArgument:
// `schema` is not JSON.
absl::StatusOr<std::string> TypeScriptType(absl::string_view schema);

}  // namespace shoal
