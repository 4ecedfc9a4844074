// UTF-8, one character at a time: which bytes form one, which may still become one, which cannot.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>

#include "absl/strings/string_view.h"

namespace shoal {

struct Utf8Sequence {
  enum class Kind : uint8_t {
    kCharacter,   // A whole character
    kIncomplete,  // The bytes end where more could complete it
    kIllFormed,   // A maximal subpart (Unicode 15, section 3.9): one U+FFFD stands for it
  };
  Kind kind = Kind::kIllFormed;
  uint8_t size = 1;         // Bytes, 1 to 4
  uint32_t code_point = 0;  // Of a kCharacter
};

// The sequence that begins at `at`. REQUIRES: at < bytes.size().
Utf8Sequence ReadUtf8(absl::string_view bytes, size_t at);

// Takes the text that is decided out of `bytes`: whole characters, and U+FFFD for each ill-formed
// part. What may still become a character stays: at most 3 bytes.
std::string TakeUtf8(std::string* bytes);

// `bytes` as text, U+FFFD for each ill-formed part and for an unfinished character at the end.
std::string WellFormedUtf8(absl::string_view bytes);

inline constexpr absl::string_view kReplacementCharacter = "\xEF\xBF\xBD";  // U+FFFD

// How many leading bytes are whole characters: bytes.size() if all of them are.
size_t ValidUtf8Prefix(absl::string_view bytes);

}  // namespace shoal
