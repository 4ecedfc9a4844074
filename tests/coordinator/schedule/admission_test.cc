#include "coordinator/schedule/admission.h"

#include <memory>

#include "gtest/gtest.h"

namespace shoal {
namespace {

constexpr SchedulerLimits kLimits{
    .max_rows = 64, .prefill_chunk = 64, .max_running = 4, .prefix_cache = true, .window = 32};

TEST(AdmissionTest, RefusesWhatTheContextCannotHoldAndSaysWhatWouldFit) {
  struct Case {
    const char* name;
    Demand demand;
    const char* message;  // Null: accepted
    absl::StatusCode code = absl::StatusCode::kInvalidArgument;
  };

  const Case cases[] = {
      {"fits exactly", {.prompt_tokens = 60, .max_tokens = 40}, nullptr},
      {"one too many",
       {.prompt_tokens = 60, .max_tokens = 41},
       "prompt of 60 tokens and max_tokens 41 exceed the context of 100; max_tokens up to 40 would "
       "fit",
       absl::StatusCode::kOutOfRange},
      {"prompt alone",
       {.prompt_tokens = 101, .max_tokens = 1},
       "prompt of 101 tokens exceeds the context of 100",
       absl::StatusCode::kOutOfRange},
      {"empty",
       {.prompt_tokens = 0, .max_tokens = 1},
       "the prompt is empty; at least one token is needed"},
      {"nothing asked",
       {.prompt_tokens = 1, .max_tokens = 0},
       "max_tokens must be at least 1, got 0"},
      {"no choice",
       {.prompt_tokens = 1, .max_tokens = 1, .num_choices = 0},
       "n must be at least 1, got 0"},
      {"logits need no output",
       {.prompt_tokens = 100, .max_tokens = 0, .wants_prompt_logits = true},
       nullptr},
  };
  for (const Case& c : cases) {
    const absl::Status status = CheckDemand(c.demand, 100);

    EXPECT_EQ(status.ok(), c.message == nullptr) << c.name;
    if (c.message == nullptr) continue;
    EXPECT_EQ(status.code(), c.code) << c.name;
    EXPECT_EQ(status.message(), c.message) << c.name;
  }
}

TEST(AdmissionTest, RefusesWhatNoRankCouldHoldAlone) {
  const Scheduler small(kLimits, 2, 4);
  const Scheduler large(kLimits, 3, 4);
  const Scheduler* const ranks[] = {&small, &large};

  // 96 positions: the 97th token is output and needs none.
  EXPECT_TRUE(CheckMemory({.prompt_tokens = 90, .max_tokens = 7}, ranks).ok());
  const absl::Status status = CheckMemory({.prompt_tokens = 90, .max_tokens = 8}, ranks);
  EXPECT_EQ(status.code(), absl::StatusCode::kOutOfRange);
  EXPECT_EQ(status.message(),
            "prompt of 90 tokens and max_tokens 8 exceed the cache of 96 positions of a rank; "
            "max_tokens up to 7 would fit");
  EXPECT_EQ(CheckMemory({.prompt_tokens = 97, .max_tokens = 1}, ranks).message(),
            "prompt of 97 tokens exceeds the cache of 96 positions of a rank");
}

TEST(AdmissionTest, WithoutRanksNothingIsKnownToBeTooLarge) {
  EXPECT_TRUE(CheckMemory({.prompt_tokens = 1'000'000, .max_tokens = 8}, {}).ok());
}

Sequence MakeSequence(uint64_t id, int32_t prompt, int32_t first_token = 0) {
  Sequence sequence;
  sequence.id = SequenceId{id};
  sequence.prompt_length = prompt;
  sequence.max_length = prompt + 10;
  sequence.cache_scope = "t";
  for (int32_t i = 0; i < prompt; ++i) sequence.tokens.push_back(TokenId{first_token + i});
  return sequence;
}

// Computes the whole prompt of an admitted sequence.
void Prefill(Scheduler* scheduler) {
  for (const PlanEntry& entry : scheduler->Plan()) scheduler->Returned(entry);
}

TEST(AdmissionTest, PrefersTheRankWithLessToDo) {
  Scheduler busy(kLimits, 20, 20);
  Scheduler idle(kLimits, 20, 20);
  Sequence other = MakeSequence(1, 50);
  busy.Admit(&other);
  const Scheduler* const ranks[] = {&busy, &idle};

  EXPECT_EQ(ChooseHome(MakeSequence(2, 20), ranks), 1u);
}

TEST(AdmissionTest, PrefersTheRankThatHoldsThePrefixUnlessItIsBusier) {
  SchedulerLimits limits = kLimits;
  limits.max_rows = 200;
  limits.prefill_chunk = 200;
  Scheduler first(limits, 40, 40);
  Scheduler second(limits, 40, 40);
  Sequence known = MakeSequence(1, 130);
  second.Admit(&known);
  Prefill(&second);
  const Scheduler* const ranks[] = {&first, &second};

  EXPECT_EQ(ChooseHome(MakeSequence(2, 140), ranks), 1u);

  Sequence load = MakeSequence(3, 180, 500);
  second.Admit(&load);
  EXPECT_EQ(ChooseHome(MakeSequence(4, 140), ranks), 0u);
}

TEST(AdmissionTest, AFullRankIsNoHome) {
  SchedulerLimits limits = kLimits;
  limits.max_running = 1;
  Scheduler only(limits, 20, 20);
  Sequence running = MakeSequence(1, 5);
  only.Admit(&running);
  const Scheduler* const ranks[] = {&only};

  EXPECT_EQ(ChooseHome(MakeSequence(2, 5), ranks), std::nullopt);
}

TEST(AdmissionTest, TwoPairsOfTenantAndSaltAreNeverOneScope) {
  EXPECT_NE(CacheScope("ab", "c"), CacheScope("a", "bc"));
  EXPECT_NE(CacheScope("", "1:a"), CacheScope("a", ""));
  EXPECT_EQ(CacheScope("a", "b"), CacheScope("a", "b"));
}

TEST(AdmissionTest, TheFirstChoiceHasTheRequestsSeedAndTheOthersTheirOwn) {
  EXPECT_EQ(ChoiceSeed(42, 0), 42u);
  EXPECT_NE(ChoiceSeed(42, 1), 42u);
  EXPECT_NE(ChoiceSeed(42, 1), ChoiceSeed(42, 2));
  EXPECT_EQ(ChoiceSeed(42, 2), ChoiceSeed(42, 2));
}

}  // namespace
}  // namespace shoal
