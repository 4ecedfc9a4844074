#include "coordinator/text/json_number.h"

#include <algorithm>

namespace shoal {
namespace {

using Phase = NumberState::Phase;

constexpr int64_t PowerOfTen(int exponent) {
  int64_t power = 1;
  for (int i = 0; i < exponent; ++i) power *= 10;
  return power;
}

// Some value from `least` to `most`, given its sign, is within the range.
bool Meets(const NumberRule::Range& range, bool is_negative, int64_t least, int64_t most) {
  const int64_t low = is_negative ? -range.max : range.min;
  const int64_t high = is_negative ? -range.min : range.max;
  return least <= high && most >= low;
}

// The part before the point can still grow, or go on behind the point, into the range.
bool CanBecome(const NumberRule& rule, const NumberState& state) {
  if (!rule.range.has_value()) return true;
  const int64_t unit = PowerOfTen(rule.decimals());
  const int max_digits = kMaxNumberDigits - rule.decimals();
  const int more = state.phase == Phase::kZero ? 0 : max_digits - state.num_digits;
  for (int d = 0; d <= more; ++d) {
    const int64_t least = state.value * PowerOfTen(d);
    const int64_t most = least + unit * PowerOfTen(d) - 1;
    if (Meets(*rule.range, state.is_negative, least, most)) return true;
  }
  return false;
}

// Behind the point: `num_digits` digits are there.
bool CanBecomeDecimal(const NumberRule& rule, const NumberState& state) {
  if (!rule.range.has_value()) return true;
  const int64_t most = state.value + PowerOfTen(rule.decimals() - state.num_digits) - 1;
  return Meets(*rule.range, state.is_negative, state.value, most);
}

bool StepBegin(const NumberRule& rule, uint8_t byte, NumberState* state) {
  NumberState next = *state;
  if (byte == '-' && state->phase == Phase::kBegin) {
    if (rule.range.has_value() && rule.range->min >= 0) return false;
    next.phase = Phase::kMinus;
    next.is_negative = true;
  } else if (byte >= '0' && byte <= '9') {
    next.phase = byte == '0' ? Phase::kZero : Phase::kDigits;
    next.num_digits = 1;
    if (rule.range.has_value()) next.value = (byte - '0') * PowerOfTen(rule.decimals());
    if (!CanBecome(rule, next)) return false;
  } else {
    return false;
  }
  *state = next;
  return true;
}

bool StepDigits(const NumberRule& rule, uint8_t byte, NumberState* state) {
  const int max_digits = kMaxNumberDigits - (rule.range.has_value() ? rule.decimals() : 0);
  if (state->num_digits >= max_digits) return false;
  NumberState next = *state;
  ++next.num_digits;
  if (rule.range.has_value()) {
    next.value = state->value * 10 + (byte - '0') * PowerOfTen(rule.decimals());
    if (!CanBecome(rule, next)) return false;
  }
  *state = next;
  return true;
}

bool StepDecimals(const NumberRule& rule, uint8_t byte, NumberState* state) {
  const int max_digits = rule.range.has_value() ? kBoundedDecimals : kMaxNumberDigits;
  if (state->num_digits >= max_digits) return false;
  NumberState next = *state;
  next.phase = Phase::kDecimals;
  ++next.num_digits;
  if (rule.range.has_value()) {
    next.value += (byte - '0') * PowerOfTen(rule.decimals() - next.num_digits);
    if (!CanBecomeDecimal(rule, next)) return false;
  }
  *state = next;
  return true;
}

// A point or an exponent, after the part before it.
bool StepBehind(const NumberRule& rule, uint8_t byte, NumberState* state) {
  if (rule.is_integer) return false;
  NumberState next = *state;
  next.num_digits = 0;
  if (byte == '.' && state->phase != Phase::kDecimals) {
    next.phase = Phase::kPoint;
    if (!CanBecomeDecimal(rule, next)) return false;
  } else if ((byte == 'e' || byte == 'E') && !rule.range.has_value()) {
    next.phase = Phase::kExponent;
  } else {
    return false;
  }
  *state = next;
  return true;
}

bool StepExponent(uint8_t byte, NumberState* state) {
  const bool is_digit = byte >= '0' && byte <= '9';
  if (state->phase == Phase::kExponent && (byte == '+' || byte == '-')) {
    state->phase = Phase::kExponentSign;
  } else if (is_digit && state->num_digits < 2) {
    state->phase = Phase::kExponentDigits;
    ++state->num_digits;
  } else {
    return false;
  }
  return true;
}

}  // namespace

bool StepNumber(const NumberRule& rule, uint8_t byte, NumberState* state) {
  const bool is_digit = byte >= '0' && byte <= '9';
  switch (state->phase) {
    case Phase::kBegin:
    case Phase::kMinus:
      return StepBegin(rule, byte, state);
    case Phase::kZero:
      return StepBehind(rule, byte, state);
    case Phase::kDigits:
      return is_digit ? StepDigits(rule, byte, state) : StepBehind(rule, byte, state);
    case Phase::kPoint:
      return is_digit && StepDecimals(rule, byte, state);
    case Phase::kDecimals:
      return is_digit ? StepDecimals(rule, byte, state) : StepBehind(rule, byte, state);
    case Phase::kExponent:
    case Phase::kExponentSign:
    case Phase::kExponentDigits:
      return StepExponent(byte, state);
  }
  return false;
}

bool IsWholeNumber(const NumberRule& rule, const NumberState& state) {
  switch (state.phase) {
    case Phase::kZero:
    case Phase::kDigits:
    case Phase::kDecimals:
    case Phase::kExponentDigits:
      break;
    default:
      return false;
  }
  return !rule.range.has_value() || Meets(*rule.range, state.is_negative, state.value, state.value);
}

}  // namespace shoal
