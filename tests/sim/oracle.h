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
#include "proto/token_mask.h"

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

// The envelope of a constrained request. Its mask, a hash of the output so far, allows a third of
// the vocabulary: a token that obeys another mask is, mostly, another token.
inline constexpr char kConstrainedEnvelope[] = "constrained";

inline TokenMask MaskAfter(std::span<const TokenId> output) {
  uint64_t hash = kFnvOffset;
  for (const TokenId token : output) hash = Extend(hash, token);
  Prng prng(hash);
  std::vector<uint32_t> words(kVocabulary / 32 + 1, 0);
  for (int32_t id = 0; id < kVocabulary; ++id) {
    const bool is_allowed = id == kStopToken.value + 1 || prng.Chance(33);
    if (is_allowed) words[static_cast<size_t>(id) / 32] |= uint32_t{1} << (id % 32);
  }
  return PackMask(words);
}

// The model's wish, or the next allowed id after it.
inline TokenId NextToken(uint64_t prefix,
                         int32_t num_output,
                         const SamplingSettings& sampling,
                         const TokenMask& mask) {
  if (IsPoisoned(sampling) && num_output == 3) return TokenId{-1};
  const uint64_t hash = Mix64(prefix ^ Mix64(sampling.seed));
  TokenId token{static_cast<int32_t>(hash % kVocabulary)};
  const std::vector<uint32_t> words = UnpackMask(mask, kVocabulary);
  const auto is_refused = [&] {
    const auto id = static_cast<size_t>(token.value);
    if (!mask.runs.empty() && (words[id / 32] >> (id % 32) & 1u) == 0) return true;
    return token == kStopToken && num_output < sampling.min_tokens;
  };
  while (is_refused()) token.value = (token.value + 1) % kVocabulary;
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
                               bool ignore_eos,
                               bool is_constrained) {
  Expected expected;
  if (IsRejected(sampling)) {
    expected.reason = FinishReason::kError;
    return expected;
  }
  uint64_t prefix = Prefixes(prompt).back();
  while (static_cast<int32_t>(expected.output.size()) < max_tokens) {
    const int32_t num_output = static_cast<int32_t>(expected.output.size());
    const TokenMask mask =
        is_constrained ? MaskAfter({expected.output.data(), expected.output.size()}) : TokenMask();
    const TokenId token = NextToken(prefix, num_output, sampling, mask);
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
