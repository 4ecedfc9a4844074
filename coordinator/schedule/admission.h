// Either a request can be finished, or it is refused at once, saying what would fit; and which rank
// becomes a sequence's home.
#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <string>

#include "absl/status/status.h"
#include "absl/strings/string_view.h"

#include "coordinator/schedule/scheduler.h"
#include "coordinator/schedule/sequence.h"

namespace shoal {

// What a request asks for, in positions.
struct Demand {
  int32_t prompt_tokens = 0;
  int32_t max_tokens = 0;
  int32_t num_choices = 1;
  bool wants_prompt_logits = false;  // Then nothing is generated

  int32_t max_length() const { return prompt_tokens + (wants_prompt_logits ? 0 : max_tokens); }

  // Positions with K/V: the last output token is never computed.
  int32_t max_positions() const {
    return wants_prompt_logits || max_tokens == 0 ? max_length() : max_length() - 1;
  }
};

// The request's own numbers, against the model's context. kOutOfRange: too long for it;
// kInvalidArgument: wrong in themselves.
absl::Status CheckDemand(const Demand& demand, int32_t max_positions);

// Some rank of `ranks` could hold it if it were alone there. kOutOfRange otherwise: to try again
// helps nobody. Never fails without ranks: who has not come yet may be larger.
absl::Status CheckMemory(const Demand& demand, std::span<const Scheduler* const> ranks);

// The index of the rank that would compute least before the sequence's next token, of those with
// room; nullopt if none has.
std::optional<size_t> ChooseHome(const Sequence& sequence, std::span<const Scheduler* const> ranks);

// Prefixes are shared within one scope only. Two different pairs never make one scope.
std::string CacheScope(absl::string_view tenant, absl::string_view salt);

// Choice c of a request samples with a seed of its own; choice 0 with the request's.
uint64_t ChoiceSeed(uint64_t seed, int32_t choice);

}  // namespace shoal
