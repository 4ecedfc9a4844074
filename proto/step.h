// What a rank is told for one step, and what it answers: plain values, the form in which pure code
// holds them. proto/wire.h converts and validates; step.proto is the wire form.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/status.h"

#include "base/ids.h"
#include "proto/token_mask.h"

namespace shoal {

// Positions of one K/V block as plans count them: kBlockTokens of kernels/backend.h, which the
// core may not include (worker/lowering asserts that they are equal).
inline constexpr int32_t kPlanBlockTokens = 32;

// One sequence's part of a step on its home rank: compute positions
// [first_position, first_position + num_positions). The tokens are in the home rank's record; the
// last of them may be one that the step before is about to sample (depth two).
struct PlanEntry {
  SequenceId sequence;
  int32_t first_position = 0;
  int32_t num_positions = 0;
  // Block tables, sent as increments: entries from block index `first_block` on are replaced by
  // these; earlier ones stay as this epoch's previous plans left them. Index b covers the
  // positions from b * kPlanBlockTokens on. Both lists have the same length; a window block that no
  // position of this or a later step can see is kNoBlock.
  int32_t first_block = 0;
  std::vector<BlockId> full_blocks;
  std::vector<BlockId> window_blocks;
  // Sample the token after the last position.
  bool wants_sample = false;
  // Of that token; without runs every token is allowed.
  TokenMask mask;
  // Return the logits of every position (shoal logits).
  bool wants_logits = false;

  friend bool operator==(const PlanEntry&, const PlanEntry&) = default;
};

inline constexpr BlockId kNoBlock{-1};

struct StepPlan {
  Term term;
  CellId cell;
  Epoch epoch;
  StepId step;
  // Milliseconds that the step's exchanges may take in all.
  int64_t deadline_ms = 0;
  // No rank has more rows in this step: what travels in messages of fixed size is sized by it.
  int32_t most_rows = 0;
  // If every entry of every rank is one position: one more than the last of them all. Else 0. Ranks
  // that record steps record those, under the same name.
  int32_t most_positions = 0;
  std::vector<PlanEntry> entries;  // This rank's; empty: it only serves its experts.
  std::vector<SequenceId> forget;  // Records this rank need not keep any longer.

  friend bool operator==(const StepPlan&, const StepPlan&) = default;
};

struct TopLogprob {
  TokenId token;
  float logprob = 0.0f;

  friend bool operator==(const TopLogprob&, const TopLogprob&) = default;
};

struct SampledToken {
  SequenceId sequence;
  int32_t position = 0;  // Index of the token in the record: prompt tokens first.
  TokenId token;         // -1: every logit was NaN or -inf; the sequence fails, the step does not.
  float logprob = 0.0f;
  std::vector<TopLogprob> top;

  friend bool operator==(const SampledToken&, const SampledToken&) = default;
};

// Logits of consecutive positions of one sequence.
struct LogitRows {
  SequenceId sequence;
  int32_t first_position = 0;
  int32_t num_positions = 0;
  std::vector<float> values;  // [num_positions, vocabulary]

  friend bool operator==(const LogitRows&, const LogitRows&) = default;
};

struct StepResult {
  Term term;
  CellId cell;
  Epoch epoch;
  StepId step;
  absl::Status status;         // Not OK: the step failed on this rank; its epoch is over.
  std::vector<Rank> suspects;  // With a failure: ranks that may be dead. Hints.
  std::vector<SampledToken> tokens;
  std::vector<LogitRows> logits;
  int64_t compute_us = 0;  // Wall time of the step on this rank.
  int64_t wait_us = 0;     // Of which waiting for other ranks.
};

}  // namespace shoal
