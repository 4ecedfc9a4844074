// The inside of a JSON string, byte by byte: well-formed UTF-8 without control characters, escapes,
// and no surrogate without its other half.
#pragma once

#include <cstdint>

namespace shoal {

enum class StringState : uint8_t {
  kPlain,  // Between two characters
  // Inside a character: so many continuation bytes are due; the first of them may be limited.
  kOneMore,
  kTwoMore,
  kThreeMore,
  kAfterE0,
  kAfterEd,
  kAfterF0,
  kAfterF4,
  // Inside an escape. A high surrogate (\ud800 to \udbff) needs a low one (\udc00 to \udfff).
  kEscape,
  kHex4,
  kHex3,
  kHex2,
  kHex1,
  kHex3AfterD,
  kHigh2,
  kHigh1,
  kLowEscape,
  kLowU,
  kLow4,
  kLow3,
  // Not states to be in:
  kClosed,   // The byte was the closing quote
  kRefused,  // The byte cannot stand here
};

inline constexpr int kNumStringStates = static_cast<int>(StringState::kClosed);

StringState StepString(StringState state, uint8_t byte);

// The byte, in kPlain, begins a character: as readers count them, an escaped pair of surrogates is
// one.
inline bool BeginsCharacter(StringState state, uint8_t byte) {
  return state == StringState::kPlain && byte != '"';
}

}  // namespace shoal
