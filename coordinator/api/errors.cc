#include "coordinator/api/errors.h"

#include <utility>

#include "absl/strings/cord.h"
#include "absl/strings/str_cat.h"
#include "nlohmann/json.hpp"

#include "base/check.h"

namespace shoal {
namespace {

using nlohmann::ordered_json;

constexpr absl::string_view kParamUrl = "shoal/param";
constexpr absl::string_view kCodeUrl = "shoal/code";
constexpr size_t kMaxShownBytes = 128;  // Of a client's own text within a message

std::optional<std::string> Payload(const absl::Status& status, absl::string_view url) {
  const auto payload = status.GetPayload(url);
  if (!payload) return std::nullopt;
  return std::string(*payload);
}

struct Kind {
  int http_status;
  const char* type;
  const char* code;  // Null: none
};

Kind KindOf(absl::StatusCode code) {
  switch (code) {
    case absl::StatusCode::kInvalidArgument:
    case absl::StatusCode::kFailedPrecondition:
    case absl::StatusCode::kUnimplemented:
      return {400, "invalid_request_error", nullptr};
    case absl::StatusCode::kOutOfRange:
      return {400, "invalid_request_error", "context_length_exceeded"};
    case absl::StatusCode::kUnauthenticated:
      return {401, "authentication_error", "invalid_api_key"};
    case absl::StatusCode::kPermissionDenied:
      return {403, "permission_error", nullptr};
    case absl::StatusCode::kNotFound:
      return {404, "not_found_error", nullptr};
    case absl::StatusCode::kAlreadyExists:
      return {409, "invalid_request_error", nullptr};
    case absl::StatusCode::kResourceExhausted:
      return {429, "rate_limit_error", "rate_limit_exceeded"};
    case absl::StatusCode::kCancelled:
      return {499, "cancelled_error", nullptr};
    case absl::StatusCode::kUnavailable:
      return {503, "overloaded_error", "server_overloaded"};
    case absl::StatusCode::kDeadlineExceeded:
      return {504, "timeout_error", nullptr};
    default:
      return {500, "server_error", nullptr};
  }
}

ordered_json OrNull(const std::optional<std::string>& text) {
  return text ? ordered_json(*text) : ordered_json();
}

}  // namespace

absl::Status BadField(absl::string_view param, absl::string_view message) {
  absl::Status status = absl::InvalidArgumentError(message);
  status.SetPayload(kParamUrl, absl::Cord(param));
  return status;
}

absl::Status BadFieldWithCode(absl::string_view param,
                              absl::string_view code,
                              absl::string_view message) {
  absl::Status status = BadField(param, message);
  status.SetPayload(kCodeUrl, absl::Cord(code));
  return status;
}

absl::Status ModelNotFound(absl::string_view asked, absl::string_view served) {
  absl::Status status = absl::NotFoundError(absl::StrCat(
      "the model `", asked.substr(0, kMaxShownBytes), "` is not served here; `", served, "` is"));
  status.SetPayload(kParamUrl, absl::Cord("model"));
  status.SetPayload(kCodeUrl, absl::Cord("model_not_found"));
  return status;
}

ApiError ApiErrorOf(const absl::Status& status) {
  CHECK(!status.ok());
  const Kind kind = KindOf(status.code());
  ApiError error;
  error.http_status = kind.http_status;
  error.type = kind.type;
  error.code = Payload(status, kCodeUrl);
  if (!error.code && kind.code != nullptr) error.code = kind.code;
  error.param = Payload(status, kParamUrl);
  if (error.param == "") error.param.reset();  // The body as a whole
  error.message = std::string(status.message());
  return error;
}

std::string ErrorBody(const ApiError& error) {
  const ordered_json body = {{"error",
                              {{"message", error.message},
                               {"type", error.type},
                               {"param", OrNull(error.param)},
                               {"code", OrNull(error.code)}}}};
  return body.dump(-1, ' ', false, ordered_json::error_handler_t::replace);
}

}  // namespace shoal
