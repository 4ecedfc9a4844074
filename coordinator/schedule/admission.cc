#include "coordinator/schedule/admission.h"

#include <algorithm>

#include "absl/strings/str_cat.h"

#include "base/prng.h"

namespace shoal {

absl::Status CheckDemand(const Demand& demand, int32_t max_positions) {
  if (demand.prompt_tokens < 1) {
    return absl::InvalidArgumentError("the prompt is empty; at least one token is needed");
  }
  if (demand.num_choices < 1) {
    return absl::InvalidArgumentError(
        absl::StrCat("n must be at least 1, got ", demand.num_choices));
  }
  if (!demand.wants_prompt_logits && demand.max_tokens < 1) {
    return absl::InvalidArgumentError(
        absl::StrCat("max_tokens must be at least 1, got ", demand.max_tokens));
  }
  if (demand.wants_prompt_logits && demand.num_choices != 1) {
    return absl::InvalidArgumentError(
        absl::StrCat("logits are for one choice, got n = ", demand.num_choices));
  }
  if (demand.prompt_tokens > max_positions) {
    return absl::OutOfRangeError(absl::StrCat(
        "prompt of ", demand.prompt_tokens, " tokens exceeds the context of ", max_positions));
  }
  if (demand.wants_prompt_logits || demand.max_tokens <= max_positions - demand.prompt_tokens) {
    return absl::OkStatus();
  }
  return absl::OutOfRangeError(absl::StrCat("prompt of ",
                                            demand.prompt_tokens,
                                            " tokens and max_tokens ",
                                            demand.max_tokens,
                                            " exceed the context of ",
                                            max_positions,
                                            "; max_tokens up to ",
                                            max_positions - demand.prompt_tokens,
                                            " would fit"));
}

absl::Status CheckMemory(const Demand& demand, std::span<const Scheduler* const> ranks) {
  if (ranks.empty()) return absl::OkStatus();
  int32_t largest = 0;
  for (const Scheduler* rank : ranks) {
    if (rank->space().CouldEverHold(demand.max_positions())) return absl::OkStatus();
    largest = std::max(largest, rank->space().full().num_blocks() * kPlanBlockTokens);
  }
  if (demand.prompt_tokens > largest) {
    return absl::OutOfRangeError(absl::StrCat("prompt of ",
                                              demand.prompt_tokens,
                                              " tokens exceeds the cache of ",
                                              largest,
                                              " positions of a rank"));
  }
  // The last output token takes no position.
  return absl::OutOfRangeError(absl::StrCat("prompt of ",
                                            demand.prompt_tokens,
                                            " tokens and max_tokens ",
                                            demand.max_tokens,
                                            " exceed the cache of ",
                                            largest,
                                            " positions of a rank; max_tokens up to ",
                                            largest + 1 - demand.prompt_tokens,
                                            " would fit"));
}

std::optional<size_t> ChooseHome(const Sequence& sequence,
                                 std::span<const Scheduler* const> ranks) {
  std::optional<size_t> best;
  int64_t best_rows = 0;
  for (size_t i = 0; i < ranks.size(); ++i) {
    if (!ranks[i]->HasRoomFor(sequence)) continue;
    const int64_t own = sequence.length() - ranks[i]->CachedPositions(sequence);
    const int64_t rows = ranks[i]->RowsOwed() + own;
    if (best.has_value() && rows >= best_rows) continue;
    best = i;
    best_rows = rows;
  }
  return best;
}

std::string CacheScope(absl::string_view tenant, absl::string_view salt) {
  return absl::StrCat(tenant.size(), ":", tenant, salt);
}

uint64_t ChoiceSeed(uint64_t seed, int32_t choice) {
  if (choice == 0) return seed;
  return Mix64(seed + kSplitMixStep * static_cast<uint64_t>(choice));
}

}  // namespace shoal
