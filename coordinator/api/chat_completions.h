// POST /v1/chat/completions: the request. Its answer: coordinator/api/chat_writer.h.
#pragma once

#include <optional>
#include <string>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"

#include "coordinator/api/generation.h"

namespace shoal {

// `today` (YYYY-MM-DD) becomes the prompt's current date; nullopt: the prompt has none. Every field
// is honoured, mapped, listed in `ignored` or refused; a refusal (see errors.h) names the field,
// its value and what would do. Whether the model is served, whether ids of logit_bias are ordinary
// tokens and whether a schema can be enforced is for the caller to judge. Pure.
absl::StatusOr<ApiRequest> ParseChatRequest(absl::string_view body,
                                            const std::optional<std::string>& today);

}  // namespace shoal
