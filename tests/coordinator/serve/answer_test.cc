#include "coordinator/serve/answer.h"

#include <memory>
#include <string>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"

#include "base/prng.h"
#include "tests/coordinator/serve/small_model.h"

namespace shoal {
namespace {

using testing::ElementsAre;
using testing::IsEmpty;
using testing_model::kEuroHead;
using testing_model::kEuroTail;
using testing_model::kUnknown;

// What a client has of one choice.
struct Seen {
  std::vector<uint32_t> tokens;
  std::string text;
  std::string tail;
  uint64_t hash = kEmptyPrefixHash;
  std::optional<v1::Finished> finished;
};

class AnswerTest : public testing::Test {
 protected:
  AnswerTest() {
    model_.name = "small";
    model_.config = testing_model::SmallConfig();
    model_.tokenizer = &tokenizer_;
    envelope_.set_num_choices(1);
    envelope_.set_num_top_logprobs(-1);
    envelope_.add_stop_tokens(testing_model::kReturn);
  }

  AnswerTranscript::Args Args() const { return {.model = &model_, .request_id = "r"}; }

  Accepted Accept() const {
    return {.request_id = "r", .prompt_tokens = 1, .envelope = envelope_.SerializeAsString()};
  }

  static Emit Tokens(int32_t first_index, const std::vector<int32_t>& ids) {
    Emit emit{.stream = {}, .choice = 0, .first_index = first_index, .tokens = {}};
    for (const int32_t id : ids) emit.tokens.push_back({.token = {id}});
    return emit;
  }

  static void Add(Transcript::Output output, Seen* seen) {
    for (const std::string& message : output.messages) {
      v1::GenerateEvent event;
      ASSERT_TRUE(event.ParseFromString(message));
      if (event.has_chunk()) {
        seen->tokens.insert(
            seen->tokens.end(), event.chunk().token_ids().begin(), event.chunk().token_ids().end());
        seen->text += event.chunk().text();
        seen->hash = event.chunk().prefix_hash();
      } else if (event.has_finished()) {
        seen->tail = event.finished().text();
        seen->finished = event.finished();
      }
    }
  }

