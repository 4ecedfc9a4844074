// JSON Schema -> JsonGraph. What would change which documents are valid and is not supported is
// refused by name, with the JSON pointer of its place; annotations and `format` are passed over.
// docs/api.md lists what is supported. Pure; thread-safe.
#pragma once

#include <cstddef>
#include <cstdint>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"

#include "coordinator/text/json_graph.h"

namespace shoal {

inline constexpr size_t kMaxSchemaBytes = 64 * 1024;
inline constexpr size_t kMaxSchemaNodes = 5'000;
inline constexpr size_t kMaxSchemaAlternatives = 64;

// kInvalidArgument: not JSON, not a schema, not supported, or satisfied by no document.
absl::StatusOr<JsonGraph> CompileJsonSchema(absl::string_view schema);

// Any object: what `json_object` asks for.
JsonGraph AnyJsonObject();

}  // namespace shoal
