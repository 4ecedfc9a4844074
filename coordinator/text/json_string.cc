#include "coordinator/text/json_string.h"

#include <array>
#include <cstddef>

namespace shoal {
namespace {

using S = StringState;

constexpr bool IsHex(uint8_t b) {
  return (b >= '0' && b <= '9') || (b >= 'a' && b <= 'f') || (b >= 'A' && b <= 'F');
}

constexpr bool IsBetween(uint8_t b, uint8_t low, uint8_t high) {
  return b >= low && b <= high;
}

// Unicode 15, table 3-7.
constexpr S Begin(uint8_t b) {
  if (b == '"') return S::kClosed;
  if (b == '\\') return S::kEscape;
  if (IsBetween(b, 0x20, 0x7F)) return S::kPlain;
  if (IsBetween(b, 0xC2, 0xDF)) return S::kOneMore;
  if (b == 0xE0) return S::kAfterE0;
  if (b == 0xED) return S::kAfterEd;
  if (IsBetween(b, 0xE1, 0xEF)) return S::kTwoMore;
  if (b == 0xF0) return S::kAfterF0;
  if (b == 0xF4) return S::kAfterF4;
  if (IsBetween(b, 0xF1, 0xF3)) return S::kThreeMore;
  return S::kRefused;
}

constexpr S If(bool condition, S next) {
  return condition ? next : S::kRefused;
}

constexpr S Escaped(uint8_t b) {
  for (const char c : {'"', '\\', '/', 'b', 'f', 'n', 'r', 't'}) {
    if (static_cast<char>(b) == c) return S::kPlain;
  }
  return If(b == 'u', S::kHex4);
}

constexpr S Next(S state, uint8_t b) {
  const bool is_d = b == 'd' || b == 'D';
  switch (state) {
    case S::kPlain:
      return Begin(b);
    case S::kOneMore:
      return If(IsBetween(b, 0x80, 0xBF), S::kPlain);
    case S::kTwoMore:
      return If(IsBetween(b, 0x80, 0xBF), S::kOneMore);
    case S::kThreeMore:
      return If(IsBetween(b, 0x80, 0xBF), S::kTwoMore);
    case S::kAfterE0:
      return If(IsBetween(b, 0xA0, 0xBF), S::kOneMore);
    case S::kAfterEd:
      return If(IsBetween(b, 0x80, 0x9F), S::kOneMore);
    case S::kAfterF0:
      return If(IsBetween(b, 0x90, 0xBF), S::kTwoMore);
    case S::kAfterF4:
      return If(IsBetween(b, 0x80, 0x8F), S::kTwoMore);
    case S::kEscape:
      return Escaped(b);
    case S::kHex4:
      return is_d ? S::kHex3AfterD : If(IsHex(b), S::kHex3);
    case S::kHex3:
      return If(IsHex(b), S::kHex2);
    case S::kHex2:
      return If(IsHex(b), S::kHex1);
    case S::kHex1:
      return If(IsHex(b), S::kPlain);
    case S::kHex3AfterD:
      if (IsBetween(b, '0', '7')) return S::kHex2;
      return If(b == '8' || b == '9' || b == 'a' || b == 'b' || b == 'A' || b == 'B', S::kHigh2);
    case S::kHigh2:
      return If(IsHex(b), S::kHigh1);
    case S::kHigh1:
      return If(IsHex(b), S::kLowEscape);
    case S::kLowEscape:
      return If(b == '\\', S::kLowU);
    case S::kLowU:
      return If(b == 'u', S::kLow4);
    case S::kLow4:
      return If(is_d, S::kLow3);
    case S::kLow3:
      return If(IsHex(b) && (b | 0x20) >= 'c' && b > '9', S::kHex2);
    case S::kClosed:
    case S::kRefused:
      break;
  }
  return S::kRefused;
}

using Table = std::array<std::array<S, 256>, kNumStringStates>;

constexpr Table MakeTable() {
  Table table{};
  for (size_t state = 0; state < table.size(); ++state) {
    for (size_t byte = 0; byte < 256; ++byte) {
      table[state][byte] = Next(static_cast<S>(state), static_cast<uint8_t>(byte));
    }
  }
  return table;
}

}  // namespace

StringState StepString(StringState state, uint8_t byte) {
  static constexpr Table table = MakeTable();
  return table[static_cast<size_t>(state)][byte];
}

}  // namespace shoal
