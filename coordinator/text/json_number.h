// A JSON number, byte by byte, that can still become one within its bounds.
//
// Plain numbers have at most 18 digits before and 18 after the point and 2 in the exponent: what
// every reader can hold. A number with bounds is written without an exponent, so that a beginning
// of it says which values it can become: with d more digits, v becomes v 10^d to (v + 1) 10^d - 1.
#pragma once

#include <cstdint>
#include <optional>

namespace shoal {

inline constexpr int kMaxNumberDigits = 18;
// A bounded number that is not an integer: 12 digits before the point and 6 after it.
inline constexpr int kBoundedDecimals = 6;

struct NumberRule {
  struct Range {  // Inclusive; in units of 10^-decimals
    int64_t min = 0;
    int64_t max = 0;
  };

  bool is_integer = false;
  std::optional<Range> range;

  int decimals() const { return is_integer ? 0 : kBoundedDecimals; }
};

struct NumberState {
  enum class Phase : uint8_t {
    kBegin,
    kMinus,
    kZero,
    kDigits,
    kPoint,
    kDecimals,
    kExponent,
    kExponentSign,
    kExponentDigits
  };

  Phase phase = Phase::kBegin;
  bool is_negative = false;
  uint8_t num_digits = 0;  // Of the part that the phase names
  int64_t value = 0;       // Of a bounded number, without its sign; in the range's units

  friend bool operator==(const NumberState&, const NumberState&) = default;
};

// False: the byte does not continue the number; `state` is then unchanged.
bool StepNumber(const NumberRule& rule, uint8_t byte, NumberState* state);

// The number may end here.
bool IsWholeNumber(const NumberRule& rule, const NumberState& state);

}  // namespace shoal
