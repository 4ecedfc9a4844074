#include "coordinator/schedule/scheduler.h"

#include <deque>
#include <map>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace shoal {
namespace {

using testing::ElementsAre;
using testing::IsEmpty;
using testing::SizeIs;

constexpr SchedulerLimits kLimits{
    .max_rows = 16, .prefill_chunk = 8, .max_running = 8, .prefix_cache = true, .window = 32};

// Sequences, and a rank that samples token 7 at once.
class Rank {
 public:
  Rank(const SchedulerLimits& limits, int32_t num_blocks)
      : scheduler(limits, num_blocks, num_blocks) {}

  Sequence* Admit(int32_t prompt, int32_t max_tokens = 100) {
    Sequence& sequence = sequences.emplace_back();
    sequence.id = SequenceId{sequences.size()};
    sequence.prompt_length = prompt;
    sequence.max_length = prompt + max_tokens;
    // Of its own, so that nothing is shared unless a test asks for it.
    for (int32_t i = 0; i < prompt; ++i) {
      sequence.tokens.push_back(TokenId{static_cast<int32_t>(sequences.size()) * 1000 + i});
    }
    scheduler.Admit(&sequence);
    return &sequence;
  }

  void Return(const std::vector<PlanEntry>& entries) {
    for (const PlanEntry& entry : entries) {
      Sequence* const sequence = scheduler.Find(entry.sequence);
      const bool is_open =
          sequence->state != SequenceState::kEnded && sequence->length() < sequence->max_length;
      if (entry.wants_sample && is_open) sequence->tokens.push_back(TokenId{7});
      scheduler.Returned(entry);
    }
  }

  std::vector<PlanEntry> Step() {
    const std::vector<PlanEntry> entries = scheduler.Plan();
    Return(entries);
    return entries;
  }

