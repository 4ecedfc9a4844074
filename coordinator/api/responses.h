// POST /v1/responses: the request. Its answer: coordinator/api/responses_writer.h.
//
// Nothing is stored: previous_response_id, conversation, prompt and background are refused, and
// clients send the whole conversation, our own output items included, exactly as they got them.
#pragma once

#include <optional>
#include <string>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"

#include "coordinator/api/generation.h"

namespace shoal {

struct ResponsesRequest {
  ApiRequest request;
  // The response object's fields that repeat the request: one JSON object.
  std::string echo;
};

// As ParseChatRequest.
absl::StatusOr<ResponsesRequest> ParseResponsesRequest(absl::string_view body,
                                                       const std::optional<std::string>& today);

}  // namespace shoal
