// HTTP/1.1 as values: what a client asked, what it is answered, and how an answer's head is
// spelled.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/string_view.h"

namespace shoal {

using HttpFields = std::vector<std::pair<std::string, std::string>>;

struct HttpRequest {
  std::string method;  // "GET"
  std::string path;    // Without the query, percent-decoded
  std::string query;   // After the '?', as sent
  HttpFields fields;
  std::string body;
  std::string peer;  // Address of the client

  // Of the first field of that name, in whatever case; "" if there is none.
  absl::string_view Field(absl::string_view name) const;
};

struct HttpResponse {
  int status = 200;
  HttpFields fields;  // Without those that frame the message: length, encoding, connection
  std::string body;
};

// How the bytes after a head are delimited.
enum class HttpFraming : uint8_t { kLength, kChunked, kUntilClose };

struct HttpHead {
  int status = 200;
  const HttpFields* fields = nullptr;
  HttpFraming framing = HttpFraming::kLength;
  size_t length = 0;  // With kLength
  bool keep_alive = true;
};

// Status line and fields, up to and with the empty line. A line break within a field, which would
// begin another field, becomes a space.
std::string FormatHttpHead(const HttpHead& head);

// One chunk of a chunked body. REQUIRES: bytes are not empty; an empty chunk ends the body.
std::string FormatHttpChunk(absl::string_view bytes);
inline constexpr absl::string_view kLastHttpChunk = "0\r\n\r\n";

// nullopt: a '%' is not followed by two hexadecimal digits.
std::optional<std::string> PercentDecoded(absl::string_view text);

}  // namespace shoal
