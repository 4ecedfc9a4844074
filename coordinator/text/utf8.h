// UTF-8, one character at a time: which bytes form one, which may still become one, which cannot.
#pragma once

#include <cstddef>
#include <cstdint>

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

// How many leading bytes are whole characters: bytes.size() if all of them are.
size_t ValidUtf8Prefix(absl::string_view bytes);

}  // namespace shoal
