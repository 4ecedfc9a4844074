// The fields that Chat Completions and Responses share. Included by .cc files only.
#pragma once

#include <initializer_list>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"

#include "coordinator/api/generation.h"
#include "coordinator/api/json_fields.h"

namespace shoal {

// temperature, top_p, top_k, min_p, the penalties, seed, logit_bias.
absl::Status ReadSampling(const JsonFields& body, GenerationSettings* out);

// stop: a text or some.
absl::Status ReadStop(const JsonFields& body, GenerationSettings* out);

// An integer of at least 1, if it is there.
absl::StatusOr<std::optional<int64_t>> ReadTokenLimit(const JsonFields& body,
                                                      absl::string_view key);

// 0 to kMaxApiTopLogprobs.
absl::StatusOr<std::optional<int32_t>> ReadTopLogprobs(const JsonFields& body);

// `fields` has the word in its field `key`; null: medium.
absl::StatusOr<ReasoningEffort> ReadEffort(const JsonFields& fields, absl::string_view key);

// name, description, parameters, strict.
absl::StatusOr<HarmonyFunction> ReadFunction(const JsonFields& fields);
absl::Status CheckFunctionName(const JsonFields& fields, const std::string& name);

// Takes note of a declared function; kInvalidArgument if another has its name.
absl::Status Declare(const JsonFields& tool, HarmonyFunction function, ApiRequest* out);

// tool_choice, in either API's spelling: a word, {"type": "function", ...} or {"type":
// "allowed_tools", ...}. Then drops the functions if none may be called. After all are declared.
absl::Status ReadToolChoice(const JsonFields& body, ApiRequest* out);

// `format`: {"type": "text" | "json_object" | "json_schema"}; `schema`: the object with name,
// description, schema and strict of the last kind.
absl::Status ReadOutputFormat(const JsonFields& format, const JsonFields& schema, ApiRequest* out);

// A text, or a list of parts that hold text; parts of other kinds are refused by name. null: "".
absl::StatusOr<std::string> ReadText(const JsonFields& fields,
                                     absl::string_view key,
                                     std::initializer_list<absl::string_view> kinds);

// kInvalidArgument for each of `keys` that is there (and not null): what it is, and what would do.
struct Unsupported {
  absl::string_view key;
  absl::string_view advice;
};

absl::Status RefuseUnsupported(const JsonFields& body, std::initializer_list<Unsupported> keys);

// The body's keys that are not among `known`.
std::vector<std::string> OtherKeys(const JsonFields& body,
                                   std::initializer_list<absl::string_view> known);

}  // namespace shoal
