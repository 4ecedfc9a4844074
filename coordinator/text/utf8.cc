#include "coordinator/text/utf8.h"

#include <cstring>

#include "absl/strings/str_cat.h"

namespace shoal {
namespace {

struct Lead {
  uint8_t num_continuations;  // 0: this byte begins nothing
  uint8_t payload;            // Its bits of the code point
  uint8_t min_second;         // The second byte's range excludes overlong forms, surrogates and
  uint8_t max_second;         // what lies above U+10FFFF
};

// Unicode 15, table 3-7.
constexpr Lead LeadOf(uint8_t byte) {
  if (byte >= 0xC2 && byte <= 0xDF) return {1, static_cast<uint8_t>(byte & 0x1F), 0x80, 0xBF};
  if (byte >= 0xE0 && byte <= 0xEF) {
    return {2,
            static_cast<uint8_t>(byte & 0x0F),
            static_cast<uint8_t>(byte == 0xE0 ? 0xA0 : 0x80),
            static_cast<uint8_t>(byte == 0xED ? 0x9F : 0xBF)};
  }
  if (byte >= 0xF0 && byte <= 0xF4) {
    return {3,
            static_cast<uint8_t>(byte & 0x07),
            static_cast<uint8_t>(byte == 0xF0 ? 0x90 : 0x80),
            static_cast<uint8_t>(byte == 0xF4 ? 0x8F : 0xBF)};
  }
  return {0, 0, 0, 0};
}

}  // namespace

Utf8Sequence ReadUtf8(absl::string_view bytes, size_t at) {
  using Kind = Utf8Sequence::Kind;
  const auto first = static_cast<uint8_t>(bytes[at]);
  if (first < 0x80) return {Kind::kCharacter, 1, first};
  const Lead lead = LeadOf(first);
  if (lead.num_continuations == 0) return {Kind::kIllFormed, 1, 0};

  uint32_t code_point = lead.payload;
  uint8_t size = 1;
  for (; size <= lead.num_continuations; ++size) {
    if (at + size == bytes.size()) return {Kind::kIncomplete, size, 0};
    const auto byte = static_cast<uint8_t>(bytes[at + size]);
    const bool fits =
        size == 1 ? byte >= lead.min_second && byte <= lead.max_second : (byte & 0xC0) == 0x80;
    if (!fits) return {Kind::kIllFormed, size, 0};
    code_point = code_point << 6 | (byte & 0x3Fu);
  }
  return {Kind::kCharacter, size, code_point};
}

std::string TakeUtf8(std::string* bytes) {
  std::string text;
  size_t at = 0;
  while (at < bytes->size()) {
    const size_t valid = ValidUtf8Prefix(absl::string_view(*bytes).substr(at));
    absl::StrAppend(&text, absl::string_view(*bytes).substr(at, valid));
    at += valid;
    if (at == bytes->size()) break;
    const Utf8Sequence sequence = ReadUtf8(*bytes, at);
    if (sequence.kind == Utf8Sequence::Kind::kIncomplete) break;
    absl::StrAppend(&text, kReplacementCharacter);
    at += sequence.size;
  }
  bytes->erase(0, at);
  return text;
}

std::string WellFormedUtf8(absl::string_view bytes) {
  std::string held(bytes);
  std::string text = TakeUtf8(&held);
  if (!held.empty()) absl::StrAppend(&text, kReplacementCharacter);
  return text;
}

size_t ValidUtf8Prefix(absl::string_view bytes) {
  size_t at = 0;
  while (at < bytes.size()) {
    // Most text is ASCII: eight bytes without a high bit at once.
    uint64_t word = 0;
    if (bytes.size() - at >= sizeof(word)) {
      std::memcpy(&word, bytes.data() + at, sizeof(word));
      if ((word & 0x8080808080808080u) == 0) {
        at += sizeof(word);
        continue;
      }
    }
    const Utf8Sequence sequence = ReadUtf8(bytes, at);
    if (sequence.kind != Utf8Sequence::Kind::kCharacter) return at;
    at += sequence.size;
  }
  return at;
}

}  // namespace shoal