  std::deque<Sequence> sequences;
  Scheduler scheduler;
};

std::vector<int32_t> Counts(const std::vector<PlanEntry>& entries) {
  std::vector<int32_t> counts;
  for (const PlanEntry& entry : entries) counts.push_back(entry.num_positions);
  return counts;
}

TEST(SchedulerTest, ChunksAPromptThatExceedsTheStepBudget) {
  Rank rank(kLimits, 20);
  rank.Admit(20);

  const auto first = rank.Step();
  const auto second = rank.Step();
  const auto third = rank.Step();
  const auto fourth = rank.Step();

  EXPECT_THAT(Counts(first), ElementsAre(8));
  EXPECT_FALSE(first[0].wants_sample);
  EXPECT_THAT(Counts(second), ElementsAre(8));
  EXPECT_THAT(Counts(third), ElementsAre(4));
  EXPECT_TRUE(third[0].wants_sample);
  EXPECT_EQ(fourth[0].first_position, 20);
  EXPECT_THAT(Counts(fourth), ElementsAre(1));
}

TEST(SchedulerTest, DecodesComeBeforePrefillsAndPrefillsShareTheRest) {
  Rank rank(kLimits, 40);
  rank.Admit(1);
  rank.Admit(2);
  rank.Step();
  rank.Admit(50);
  rank.Admit(50);

  const auto entries = rank.Step();

  // 16 rows: two decodes, a whole chunk for the elder prefill, what is left for the younger.
  EXPECT_THAT(Counts(entries), ElementsAre(1, 1, 8, 6));
}

TEST(SchedulerTest, PlansOneStepAheadOfTheSampledToken) {
  Rank rank(kLimits, 20);
  Sequence* const sequence = rank.Admit(4, 2);

  const auto first = rank.scheduler.Plan();
  const auto second = rank.scheduler.Plan();
  const auto third = rank.scheduler.Plan();

  EXPECT_THAT(Counts(first), ElementsAre(4));
  EXPECT_THAT(Counts(second), ElementsAre(1));
  EXPECT_EQ(second[0].first_position, 4);  // The token that the first step is about to sample
  EXPECT_THAT(third, IsEmpty());           // max_tokens are on their way
  rank.Return(first);
  rank.Return(second);
  EXPECT_EQ(sequence->length(), 6);
  EXPECT_EQ(sequence->computed, 5);
}

TEST(SchedulerTest, BlockTablesAreSentAsIncrementsAndWholeAfterARewind) {
  Rank rank(kLimits, 20);
  rank.Admit(40);
  const auto first = rank.Step();
  for (int i = 0; i < 3; ++i) rank.Step();
  const auto crossing = rank.Step();
  EXPECT_EQ(first[0].first_block, 0);
  EXPECT_THAT(first[0].full_blocks, SizeIs(1));
  EXPECT_EQ(crossing[0].first_block, 1);
  EXPECT_THAT(crossing[0].full_blocks, SizeIs(1));

  rank.scheduler.RewindAll();
  const auto again = rank.Step();

  EXPECT_EQ(again[0].first_block, 0);
  EXPECT_THAT(again[0].full_blocks, SizeIs(2));
}

TEST(SchedulerTest, ALostEpochPlansTheLostRowsAgain) {
  Rank rank(kLimits, 20);
  Sequence* const sequence = rank.Admit(4);
  rank.Step();
  const auto lost = rank.scheduler.Plan();
  const auto lost_too = rank.scheduler.Plan();
  ASSERT_EQ(lost_too[0].first_position, 5);

  rank.scheduler.RewindAll();
  const auto again = rank.scheduler.Plan();

  EXPECT_EQ(again[0].first_position, lost[0].first_position);
  EXPECT_TRUE(again[0].wants_sample);
  EXPECT_EQ(sequence->length(), 5);
}

TEST(SchedulerTest, WhenBlocksRunOutTheNewestIsPreemptedAndTheOldestFinishes) {
  Rank rank(kLimits, 3);
  Sequence* const elder = rank.Admit(30, 60);
  Sequence* const younger = rank.Admit(30, 60);
  for (int i = 0; i < 200 && elder->length() < elder->max_length; ++i) rank.Step();

  EXPECT_EQ(elder->length(), elder->max_length);
  EXPECT_EQ(elder->preemptions, 0);
  EXPECT_EQ(younger->preemptions, 1);
  EXPECT_EQ(younger->state, SequenceState::kWaiting);
  EXPECT_THAT(rank.scheduler.TakeDeparted(), ElementsAre(younger));
  EXPECT_EQ(younger->computed, 0);
  EXPECT_GE(younger->length(), 30);  // Its tokens stay
}

TEST(SchedulerTest, APreemptedSequenceWithRowsInFlightKeepsItsBlocksUntilTheyReturn) {
  Rank rank(kLimits, 20);
  Sequence* const sequence = rank.Admit(4);
  rank.Step();
  const auto in_flight = rank.scheduler.Plan();

  ASSERT_TRUE(rank.scheduler.PreemptNewest());

  EXPECT_EQ(sequence->state, SequenceState::kLeaving);
  EXPECT_EQ(rank.scheduler.space().full().num_held(), 1);
  EXPECT_THAT(rank.scheduler.Plan(), IsEmpty());
  rank.Return(in_flight);
  EXPECT_EQ(sequence->state, SequenceState::kWaiting);
  EXPECT_EQ(sequence->length(), 6);  // The token in flight was accepted
  EXPECT_EQ(rank.scheduler.space().full().num_held(), 0);
}

TEST(SchedulerTest, AnEndedSequenceFreesItsBlocksAtOnceIfNothingIsInFlight) {
  Rank rank(kLimits, 20);
  Sequence* const idle = rank.Admit(4);
  rank.Step();
  rank.scheduler.End(idle);
  EXPECT_EQ(rank.scheduler.space().full().num_held(), 0);

  Sequence* const busy = rank.Admit(4);
  const auto in_flight = rank.scheduler.Plan();
  rank.scheduler.End(busy);
  EXPECT_EQ(rank.scheduler.space().full().num_held(), 1);
  rank.Return(in_flight);
  EXPECT_EQ(rank.scheduler.space().full().num_held(), 0);
  EXPECT_THAT(rank.scheduler.TakeDeparted(), ElementsAre(idle, busy));
}

TEST(SchedulerTest, ForcedPreemptionLeavesAlonePeopleWhoGotNowhere) {
  Rank rank(kLimits, 20);
  rank.Admit(30);
  rank.Step();
  EXPECT_FALSE(rank.scheduler.PreemptNewest());  // Still in its prompt: it would never end
}

TEST(SchedulerTest, NobodyStarves) {
  // 6 sequences, memory for about 3: by age, all are finished in the end.
  Rank rank(kLimits, 6);
  for (int i = 0; i < 6; ++i) rank.Admit(20, 40);
  std::vector<Sequence*> waiting;
  int finished = 0;
  for (int step = 0; step < 2000 && finished < 6; ++step) {
    rank.Step();
    for (Sequence& s : rank.sequences) {
      if (s.state == SequenceState::kRunning && s.length() == s.max_length) {
        rank.scheduler.End(&s);
        ++finished;
      }
    }
    for (Sequence* s : rank.scheduler.TakeDeparted()) {
      if (s->state == SequenceState::kWaiting) waiting.push_back(s);
    }
    for (Sequence*& s : waiting) {
      if (!rank.scheduler.HasRoomFor(*s)) continue;
      rank.scheduler.Admit(s);
      s = nullptr;
    }
    std::erase(waiting, nullptr);
  }

  EXPECT_EQ(finished, 6);
  EXPECT_EQ(rank.scheduler.space().full().num_held(), 0);
}

TEST(SchedulerTest, ASharedPrefixIsNotComputedAgain) {
  Rank rank(kLimits, 20);
  Sequence* const first = rank.Admit(70);
  for (int i = 0; i < 10; ++i) rank.Step();
  Sequence second;
  second.id = SequenceId{99};
  second.prompt_length = 70;
  second.max_length = 80;
  second.tokens.assign(first->tokens.begin(), first->tokens.begin() + 70);

  rank.scheduler.Admit(&second);

  EXPECT_EQ(second.computed, 64);
  Sequence unsharing = second;
  unsharing.uses_prefix_cache = false;
  EXPECT_EQ(rank.scheduler.CachedPositions(unsharing), 0);
}

}  // namespace
}  // namespace shoal
