// Refusals as absl::Status, and their OpenAI form. Pure.
//
// A status that says which field is wrong carries that beside its message, so that one error can
// become an OpenAI error object (ApiErrorOf) or a gRPC status.
#pragma once

#include <optional>
#include <string>

#include "absl/status/status.h"
#include "absl/strings/string_view.h"

namespace shoal {

// kInvalidArgument about `param`, for example "messages[2].role". The message names the value and
// what would do.
absl::Status BadField(absl::string_view param, absl::string_view message);
// With one of OpenAI's codes, for example "unsupported_content".
absl::Status BadFieldWithCode(absl::string_view param,
                              absl::string_view code,
                              absl::string_view message);

// kNotFound with the code model_not_found.
absl::Status ModelNotFound(absl::string_view asked, absl::string_view served);

struct ApiError {
  int http_status = 500;
  std::string type;                  // "invalid_request_error", ...
  std::optional<std::string> code;   // "context_length_exceeded", ...
  std::optional<std::string> param;  // The field
  std::string message;
};

// REQUIRES: !status.ok(). A status without a code of its own gets the one of its kind:
//
//     kInvalidArgument, kFailedPrecondition, kUnimplemented   400  invalid_request_error
//     kOutOfRange          400  invalid_request_error   context_length_exceeded
//     kUnauthenticated     401  authentication_error    invalid_api_key
//     kPermissionDenied    403  permission_error
//     kNotFound            404  not_found_error
//     kAlreadyExists       409  invalid_request_error
//     kResourceExhausted   429  rate_limit_error        rate_limit_exceeded
//     kCancelled           499  for logs: the client is gone
//     kUnavailable         503  overloaded_error        server_overloaded
//     kDeadlineExceeded    504  timeout_error
//     any other            500  server_error
ApiError ApiErrorOf(const absl::Status& status);

// {"error": {"message", "type", "param", "code"}}: a response's body, and the data of the event
// that ends a failed stream.
std::string ErrorBody(const ApiError& error);

}  // namespace shoal
