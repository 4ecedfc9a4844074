#include "worker/lowering.h"

#include <algorithm>
#include <limits>
#include <string>
#include <utility>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"

#include "base/prng.h"

namespace shoal {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;
using testing::IsEmpty;

constexpr SequenceId kSequence{7};

class LoweringTest : public testing::Test {
 protected:
  LoweringTest() : lowering_(ModelConfig::Tiny()) {
    lowering_.EnterEpoch({.max_rows = 64, .num_full_blocks = 10, .num_window_blocks = 6});
  }

  void Keep(SequenceId sequence, int32_t length, const SamplingSettings& sampling = {}) {
    KeepRecord message{.sequence = sequence, .prompt_length = length, .sampling = sampling};
    for (int32_t i = 0; i < length; ++i) message.tokens.push_back(TokenId{i % 50});
    ASSERT_TRUE(records_.Keep(message).ok());
  }

  void Append(SequenceId sequence, int32_t position, int32_t token) {
    ASSERT_TRUE(records_.Append(sequence, position, TokenId{token}).ok());
  }

  static PlanEntry Entry(int32_t first,
                         int32_t count,
                         int32_t first_block,
                         const std::vector<int32_t>& full,
                         const std::vector<int32_t>& window) {
    PlanEntry entry{.sequence = kSequence,
                    .first_position = first,
                    .num_positions = count,
                    .first_block = first_block};
    for (const int32_t b : full) entry.full_blocks.push_back(BlockId{b});
    for (const int32_t b : window) entry.window_blocks.push_back(BlockId{b});
    return entry;
  }

  absl::Status Lower(std::vector<PlanEntry> entries) {
    StepPlan plan;
    plan.entries = std::move(entries);
    return lowering_.Lower(plan, records_, &step_);
  }

  // One entry that wants a sample and needs no new blocks.
  absl::Status LowerSample(int32_t position) {
    PlanEntry entry = Entry(position, 1, 0, {}, {});
    entry.wants_sample = true;
    return Lower({entry});
  }

