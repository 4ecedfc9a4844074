#include "worker/lowering.h"

#include <algorithm>
#include <cmath>
#include <cstddef>

#include "absl/strings/str_cat.h"

#include "base/check.h"
#include "base/status_macros.h"

namespace shoal {
namespace {

static_assert(kPlanBlockTokens == kBlockTokens, "plans and kernels count positions alike");

constexpr int32_t BlocksOf(int32_t positions) {
  return (positions + kBlockTokens - 1) / kBlockTokens;
}

// The first block that any position from `first_position` on can see through the window.
constexpr int32_t FirstVisibleBlock(int32_t first_position, int32_t window) {
  return std::max(0, first_position - window + 1) / kBlockTokens;
}

std::string Name(SequenceId sequence) {
  return absl::StrCat("sequence ", sequence.value);
}

absl::Status CheckSettings(const SamplingSettings& settings, int vocab) {
  const auto is_id = [vocab](TokenId id) { return id.value >= 0 && id.value < vocab; };
  for (const auto& [id, value] : settings.logit_bias) {
    if (!is_id(id) || std::isnan(value)) {
      return absl::InvalidArgumentError(
          absl::StrCat("bias ", value, " of token ", id.value, " of ", vocab));
    }
  }
  for (const TokenId id : settings.stop_tokens) {
    if (!is_id(id)) {
      return absl::InvalidArgumentError(absl::StrCat("stop token ", id.value, " of ", vocab));
    }
  }
  for (const TokenRange& range : settings.never) {
    if (!is_id(range.first) || !is_id(range.last)) {
      return absl::InvalidArgumentError(absl::StrCat(
          "never tokens ", range.first.value, " to ", range.last.value, " of ", vocab));
    }
  }
  for (const float value : {settings.temperature,
                            settings.top_p,
                            settings.min_p,
                            settings.presence_penalty,
                            settings.frequency_penalty,
                            settings.repetition_penalty}) {
    if (!std::isfinite(value))
      return absl::InvalidArgumentError("a sampling setting is not finite");
  }
  if (settings.repetition_penalty <= 0.0f) {
    return absl::InvalidArgumentError(
        absl::StrCat("repetition penalty ", settings.repetition_penalty, ": must be above 0"));
  }
  return absl::OkStatus();
}

bool CountsOutput(const SamplingSettings& settings) {
  return settings.presence_penalty != 0.0f || settings.frequency_penalty != 0.0f ||
         settings.repetition_penalty != 1.0f;
}

void CountToken(TokenId token, std::vector<SampleRow::Count>* counts) {
  const auto at = std::lower_bound(
      counts->begin(), counts->end(), token.value, [](const SampleRow::Count& c, int32_t id) {
        return c.id < id;
      });
  if (at != counts->end() && at->id == token.value) {
    ++at->count;
  } else {
    counts->insert(at, {.id = token.value, .count = 1});
  }
}

}  // namespace

void LoweredStep::Clear() {
  token_ids.clear();
  positions.clear();
  full_slots.clear();
  window_slots.clear();
  entries.clear();
  full_tables.clear();
  window_tables.clear();
  samples.clear();
  sample_rows.clear();
  sample_settings.clear();
  masks.clear();
  failed_samples.clear();
  logits.clear();
  most_positions = 0;
}

void LoweredStep::PadRows(int32_t rows) {
  CHECK_LE(num_rows(), rows);
  const auto count = static_cast<size_t>(rows);
  token_ids.resize(count, 0);
  positions.resize(count, 0);
  full_slots.resize(count, -1);
  window_slots.resize(count, -1);
  CHECK_LE(entries.size(), count);  // Each has a row
  entries.resize(count, AttentionEntry{});
}

void Lowering::EnterEpoch(const StepLimits& limits) {
  CHECK_LT(std::max(limits.num_full_blocks, limits.num_window_blocks), (1 << 30) / kBlockTokens);
  limits_ = limits;
  full_block_uses_.assign(static_cast<size_t>(limits.num_full_blocks), 0);
  full_blocks_used_ = 0;
  for (auto& [id, sequence] : sequences_) {
    sequence.full_table.clear();
    sequence.window_table.clear();
    sequence.sample_failed = false;
  }
}

absl::Status Lowering::Lower(const StepPlan& plan, const Records& records, LoweredStep* step) {
  step->Clear();
  int64_t num_rows = 0;
  for (const PlanEntry& entry : plan.entries) {
    if (entry.num_positions < 1) {
      return absl::InvalidArgumentError(
          absl::StrCat(Name(entry.sequence), ": ", entry.num_positions, " positions"));
    }
    num_rows += entry.num_positions;
  }
  if (num_rows > limits_.max_rows) {
    return absl::InvalidArgumentError(
        absl::StrCat("a plan of ", num_rows, " rows, at most ", limits_.max_rows));
  }
  step->most_positions = plan.most_positions;
  std::vector<SequenceId> planned;
  for (const PlanEntry& entry : plan.entries) {
    if (plan.most_positions > 0 &&
        (entry.num_positions != 1 || entry.first_position >= plan.most_positions)) {
      return absl::InvalidArgumentError(absl::StrCat(Name(entry.sequence),
                                                     ": ",
                                                     entry.num_positions,
                                                     " positions from ",
                                                     entry.first_position,
                                                     " on in a step of single positions below ",
                                                     plan.most_positions));
    }
    RETURN_IF_ERROR(LowerEntry(entry, records, step));
    planned.push_back(entry.sequence);
  }
  std::sort(planned.begin(), planned.end());
  const auto twice = std::adjacent_find(planned.begin(), planned.end());
  if (twice != planned.end()) {
    return absl::InvalidArgumentError(absl::StrCat(Name(*twice), " is planned twice"));
  }
  return absl::OkStatus();
}

absl::Status Lowering::LowerEntry(const PlanEntry& entry,
                                  const Records& records,
                                  LoweredStep* step) {
  const Record* record = records.Find(entry.sequence);
  if (record == nullptr) {
    return absl::FailedPreconditionError(absl::StrCat(Name(entry.sequence), " has no record here"));
  }
  Sequence& sequence = sequences_[entry.sequence];
  RETURN_IF_ERROR(UpdateTables(entry, &sequence));

  const int64_t end = int64_t{entry.first_position} + entry.num_positions;
  const int64_t length = static_cast<int64_t>(record->tokens.size());
  if (end > length && sequence.sample_failed) {
    if (entry.wants_sample) {
      step->failed_samples.push_back(
          {.sequence = entry.sequence, .position = static_cast<int32_t>(end)});
    }
    return absl::OkStatus();
  }
  if (entry.first_position < 0 || end > length || end > config_.max_positions) {
    return absl::FailedPreconditionError(absl::StrCat(Name(entry.sequence),
                                                      ": positions ",
                                                      entry.first_position,
                                                      " to ",
                                                      end - 1,
                                                      ", its record has ",
                                                      length,
                                                      ", the context ",
                                                      config_.max_positions));
  }
  RETURN_IF_ERROR(CheckTables(entry, sequence));
  RETURN_IF_ERROR(AddRows(entry, *record, sequence, step));
  return entry.wants_sample ? AddSample(entry, *record, &sequence, step) : absl::OkStatus();
}

// Range checks happen once, here; what CheckTables looks at each step is coverage.
absl::Status Lowering::UpdateTables(const PlanEntry& entry, Sequence* sequence) {
  std::vector<int32_t>& full = sequence->full_table;
  std::vector<int32_t>& window = sequence->window_table;
  const size_t first = static_cast<size_t>(std::max(0, entry.first_block));
  if (entry.full_blocks.size() != entry.window_blocks.size() || entry.first_block < 0 ||
      first > full.size()) {
    return absl::InvalidArgumentError(absl::StrCat(Name(entry.sequence),
                                                   ": ",
                                                   entry.full_blocks.size(),
                                                   " full and ",
                                                   entry.window_blocks.size(),
                                                   " window blocks at index ",
                                                   entry.first_block,
                                                   " of a table of ",
                                                   full.size()));
  }
  for (size_t i = 0; i < entry.full_blocks.size(); ++i) {
    const int32_t full_block = entry.full_blocks[i].value;
    const int32_t window_block = entry.window_blocks[i].value;
    if (full_block < 0 || full_block >= limits_.num_full_blocks || window_block < kNoBlock.value ||
        window_block >= limits_.num_window_blocks) {
      return absl::InvalidArgumentError(absl::StrCat(Name(entry.sequence),
                                                     ": blocks ",
                                                     full_block,
                                                     " and ",
                                                     window_block,
                                                     ", there are ",
                                                     limits_.num_full_blocks,
                                                     " and ",
                                                     limits_.num_window_blocks));
    }
  }
  if (entry.full_blocks.empty()) return absl::OkStatus();
  Count(full.cbegin() + entry.first_block, full.cend(), -1);
  full.resize(first);
  window.resize(first);
  for (const BlockId block : entry.full_blocks) full.push_back(block.value);
  for (const BlockId block : entry.window_blocks) window.push_back(block.value);
  Count(full.cbegin() + entry.first_block, full.cend(), 1);
  return absl::OkStatus();
}

// REQUIRES: the entry's positions are in the record.
absl::Status Lowering::CheckTables(const PlanEntry& entry, const Sequence& sequence) const {
  const int32_t num_blocks = BlocksOf(entry.first_position + entry.num_positions);
  if (sequence.full_table.size() < static_cast<size_t>(num_blocks)) {
    return absl::InvalidArgumentError(absl::StrCat(Name(entry.sequence),
                                                   " needs ",
                                                   num_blocks,
                                                   " blocks, its table has ",
                                                   sequence.full_table.size()));
  }
  if (config_.num_window_layers() == 0) return absl::OkStatus();
  const int32_t first = FirstVisibleBlock(entry.first_position, config_.sliding_window);
  for (int32_t b = first; b < num_blocks; ++b) {
    if (sequence.window_table[static_cast<size_t>(b)] == kNoBlock.value) {
      return absl::InvalidArgumentError(
          absl::StrCat(Name(entry.sequence), ": no window block at index ", b));
    }
  }
  return absl::OkStatus();
}

absl::Status Lowering::AddRows(const PlanEntry& entry,
                               const Record& record,
                               const Sequence& sequence,
                               LoweredStep* step) const {
  const int32_t first_row = step->num_rows();
  step->entries.push_back({.first_row = first_row,
                           .num_rows = entry.num_positions,
                           .first_position = entry.first_position,
                           .table_offset = static_cast<int32_t>(step->full_tables.size())});
  const int32_t end = entry.first_position + entry.num_positions;
  const int32_t num_blocks = BlocksOf(end);
  step->full_tables.insert(step->full_tables.end(),
                           sequence.full_table.begin(),
                           sequence.full_table.begin() + num_blocks);
  step->window_tables.insert(step->window_tables.end(),
                             sequence.window_table.begin(),
                             sequence.window_table.begin() + num_blocks);
  for (int32_t p = entry.first_position; p < end; ++p) {
    const TokenId token = record.tokens[static_cast<size_t>(p)];
    if (token.value < 0 || token.value >= config_.vocab) {
      return absl::InvalidArgumentError(absl::StrCat(
          Name(entry.sequence), ": token ", token.value, " at ", p, " of ", config_.vocab));
    }
    const size_t block = static_cast<size_t>(p / kBlockTokens);
    const int32_t offset = p % kBlockTokens;
    step->token_ids.push_back(token.value);
    step->positions.push_back(p);
    step->full_slots.push_back(sequence.full_table[block] * kBlockTokens + offset);
    step->window_slots.push_back(sequence.window_table[block] * kBlockTokens + offset);
  }
  if (entry.wants_logits) {
    step->logits.push_back({.sequence = entry.sequence,
                            .first_position = entry.first_position,
                            .num_positions = entry.num_positions,
                            .first_row = first_row});
  }
  return absl::OkStatus();
}

absl::Status Lowering::AddSample(const PlanEntry& entry,
                                 const Record& record,
                                 Sequence* sequence,
                                 LoweredStep* step) const {
  if (!sequence->is_prepared) RETURN_IF_ERROR(Prepare(record, sequence));
  const int32_t position = entry.first_position + entry.num_positions;
  if (sequence->counts_output) {
    // Counted too far: the leader planned anew from a shorter accepted length.
    if (sequence->counted_to > position) {
      sequence->output_counts.clear();
      sequence->counted_to = record.prompt_length;
    }
    for (; sequence->counted_to < position; ++sequence->counted_to) {
      CountToken(record.tokens[static_cast<size_t>(sequence->counted_to)],
                 &sequence->output_counts);
    }
  }
  const SamplingSettings& settings = record.sampling;
  SampleRow row{.temperature = settings.temperature,
                .top_p = settings.top_p,
                .min_p = settings.min_p,
                .top_k = settings.top_k,
                .presence_penalty = settings.presence_penalty,
                .frequency_penalty = settings.frequency_penalty,
                .repetition_penalty = settings.repetition_penalty,
                .penalty_exempt_from = settings.penalty_exempt_from,
                .seed = settings.seed,
                .position = position,
                .output_counts = sequence->output_counts,
                .prompt_ids = sequence->prompt_ids,
                .bias = sequence->bias,
                .forbidden = sequence->never,
                .allowed = {},
                .num_top_logprobs = std::min(settings.num_top_logprobs, config_.vocab)};
  if (position - record.prompt_length < settings.min_tokens) {
    row.forbidden = sequence->never_at_first;
  }
  if (!entry.mask.runs.empty()) {
    if (CoveredIds(entry.mask) > config_.vocab) {
      return absl::InvalidArgumentError(absl::StrCat(Name(entry.sequence),
                                                     ": a mask of ",
                                                     CoveredIds(entry.mask),
                                                     " ids, the vocabulary has ",
                                                     config_.vocab));
    }
    row.allowed = step->masks.emplace_back(UnpackMask(entry.mask, config_.vocab));
  }
  step->samples.push_back({.sequence = entry.sequence, .position = position});
  step->sample_rows.push_back(step->num_rows() - 1);
  step->sample_settings.push_back(row);
  return absl::OkStatus();
}

absl::Status Lowering::Prepare(const Record& record, Sequence* sequence) const {
  const SamplingSettings& settings = record.sampling;
  RETURN_IF_ERROR(CheckSettings(settings, config_.vocab));
  for (const auto& [id, value] : settings.logit_bias) {
    sequence->bias.push_back({.id = id.value, .value = value});
  }
  for (const TokenRange& range : settings.never) {
    for (int32_t id = range.first.value; id <= range.last.value; ++id) {
      sequence->never.push_back(id);
    }
  }
  sequence->never_at_first = sequence->never;
  for (const TokenId id : settings.stop_tokens) sequence->never_at_first.push_back(id.value);
  const int32_t prompt_length =
      std::clamp(record.prompt_length, 0, static_cast<int32_t>(record.tokens.size()));
  if (settings.repetition_penalty != 1.0f) {
    std::vector<int32_t>& ids = sequence->prompt_ids;
    for (int32_t i = 0; i < prompt_length; ++i) {
      ids.push_back(record.tokens[static_cast<size_t>(i)].value);
    }
    std::sort(ids.begin(), ids.end());
    ids.erase(std::unique(ids.begin(), ids.end()), ids.end());
  }
  sequence->counts_output = CountsOutput(settings);
  sequence->counted_to = prompt_length;
  sequence->is_prepared = true;
  return absl::OkStatus();
}

void Lowering::SampleFailed(SequenceId sequence) {
  sequences_[sequence].sample_failed = true;
}

void Lowering::Forget(SequenceId sequence) {
  const auto at = sequences_.find(sequence);
  if (at == sequences_.end()) return;
  Count(at->second.full_table.cbegin(), at->second.full_table.cend(), -1);
  sequences_.erase(at);
}

void Lowering::ForgetAll() {
  sequences_.clear();
  std::fill(full_block_uses_.begin(), full_block_uses_.end(), 0);
  full_blocks_used_ = 0;
}

void Lowering::Count(std::vector<int32_t>::const_iterator first,
                     std::vector<int32_t>::const_iterator last,
                     int32_t change) {
  for (; first != last; ++first) {
    int32_t& uses = full_block_uses_[static_cast<size_t>(*first)];
    full_blocks_used_ += change > 0 ? uses == 0 : -(uses == 1);
    uses += change;
  }
}

}  // namespace shoal
