#include "worker/records.h"

#include <algorithm>
#include <vector>

#include "gtest/gtest.h"

#include "base/prng.h"

namespace shoal {
namespace {

std::vector<TokenId> Tokens(std::initializer_list<int32_t> ids) {
  std::vector<TokenId> tokens;
  for (const int32_t id : ids) tokens.push_back(TokenId{id});
  return tokens;
}

KeepRecord Whole(std::vector<TokenId> tokens) {
  return {.sequence = SequenceId{7}, .index = 0, .tokens = std::move(tokens), .prompt_length = 2};
}

KeepRecord Part(int32_t index, std::vector<TokenId> tokens) {
  return {.sequence = SequenceId{7}, .index = index, .tokens = std::move(tokens)};
}

TEST(RecordsTest, IndexZeroCreatesTheRecordWithItsSettings) {
  Records records;
  KeepRecord message = Whole(Tokens({1, 2, 3}));
  message.sampling.seed = 99;
  message.envelope = "sealed";

  ASSERT_TRUE(records.Keep(message).ok());

  const Record* record = records.Find(SequenceId{7});
  ASSERT_NE(record, nullptr);
  EXPECT_EQ(record->prompt_length, 2);
  EXPECT_EQ(record->tokens, Tokens({1, 2, 3}));
  EXPECT_EQ(record->sampling.seed, 99u);
  EXPECT_EQ(record->envelope, "sealed");
}

TEST(RecordsTest, EqualTokensMayBeKeptAgainFromAnyIndex) {
  Records records;
  ASSERT_TRUE(records.Keep(Whole(Tokens({1, 2, 3}))).ok());

  EXPECT_TRUE(records.Keep(Whole(Tokens({1, 2}))).ok());           // A shorter copy
  EXPECT_TRUE(records.Keep(Whole(Tokens({1, 2, 3, 4}))).ok());     // A longer one
  EXPECT_TRUE(records.Keep(Part(3, Tokens({4, 5}))).ok());         // An overlap
  EXPECT_TRUE(records.Append(SequenceId{7}, 4, TokenId{5}).ok());  // Sampled again

  EXPECT_EQ(records.Find(SequenceId{7})->tokens, Tokens({1, 2, 3, 4, 5}));
}

TEST(RecordsTest, ADifferentTokenIsDataLossAndChangesNothing) {
  Records records;
  ASSERT_TRUE(records.Keep(Whole(Tokens({1, 2, 3}))).ok());

  EXPECT_EQ(records.Keep(Whole(Tokens({1, 9, 3, 4}))).code(), absl::StatusCode::kDataLoss);
  EXPECT_EQ(records.Keep(Part(2, Tokens({9, 4}))).code(), absl::StatusCode::kDataLoss);
  EXPECT_EQ(records.Append(SequenceId{7}, 2, TokenId{9}).code(), absl::StatusCode::kDataLoss);

  EXPECT_EQ(records.Find(SequenceId{7})->tokens, Tokens({1, 2, 3}));
}

TEST(RecordsTest, OtherSettingsAreDataLoss) {
  Records records;
  ASSERT_TRUE(records.Keep(Whole(Tokens({1, 2, 3}))).ok());
  KeepRecord other_prompt = Whole(Tokens({1, 2, 3}));
  other_prompt.prompt_length = 3;
  KeepRecord other_seed = Whole(Tokens({1, 2, 3}));
  other_seed.sampling.seed = 5;

  EXPECT_EQ(records.Keep(other_prompt).code(), absl::StatusCode::kDataLoss);
  EXPECT_EQ(records.Keep(other_seed).code(), absl::StatusCode::kDataLoss);
}

TEST(RecordsTest, AGapIsRefused) {
  Records records;
  EXPECT_EQ(records.Keep(Part(1, Tokens({1}))).code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_EQ(records.Append(SequenceId{7}, 0, TokenId{1}).code(),
            absl::StatusCode::kFailedPrecondition);
  ASSERT_TRUE(records.Keep(Whole(Tokens({1, 2, 3}))).ok());

  EXPECT_EQ(records.Keep(Part(4, Tokens({1}))).code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_EQ(records.Append(SequenceId{7}, 4, TokenId{1}).code(),
            absl::StatusCode::kFailedPrecondition);
}

TEST(RecordsTest, NumbersThatMakeNoRecordAreInvalid) {
  struct Case {
    const char* name;
    int32_t index;
    int32_t prompt_length;
  };

  const Case cases[] = {{"negative index", -1, 1}, {"empty prompt", 0, 0}, {"beyond", 0, 3}};
  for (const Case& c : cases) {
    Records records;
    KeepRecord message = Whole(Tokens({1, 2}));
    message.index = c.index;
    message.prompt_length = c.prompt_length;

    EXPECT_EQ(records.Keep(message).code(), absl::StatusCode::kInvalidArgument) << c.name;
    EXPECT_EQ(records.size(), 0u) << c.name;
  }
}

TEST(RecordsTest, ForgetRemovesOnlyThatRecord) {
  Records records;
  KeepRecord other = Whole(Tokens({1, 2}));
  other.sequence = SequenceId{8};
  ASSERT_TRUE(records.Keep(Whole(Tokens({1, 2}))).ok());
  ASSERT_TRUE(records.Keep(other).ok());

  records.Forget(SequenceId{7});
  records.Forget(SequenceId{7});

  EXPECT_EQ(records.Find(SequenceId{7}), nullptr);
  EXPECT_NE(records.Find(SequenceId{8}), nullptr);
}

// Random pieces of one true text in any order, against "the longest prefix that has arrived without
// a gap".
TEST(RecordsTest, AnyOrderOfTruePiecesBuildsAPrefixOfTheTruth) {
  for (uint64_t seed = 1; seed <= 200; ++seed) {
    Prng prng(seed);
    std::vector<TokenId> truth;
    for (int i = 0; i < 20; ++i) truth.push_back(TokenId{static_cast<int32_t>(prng.Below(100))});
    Records records;
    ASSERT_TRUE(records.Keep(Whole({truth.begin(), truth.begin() + 2})).ok());
    size_t length = 2;
    for (int i = 0; i < 30; ++i) {
      const size_t index = 1 + prng.Below(truth.size() - 1);
      const size_t count = prng.Below(truth.size() - index + 1);
      const auto first = truth.begin() + static_cast<ptrdiff_t>(index);

      const absl::Status status = records.Keep(
          Part(static_cast<int32_t>(index), {first, first + static_cast<ptrdiff_t>(count)}));

      EXPECT_EQ(status.ok(), index <= length) << "seed " << seed;
      if (status.ok()) length = std::max(length, index + count);
      const std::vector<TokenId> expected(truth.begin(),
                                          truth.begin() + static_cast<ptrdiff_t>(length));
      ASSERT_EQ(records.Find(SequenceId{7})->tokens, expected) << "seed " << seed;
    }
  }
}

}  // namespace
}  // namespace shoal
