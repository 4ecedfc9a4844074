// StepPlan + Records -> the flat arrays of one step. Pure.
//
// Plans name positions; here they meet the tokens. Everything a plan says is checked against the
// records and the limits of the epoch, so that forward.cc may trust what it gets.
// Next: worker/forward.cc
#pragma once

#include <cstdint>
#include <map>
#include <vector>

#include "absl/status/status.h"

#include "base/ids.h"
#include "kernels/backend.h"
#include "model/config.h"
#include "proto/step.h"
#include "worker/records.h"

namespace shoal {

// One row per position, entries in the plan's order, positions rising within an entry. Reused from
// step to step, so that its memory is.
struct LoweredStep {
  // A token to be sampled: its index in the record.
  struct Sample {
    SequenceId sequence;
    int32_t position = 0;
  };

  // Logits to be returned: the rows [first_row, first_row + num_positions).
  struct Logits {
    SequenceId sequence;
    int32_t first_position = 0;
    int32_t num_positions = 0;
    int32_t first_row = 0;
  };

  std::vector<int32_t> token_ids;     // [rows]
  std::vector<int32_t> positions;     // [rows]
  std::vector<int32_t> full_slots;    // [rows] where the row's K/V goes in full layers
  std::vector<int32_t> window_slots;  // [rows] and in window layers

  std::vector<AttentionEntry> entries;
  std::vector<int32_t> full_tables;    // Block ids; entries[i].table_offset holds for
  std::vector<int32_t> window_tables;  // both, since a sequence's tables are of equal length

  std::vector<Sample> samples;
  std::vector<int32_t> sample_rows;  // [samples]
  // [samples]; spans into the Lowering that made them, and into `masks`
  std::vector<SampleRow> sample_settings;
  std::vector<std::vector<uint32_t>> masks;  // Of the samples that have one: a bit for each id
  // Samples that were planned before it was known that the token before them cannot be drawn.
  std::vector<Sample> failed_samples;

  std::vector<Logits> logits;

  int32_t most_positions = 0;  // As in the plan

  int32_t num_rows() const { return static_cast<int32_t>(token_ids.size()); }

  // Adds rows, up to `rows`, that are nobody's: token 0 at position 0, kept nowhere, attended by
  // nobody. A step that is repeated has equally many each time.
  void PadRows(int32_t rows);

  void Clear();
};

// What an epoch allows.
struct StepLimits {
  int32_t max_rows = 0;
  int32_t num_full_blocks = 0;
  int32_t num_window_blocks = 0;
};

// Keeps, per sequence, what plans send as increments (block tables, for the epoch) and what would
// cost O(length) to make anew at each step (counts for the penalties). One thread.
class Lowering {
 public:
  explicit Lowering(const ModelConfig& config) : config_(config) {}

  // Forgets all block tables; what is known of the tokens stays.
  void EnterEpoch(const StepLimits& limits);

  // Spans in `step` stay valid until the next call of a member that is not const. A plan that names
  // an unknown record, a position beyond it or beyond the context, a missing or impossible block,
  // or too many rows is kInvalidArgument or kFailedPrecondition. It has then been taken in by half:
  // the epoch must end.
  absl::Status Lower(const StepPlan& plan, const Records& records, LoweredStep* step);

  // No token could be drawn for the sequence. A plan that left before this was known is not an
  // error: its entry gets no rows, and its sample is listed in failed_samples.
  void SampleFailed(SequenceId sequence);

  void Forget(SequenceId sequence);
  void ForgetAll();

  // Full-layer blocks that some table names.
  int64_t full_blocks_used() const { return full_blocks_used_; }

 private:
  struct Sequence {
    std::vector<int32_t> full_table;  // [blocks]
    std::vector<int32_t> window_table;
    bool sample_failed = false;

    // From the record's settings, once.
    bool is_prepared = false;
    std::vector<SampleRow::Bias> bias;
    std::vector<int32_t> never;           // To be sampled
    std::vector<int32_t> never_at_first;  // And the stop tokens, until min_tokens are out
    std::vector<int32_t> prompt_ids;      // Empty unless there is a repetition penalty
    bool counts_output = false;

    // Of record tokens [prompt_length, counted_to); rising ids.
    std::vector<SampleRow::Count> output_counts;
    int32_t counted_to = 0;
  };

  absl::Status LowerEntry(const PlanEntry& entry, const Records& records, LoweredStep* step);
  absl::Status UpdateTables(const PlanEntry& entry, Sequence* sequence);
  absl::Status CheckTables(const PlanEntry& entry, const Sequence& sequence) const;
  absl::Status AddRows(const PlanEntry& entry,
                       const Record& record,
                       const Sequence& sequence,
                       LoweredStep* step) const;
  absl::Status AddSample(const PlanEntry& entry,
                         const Record& record,
                         Sequence* sequence,
                         LoweredStep* step) const;
  absl::Status Prepare(const Record& record, Sequence* sequence) const;
  void Count(std::vector<int32_t>::const_iterator first,
             std::vector<int32_t>::const_iterator last,
             int32_t change);

  const ModelConfig config_;
  StepLimits limits_;
  std::map<SequenceId, Sequence> sequences_;
  std::vector<int32_t> full_block_uses_;  // [num_full_blocks] tables that name the block
  int64_t full_blocks_used_ = 0;
};

}  // namespace shoal
