// The readers that came by HTTP, and what statuses look like there.
#pragma once

#include <cstdint>
#include <memory>
#include <string>

#include "absl/status/status.h"

#include "base/serve/http_server.h"
#include "coordinator/serve/stream_reader.h"

namespace shoal {

enum class AnswerForm : uint8_t {
  kWhole,   // One message, the body
  kEvents,  // Server-sent events, each message some of them
};

// `fields` are those of every answer to the request, such as its id.
std::unique_ptr<StreamReader> MakeHttpReader(AnswerForm form,
                                             HttpFields fields,
                                             HttpExchange* exchange);

// What ends a stream of data events that fails on the way.
std::string ErrorEvent(const absl::Status& status);

// The OpenAI error object of `status`, and when to come back.
HttpResponse ErrorResponse(const absl::Status& status, HttpFields fields);

}  // namespace shoal