  testing_model::AlphabetTokenizer tokenizer_;
  ServedModel model_;
  fleet::v1::Envelope envelope_;
};

// However a stream is broken off and continued, the client has the same tokens and the same text.
TEST_F(AnswerTest, AnyTwoPartsOfAnAnswerMakeTheWhole) {
  Prng prng(1);
  envelope_.add_stop("dac");
  for (int round = 0; round < 200; ++round) {
    std::vector<int32_t> ids;
    const int32_t vocab[] = {0, 1, 2, 3, kEuroHead, kEuroTail, kUnknown, 40};
    for (int i = 0; i < 24; ++i) ids.push_back(vocab[prng.Below(8)]);
    const Finish finish{.reason = FinishReason::kLength, .usage = {.completion_tokens = 24}};
    AnswerTranscript whole_answer(Args());
    Seen whole;
    Add(whole_answer.Write({Accept(), Tokens(0, ids), finish}), &whole);

    const int32_t cut = static_cast<int32_t>(prng.Below(whole.tokens.size() + 1));
    AnswerTranscript first_answer(Args());
    Seen parts;
    Add(first_answer.Write({Accept(), Tokens(0, {ids.begin(), ids.begin() + cut})}), &parts);
    ASSERT_EQ(parts.tokens.size(), static_cast<size_t>(cut));
    AnswerTranscript::Args args = Args();
    args.next_index = cut;
    args.prefix_hash = parts.hash;
    AnswerTranscript second_answer(args);
    const Transcript::Output rest = second_answer.Write({Accept(), Tokens(0, ids), finish});
    Add(rest, &parts);

    ASSERT_EQ(rest.end, absl::OkStatus());
    EXPECT_EQ(parts.tokens, whole.tokens) << "round " << round << ", cut at " << cut;
    EXPECT_EQ(parts.text + parts.tail, whole.text + whole.tail);
    EXPECT_EQ(parts.hash, cut == std::ssize(whole.tokens) ? parts.hash : whole.hash);
    EXPECT_EQ(parts.finished->reason(), whole.finished->reason());
    EXPECT_EQ(whole.text.find("dac"), std::string::npos);
  }
}

TEST_F(AnswerTest, ATokenThatIsToldTwiceIsReadOnce) {
  AnswerTranscript answer(Args());
  Seen seen;
  Add(answer.Write({Accept(), Tokens(0, {1, 2, 3})}), &seen);
  Add(answer.Write({Accept(), Tokens(1, {2, 3, 4})}), &seen);

  EXPECT_THAT(seen.tokens, ElementsAre(1, 2, 3, 4));
  EXPECT_EQ(seen.text, "bcde");
}

TEST_F(AnswerTest, ATokenThatIsMissingEndsTheStream) {
  AnswerTranscript answer(Args());

  const Transcript::Output output = answer.Write({Accept(), Tokens(1, {1})});

  ASSERT_TRUE(output.end.has_value());
  EXPECT_TRUE(absl::IsInternal(*output.end));
}

TEST_F(AnswerTest, AStopStringIsToldToTheCoreOnce) {
  envelope_.add_stop("bc");
  AnswerTranscript answer(Args());

  const Transcript::Output output = answer.Write({Accept(), Tokens(0, {0, 1, 2, 3, 1, 2})});

  ASSERT_EQ(output.events.size(), 1u);
  EXPECT_EQ(std::get<StopFound>(output.events[0]).last_index, 2);
  EXPECT_THAT(answer.Write({Tokens(6, {1, 2})}).events, IsEmpty());
}

// The core had ended the sequence by its length before it heard of the stop string.
TEST_F(AnswerTest, AStopStringCountsMoreThanWhatTheCoreCameToLater) {
  envelope_.add_stop("bc");
  AnswerTranscript answer(Args());
  Seen seen;

  const Transcript::Output output = answer.Write(
      {Accept(),
       Tokens(0, {0, 1, 2, 3}),
       Finish{.reason = FinishReason::kError, .error = absl::InternalError("too late")}});
  Add(output, &seen);

  EXPECT_EQ(output.end, absl::OkStatus());
  EXPECT_EQ(seen.text + seen.tail, "a");
  EXPECT_THAT(seen.tokens, ElementsAre(0, 1, 2));
  EXPECT_EQ(seen.finished->reason(), v1::Finished::STOP_STRING);
  EXPECT_EQ(seen.finished->usage().completion_tokens(), 3u);
}

TEST_F(AnswerTest, AChoiceThatFailsEndsTheStreamWithItsStatusAfterTheOthers) {
  envelope_.set_num_choices(2);
  AnswerTranscript answer(Args());

  const Transcript::Output first = answer.Write(
      {Accept(),
       Finish{.choice = 1, .reason = FinishReason::kError, .error = absl::InternalError("NaN")}});
  const Transcript::Output second =
      answer.Write({Tokens(0, {1}), Finish{.choice = 0, .reason = FinishReason::kLength}});

  EXPECT_FALSE(first.end.has_value());
  EXPECT_EQ(second.end, absl::InternalError("NaN"));
  EXPECT_EQ(second.messages.size(), 2u);
}

TEST_F(AnswerTest, AParkedReaderGoesOnWithTheChoicesThatHaveNotEnded) {
  envelope_.set_num_choices(3);
  AnswerTranscript answer(Args());
  Emit of_last = Tokens(0, {5, 6});
  of_last.choice = 2;
  answer.Write({Accept(), of_last, Finish{.choice = 1, .reason = FinishReason::kLength}});

  const std::vector<ClientAttached> wishes = answer.Resume();

  ASSERT_EQ(wishes.size(), 2u);
  EXPECT_EQ(wishes[0].choice, 0);
  EXPECT_EQ(wishes[0].next_index, 0);
  EXPECT_EQ(wishes[1].choice, 2);
  EXPECT_EQ(wishes[1].next_index, 2);
}

TEST_F(AnswerTest, AttachingBeyondTheEndIsDataLoss) {
  AnswerTranscript::Args args = Args();
  args.next_index = 5;
  AnswerTranscript answer(args);

  const Transcript::Output output =
      answer.Write({Accept(), Tokens(0, {1, 2}), Finish{.reason = FinishReason::kLength}});

  ASSERT_TRUE(output.end.has_value());
  EXPECT_TRUE(absl::IsDataLoss(*output.end));
}

}  // namespace
}  // namespace shoal
