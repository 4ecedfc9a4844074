#include "base/serve/http_message.h"

#include <algorithm>

#include "absl/strings/ascii.h"
#include "absl/strings/escaping.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"

namespace shoal {
namespace {

absl::string_view ReasonOf(int status) {
  switch (status) {
    case 200:
      return "OK";
    case 400:
      return "Bad Request";
    case 401:
      return "Unauthorized";
    case 403:
      return "Forbidden";
    case 404:
      return "Not Found";
    case 405:
      return "Method Not Allowed";
    case 408:
      return "Request Timeout";
    case 409:
      return "Conflict";
    case 413:
      return "Content Too Large";
    case 415:
      return "Unsupported Media Type";
    case 429:
      return "Too Many Requests";
    case 431:
      return "Request Header Fields Too Large";
    case 500:
      return "Internal Server Error";
    case 501:
      return "Not Implemented";
    case 503:
      return "Service Unavailable";
    case 504:
      return "Gateway Timeout";
    case 505:
      return "HTTP Version Not Supported";
    default:
      return "Unknown";
  }
}

void AppendField(absl::string_view name, absl::string_view value, std::string* out) {
  const size_t begin = out->size();
  absl::StrAppend(out, name, ": ", value);
  std::replace_if(
      out->begin() + static_cast<ptrdiff_t>(begin),
      out->end(),
      [](char c) { return c == '\r' || c == '\n' || c == '\0'; },
      ' ');
  out->append("\r\n");
}

}  // namespace

absl::string_view HttpRequest::Field(absl::string_view name) const {
  for (const auto& [field, value] : fields) {
    if (absl::EqualsIgnoreCase(field, name)) return value;
  }
  return "";
}

std::string FormatHttpHead(const HttpHead& head) {
  std::string out = absl::StrCat("HTTP/1.1 ", head.status, " ", ReasonOf(head.status), "\r\n");
  if (head.fields != nullptr) {
    for (const auto& [name, value] : *head.fields) AppendField(name, value, &out);
  }
  if (head.framing == HttpFraming::kLength) {
    AppendField("content-length", absl::StrCat(head.length), &out);
  } else if (head.framing == HttpFraming::kChunked) {
    AppendField("transfer-encoding", "chunked", &out);
  }
  AppendField("connection", head.keep_alive ? "keep-alive" : "close", &out);
  out.append("\r\n");
  return out;
}

std::string FormatHttpChunk(absl::string_view bytes) {
  return absl::StrCat(absl::Hex(bytes.size()), "\r\n", bytes, "\r\n");
}

std::optional<std::string> PercentDecoded(absl::string_view text) {
  std::string out;
  for (size_t i = 0; i < text.size(); ++i) {
    if (text[i] != '%') {
      out.push_back(text[i]);
      continue;
    }
    const absl::string_view digits = text.substr(i + 1, 2);
    if (digits.size() != 2 || !absl::ascii_isxdigit(static_cast<unsigned char>(digits[0])) ||
        !absl::ascii_isxdigit(static_cast<unsigned char>(digits[1]))) {
      return std::nullopt;
    }
    out.append(absl::HexStringToBytes(digits));
    i += 2;
  }
  return out;
}

}  // namespace shoal
