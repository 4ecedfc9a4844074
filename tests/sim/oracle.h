// The simulated model: the next token is a hash of everything before it and of the seed, so the
// exact text of every stream is known beforehand, through any number of losses.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "base/ids.h"
#include "base/prng.h"
#include "coordinator/events.h"
#include "proto/cluster.h"

namespace shoal::sim {

inline constexpr int32_t kVocabulary = 97;
inline constexpr TokenId kStopToken{7};

// What K/V at a position depends on: the tokens up to and including it.
inline uint64_t Extend(uint64_t prefix, TokenId token) {
  return Mix64(prefix * kFnvPrime + static_cast<uint64_t>(token.value) + 1);
}

inline std::vector<uint64_t> Prefixes(std::span<const TokenId> tokens) {
  std::vector<uint64_t> prefixes;
  uint64_t prefix = kFnvOffset;
  for (const TokenId token : tokens) prefixes.push_back(prefix = Extend(prefix, token));
  return prefixes;
}

// A poisoned sequence's logits are NaN once it has three output tokens.
inline bool IsPoisoned(const SamplingSettings& sampling) {
  return sampling.seed % 61 == 3;
}

// No worker will compute a rejected sequence: whoever plans it gets an error for the whole step.
inline bool IsRejected(const SamplingSettings& sampling) {
  return sampling.seed % 67 == 11;
}

inline TokenId NextToken(uint64_t prefix, int32_t num_output, const SamplingSettings& sampling) {
  if (IsPoisoned(sampling) && num_output == 3) return TokenId{-1};
  const uint64_t hash = Mix64(prefix ^ Mix64(sampling.seed));
  TokenId token{static_cast<int32_t>(hash % kVocabulary)};
  if (token == kStopToken && num_output < sampling.min_tokens) ++token.value;
  return token;
}

struct Expected {
  std::vector<TokenId> output;
  FinishReason reason = FinishReason::kLength;
};

// What an undisturbed run of one choice gives.
inline Expected ExpectedOutput(std::span<const TokenId> prompt,
                               const SamplingSettings& sampling,
                               int32_t max_tokens,
                               bool ignore_eos) {
  Expected expected;
  if (IsRejected(sampling)) {
    expected.reason = FinishReason::kError;
    return expected;
  }
  uint64_t prefix = Prefixes(prompt).back();
  while (static_cast<int32_t>(expected.output.size()) < max_tokens) {
    const int32_t num_output = static_cast<int32_t>(expected.output.size());
    const TokenId token = NextToken(prefix, num_output, sampling);
    if (token.value < 0) {
      expected.reason = FinishReason::kError;
      return expected;
    }
    expected.output.push_back(token);
    prefix = Extend(prefix, token);
    if (!ignore_eos && token == kStopToken && num_output >= sampling.min_tokens) {
      expected.reason = FinishReason::kStop;
      return expected;
    }
  }
  return expected;
}

}  // namespace shoal::sim