  Records records_;
  Lowering lowering_;
  LoweredStep step_;
};

TEST_F(LoweringTest, PositionsMeetTheirTokensAndSlots) {
  Keep(kSequence, 40);
  ASSERT_TRUE(Lower({Entry(30, 4, 0, {9, 2}, {5, 0})}).ok());
  EXPECT_THAT(step_.token_ids, ElementsAre(30, 31, 32, 33));
  EXPECT_THAT(step_.positions, ElementsAre(30, 31, 32, 33));
  EXPECT_THAT(step_.full_slots, ElementsAre(9 * 32 + 30, 9 * 32 + 31, 2 * 32, 2 * 32 + 1));
  EXPECT_THAT(step_.window_slots, ElementsAre(5 * 32 + 30, 5 * 32 + 31, 0, 1));
  ASSERT_EQ(step_.entries.size(), 1u);
  EXPECT_EQ(step_.entries[0].first_row, 0);
  EXPECT_EQ(step_.entries[0].num_rows, 4);
  EXPECT_EQ(step_.entries[0].first_position, 30);
  EXPECT_THAT(step_.full_tables, ElementsAre(9, 2));
  EXPECT_THAT(step_.window_tables, ElementsAre(5, 0));
  EXPECT_THAT(step_.samples, IsEmpty());
  EXPECT_THAT(step_.logits, IsEmpty());
}

TEST_F(LoweringTest, EntriesFollowEachOther) {
  Keep(kSequence, 40);
  Keep(SequenceId{8}, 5);
  PlanEntry other = Entry(2, 3, 0, {4}, {4});
  other.sequence = SequenceId{8};
  other.wants_sample = true;
  PlanEntry first = Entry(0, 33, 0, {1, 3}, {1, 3});
  first.wants_logits = true;
  ASSERT_TRUE(Lower({first, other}).ok());
  EXPECT_EQ(step_.num_rows(), 36);
  EXPECT_EQ(step_.entries[1].first_row, 33);
  EXPECT_EQ(step_.entries[1].table_offset, 2);
  EXPECT_THAT(step_.full_tables, ElementsAre(1, 3, 4));
  EXPECT_THAT(step_.sample_rows, ElementsAre(35));
  EXPECT_EQ(step_.samples[0].position, 5);
  EXPECT_EQ(step_.samples[0].sequence, SequenceId{8});
  EXPECT_EQ(step_.logits[0].first_row, 0);
  EXPECT_EQ(step_.logits[0].num_positions, 33);
}

TEST_F(LoweringTest, AnEmptyPlanIsAStep) {
  ASSERT_TRUE(Lower({}).ok());
  EXPECT_EQ(step_.num_rows(), 0);
}

TEST_F(LoweringTest, TablesGrowByIncrements) {
  Keep(kSequence, 100);
  ASSERT_TRUE(Lower({Entry(0, 33, 0, {1, 2}, {1, 2})}).ok());
  ASSERT_TRUE(Lower({Entry(33, 10, 2, {}, {})}).ok());
  EXPECT_THAT(step_.full_tables, ElementsAre(1, 2));
  ASSERT_TRUE(Lower({Entry(43, 40, 2, {3}, {3})}).ok());
  EXPECT_THAT(step_.full_tables, ElementsAre(1, 2, 3));
  EXPECT_EQ(lowering_.full_blocks_used(), 3);
  // Preempted and begun anew: from index 0 on everything is replaced.
  ASSERT_TRUE(Lower({Entry(0, 40, 0, {7, 8}, {4, 5})}).ok());
  EXPECT_THAT(step_.full_tables, ElementsAre(7, 8));
  EXPECT_EQ(lowering_.full_blocks_used(), 2);
}

TEST_F(LoweringTest, SharedBlocksCountOnce) {
  Keep(kSequence, 32);
  Keep(SequenceId{8}, 33);
  PlanEntry other = Entry(32, 1, 0, {1, 2}, {1, 2});
  other.sequence = SequenceId{8};
  ASSERT_TRUE(Lower({Entry(0, 32, 0, {1}, {1}), other}).ok());
  EXPECT_EQ(lowering_.full_blocks_used(), 2);
  lowering_.Forget(kSequence);
  EXPECT_EQ(lowering_.full_blocks_used(), 2);
  lowering_.Forget(SequenceId{8});
  EXPECT_EQ(lowering_.full_blocks_used(), 0);
}

TEST_F(LoweringTest, AnEpochForgetsTables) {
  Keep(kSequence, 40);
  ASSERT_TRUE(Lower({Entry(0, 32, 0, {1}, {1})}).ok());
  lowering_.EnterEpoch({.max_rows = 64, .num_full_blocks = 10, .num_window_blocks = 6});
  EXPECT_EQ(lowering_.full_blocks_used(), 0);
  EXPECT_FALSE(Lower({Entry(32, 1, 1, {2}, {2})}).ok());
}

// Window 4: position 66 sees 63 to 66, position 67 sees 64 to 67.
TEST_F(LoweringTest, BlocksBehindTheWindowMayBeMissing) {
  Keep(kSequence, 80);
  EXPECT_FALSE(Lower({Entry(66, 2, 0, {0, 1, 2}, {-1, -1, 0})}).ok());
  EXPECT_TRUE(Lower({Entry(67, 2, 0, {0, 1, 2}, {-1, -1, 0})}).ok());
  EXPECT_THAT(step_.window_tables, ElementsAre(-1, -1, 0));
}

TEST_F(LoweringTest, WhatAPlanMustNotSay) {
  Keep(kSequence, 40);
  const auto expect_refusal = [this](std::vector<PlanEntry> entries, const std::string& text) {
    lowering_.EnterEpoch({.max_rows = 64, .num_full_blocks = 10, .num_window_blocks = 6});
    const absl::Status status = Lower(std::move(entries));
    EXPECT_TRUE(status.code() == absl::StatusCode::kInvalidArgument ||
                status.code() == absl::StatusCode::kFailedPrecondition)
        << text << ": " << status;
    EXPECT_THAT(std::string(status.message()), HasSubstr(text));
  };
  PlanEntry unknown = Entry(0, 1, 0, {0}, {0});
  unknown.sequence = SequenceId{99};
  expect_refusal({unknown}, "sequence 99 has no record");
  expect_refusal({Entry(0, 0, 0, {0}, {0})}, "0 positions");
  expect_refusal({Entry(0, -3, 0, {0}, {0})}, "-3 positions");
  expect_refusal({Entry(-1, 2, 0, {0}, {0})}, "positions -1 to 0");
  expect_refusal({Entry(38, 3, 0, {0, 1}, {0, 1})}, "positions 38 to 40, its record has 40");
  expect_refusal({Entry(0, std::numeric_limits<int32_t>::max(), 0, {0}, {0})}, "at most 64");
  expect_refusal({Entry(std::numeric_limits<int32_t>::max(), 9, 0, {0}, {0})}, "its record has 40");
  expect_refusal({Entry(0, 33, 0, {0}, {0})}, "needs 2 blocks, its table has 1");
  expect_refusal({Entry(0, 4, 0, {10}, {0})}, "blocks 10 and 0");
  expect_refusal({Entry(0, 4, 0, {-1}, {0})}, "blocks -1 and 0");
  expect_refusal({Entry(0, 4, 0, {0}, {6})}, "blocks 0 and 6");
  expect_refusal({Entry(0, 4, 0, {0}, {-2})}, "blocks 0 and -2");
  expect_refusal({Entry(0, 4, 0, {0}, {-1})}, "no window block at index 0");
  expect_refusal({Entry(0, 4, 0, {0, 1}, {0})}, "2 full and 1 window blocks");
  expect_refusal({Entry(0, 4, 1, {0}, {0})}, "at index 1 of a table of 0");
  expect_refusal({Entry(0, 4, -1, {0}, {0})}, "at index -1");
  expect_refusal({Entry(0, 4, 0, {0}, {0}), Entry(4, 4, 1, {}, {})}, "planned twice");
  PlanEntry both = Entry(0, 40, 0, {0, 1}, {0, 1});
  PlanEntry again = both;
  again.sequence = SequenceId{8};
  expect_refusal({both, again}, "80 rows, at most 64");
}

// What all ranks were told of the step has to hold for this one's part.
TEST_F(LoweringTest, AStepOfSinglePositionsHasNoOthers) {
  Keep(kSequence, 40);
  StepPlan plan;
  plan.most_positions = 20;
  plan.entries = {Entry(19, 1, 0, {0}, {0})};
  ASSERT_TRUE(lowering_.Lower(plan, records_, &step_).ok());
  EXPECT_EQ(step_.most_positions, 20);
  plan.entries = {Entry(20, 1, 0, {0}, {0})};
  EXPECT_THAT(std::string(lowering_.Lower(plan, records_, &step_).message()),
              HasSubstr("1 positions from 20 on in a step of single positions below 20"));
  plan.entries = {Entry(8, 2, 0, {0}, {0})};
  EXPECT_THAT(std::string(lowering_.Lower(plan, records_, &step_).message()),
              HasSubstr("2 positions from 8 on"));
}

TEST_F(LoweringTest, PaddingIsKeptNowhereAndSeenByNobody) {
  Keep(kSequence, 40);
  ASSERT_TRUE(Lower({Entry(7, 1, 0, {2}, {3})}).ok());

  step_.PadRows(4);

  EXPECT_THAT(step_.token_ids, ElementsAre(7, 0, 0, 0));
  EXPECT_THAT(step_.positions, ElementsAre(7, 0, 0, 0));
  EXPECT_THAT(step_.full_slots, ElementsAre(2 * kBlockTokens + 7, -1, -1, -1));
  EXPECT_THAT(step_.window_slots, ElementsAre(3 * kBlockTokens + 7, -1, -1, -1));
  ASSERT_EQ(step_.entries.size(), 4u);
  EXPECT_EQ(step_.entries[0].num_rows, 1);
  EXPECT_EQ(step_.entries[3].num_rows, 0);
}

TEST_F(LoweringTest, UnknownTokensAreRefused) {
  KeepRecord message{.sequence = kSequence, .prompt_length = 1};
  message.tokens = {TokenId{128}};
  ASSERT_TRUE(records_.Keep(message).ok());
  const absl::Status status = Lower({Entry(0, 1, 0, {0}, {0})});
  EXPECT_THAT(std::string(status.message()), HasSubstr("token 128 at 0 of 128"));
}

TEST_F(LoweringTest, SettingsThatWouldHarmTheSamplerAreRefused) {
  const auto expect_refusal = [this](SequenceId sequence, const SamplingSettings& settings) {
    Keep(sequence, 4, settings);
    PlanEntry entry = Entry(0, 4, 0, {0}, {0});
    entry.sequence = sequence;
    entry.wants_sample = true;
    EXPECT_EQ(Lower({entry}).code(), absl::StatusCode::kInvalidArgument) << sequence.value;
  };
  SamplingSettings bias;
  bias.logit_bias = {{TokenId{128}, 1.0f}};
  expect_refusal(SequenceId{20}, bias);
  SamplingSettings stop;
  stop.stop_tokens = {TokenId{-1}};
  expect_refusal(SequenceId{21}, stop);
  SamplingSettings temperature;
  temperature.temperature = std::numeric_limits<float>::quiet_NaN();
  expect_refusal(SequenceId{22}, temperature);
  SamplingSettings repetition;
  repetition.repetition_penalty = 0.0f;
  expect_refusal(SequenceId{23}, repetition);
}

TEST_F(LoweringTest, SettingsReachTheSampler) {
  SamplingSettings settings;
  settings.temperature = 0.5f;
  settings.top_k = 9;
  settings.seed = 77;
  settings.min_tokens = 2;
  settings.stop_tokens = {TokenId{3}, TokenId{4}};
  settings.logit_bias = {{TokenId{5}, -1.5f}};
  settings.num_top_logprobs = 1000;
  Keep(kSequence, 4, settings);
  PlanEntry entry = Entry(0, 4, 0, {0}, {0});
  entry.wants_sample = true;
  ASSERT_TRUE(Lower({entry}).ok());
  const SampleRow& row = step_.sample_settings.at(0);
  EXPECT_EQ(row.temperature, 0.5f);
  EXPECT_EQ(row.top_k, 9);
  EXPECT_EQ(row.seed, 77u);
  EXPECT_EQ(row.position, 4);
  EXPECT_EQ(row.num_top_logprobs, 128);  // The vocabulary
  ASSERT_EQ(row.bias.size(), 1u);
  EXPECT_EQ(row.bias[0].value, -1.5f);
  EXPECT_THAT(row.forbidden, ElementsAre(3, 4));
  EXPECT_THAT(row.output_counts, IsEmpty());
  EXPECT_THAT(row.prompt_ids, IsEmpty());  // No repetition penalty

  Append(kSequence, 4, 60);
  Append(kSequence, 5, 61);
  ASSERT_TRUE(LowerSample(4).ok());
  EXPECT_EQ(step_.sample_settings[0].forbidden.size(), 2u);
  ASSERT_TRUE(LowerSample(5).ok());
  EXPECT_THAT(step_.sample_settings[0].forbidden, IsEmpty());
}

TEST_F(LoweringTest, MasksAndForbiddenIdsReachTheSampler) {
  SamplingSettings settings;
  settings.never = {{TokenId{2}, TokenId{3}}, {TokenId{127}, TokenId{127}}};
  settings.min_tokens = 1;
  settings.stop_tokens = {TokenId{5}};
  Keep(kSequence, 4, settings);
  PlanEntry entry = Entry(0, 4, 0, {0}, {0});
  entry.wants_sample = true;
  entry.mask.runs = {1, 2, 30, 1};  // 1, 2 and 33
  ASSERT_TRUE(Lower({entry}).ok());

  EXPECT_THAT(step_.sample_settings.at(0).forbidden, ElementsAre(2, 3, 127, 5));
  EXPECT_THAT(step_.sample_settings[0].allowed, ElementsAre(6u, 2u, 0u, 0u));
  Append(kSequence, 4, 60);
  ASSERT_TRUE(LowerSample(4).ok());
  EXPECT_THAT(step_.sample_settings[0].forbidden, ElementsAre(2, 3, 127));
  EXPECT_THAT(step_.sample_settings[0].allowed, IsEmpty());

  entry.mask.runs = {100, 29};  // One more than there are
  EXPECT_EQ(Lower({entry}).code(), absl::StatusCode::kInvalidArgument);
  settings.never = {{TokenId{127}, TokenId{128}}};
  Keep(SequenceId{9}, 4, settings);
  entry.sequence = SequenceId{9};
  entry.mask.runs.clear();
  EXPECT_EQ(Lower({entry}).code(), absl::StatusCode::kInvalidArgument);
}

TEST_F(LoweringTest, CountsAreThoseOfTheTokensBeforeThePosition) {
  SamplingSettings settings;
  settings.repetition_penalty = 1.5f;
  Keep(kSequence, 4, settings);
  Prng prng(3);
  for (int32_t p = 4; p < 31; ++p) Append(kSequence, p, static_cast<int32_t>(prng.Below(6)));
  PlanEntry entry = Entry(0, 4, 0, {0}, {0});
  entry.wants_sample = true;
  ASSERT_TRUE(Lower({entry}).ok());
  EXPECT_THAT(step_.sample_settings[0].prompt_ids, ElementsAre(0, 1, 2, 3));
  // Forwards, and back again: after an abort the leader may plan from a shorter length.
  const std::vector<TokenId>& tokens = records_.Find(kSequence)->tokens;
  for (const int32_t position : {5, 6, 20, 30, 12, 13, 31, 4, 5}) {
    ASSERT_TRUE(LowerSample(position - 1).ok());
    std::vector<int32_t> ids;
    int32_t total = 0;
    for (const SampleRow::Count& count : step_.sample_settings[0].output_counts) {
      ids.push_back(count.id);
      const auto end = tokens.begin() + position;
      EXPECT_EQ(count.count, std::count(tokens.begin() + 4, end, TokenId{count.id}));
      total += count.count;
    }
    EXPECT_TRUE(std::ranges::is_sorted(ids));
    EXPECT_EQ(total, position - 4);
  }
}

TEST_F(LoweringTest, AForgottenSequenceLeavesNothing) {
  SamplingSettings settings;
  settings.presence_penalty = 1.0f;
  Keep(kSequence, 2, settings);
  Append(kSequence, 2, 9);
  PlanEntry entry = Entry(0, 3, 0, {0}, {0});
  entry.wants_sample = true;
  ASSERT_TRUE(Lower({entry}).ok());
  EXPECT_EQ(step_.sample_settings[0].output_counts.size(), 1u);
  lowering_.Forget(kSequence);
  records_.Forget(kSequence);
  Keep(kSequence, 3);
  ASSERT_TRUE(Lower({entry}).ok());
  EXPECT_THAT(step_.sample_settings[0].output_counts, IsEmpty());
}

// Depth two: the plan for position 4 left before it was known that no token could be drawn there.
TEST_F(LoweringTest, AFailedSampleEndsItsSequenceOnly) {
  Keep(kSequence, 4);
  PlanEntry entry = Entry(0, 4, 0, {0}, {0});
  entry.wants_sample = true;
  ASSERT_TRUE(Lower({entry}).ok());
  lowering_.SampleFailed(kSequence);
  Keep(SequenceId{8}, 3);
  PlanEntry other = Entry(0, 3, 0, {1}, {1});
  other.sequence = SequenceId{8};
  PlanEntry next = Entry(4, 1, 1, {}, {});
  next.wants_sample = true;
  ASSERT_TRUE(Lower({next, other}).ok());
  EXPECT_EQ(step_.num_rows(), 3);
  EXPECT_EQ(step_.entries.size(), 1u);
  ASSERT_EQ(step_.failed_samples.size(), 1u);
  EXPECT_EQ(step_.failed_samples[0].sequence, kSequence);
  EXPECT_EQ(step_.failed_samples[0].position, 5);
}

}  // namespace
}  // namespace shoal
