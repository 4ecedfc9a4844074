// Masks from many threads' questions are those of the constraint itself, whatever the pool
// remembers.
#include "coordinator/serve/mask_pool.h"

#include <map>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/synchronization/mutex.h"
#include "absl/time/clock.h"
#include "gtest/gtest.h"

#include "base/prng.h"
#include "coordinator/serve/request_constraint.h"
#include "tests/coordinator/text/token_walk.h"

namespace shoal {
namespace {

constexpr char kSchema[] =
    R"({"type":"array","items":{"type":"object","properties":{"name":{"type":"string",
        "maxLength":9}},
        "required":["name"]}})";

// Waits for answers by (sequence, length).
class Answers {
 public:
  MaskPool::OnMask Sink() {
    return [this](MaskReady mask) {
      absl::MutexLock lock(&mutex_);
      answers_[{mask.sequence, mask.num_output}] = std::move(mask);
    };
  }

  MaskReady Wait(SequenceId sequence, int32_t num_output) {
    absl::MutexLock lock(&mutex_);
    const auto is_there = [&]() ABSL_SHARED_LOCKS_REQUIRED(mutex_) {
      return answers_.contains({sequence, num_output});
    };
    EXPECT_TRUE(
        mutex_.AwaitWithDeadline(absl::Condition(&is_there), absl::Now() + absl::Seconds(60)));
    return answers_[{sequence, num_output}];
  }

 private:
  absl::Mutex mutex_;
  std::map<std::pair<SequenceId, int32_t>, MaskReady> answers_ ABSL_GUARDED_BY(mutex_);
};

class MaskPoolTest : public testing::Test {
 protected:
  MaskPoolTest() {
    fleet::v1::Envelope envelope;
    envelope.add_stop_tokens(tokenizer_->Special("<|return|>")->value);
    envelope.mutable_constraint()->set_is_plain(true);
    envelope.mutable_constraint()->set_answer_schema(kSchema);
    envelope_ = envelope.SerializeAsString();
    rules_ = *ConstraintRules::Create(SpecOf(envelope), EndsOf(envelope), &index_);
  }

  // A walk's tokens, and the mask before each of them.
  void MakeWalk(uint64_t seed, std::vector<TokenId>* tokens, std::vector<TokenMask>* masks) {
    Prng prng(seed);
    Constraint constraint(rules_.get());
    for (int step = 0; step < 60 && !constraint.has_ended(); ++step) {
      const TokenSet allowed = constraint.Allowed();
      masks->push_back(PackMask(allowed.words()));
      tokens->push_back(Choose(allowed, *tokenizer_, step, &prng));
      ASSERT_TRUE(constraint.Advance(tokens->back()));
    }
  }

  const std::unique_ptr<Tokenizer> tokenizer_ =
      *Tokenizer::Parse(TokenizerText(JsonVocabulary({"<|return|>"}), PairForm::kList));
  const TokenIndex index_{*tokenizer_, tokenizer_->size()};
  std::string envelope_;
  std::unique_ptr<ConstraintRules> rules_;
  Answers answers_;
};

TEST_F(MaskPoolTest, AnswersWhatTheConstraintSaysInAnyOrder) {
  MaskPool pool(&index_, 3, answers_.Sink());
  for (uint64_t seed = 1; seed <= 40; ++seed) {
    const SequenceId sequence{seed};
    std::vector<TokenId> tokens;
    std::vector<TokenMask> masks;
    MakeWalk(seed, &tokens, &masks);
    // Odd ones from the end to the beginning: nothing that is remembered helps, or hurts.
    for (size_t i = 0; i < masks.size(); ++i) {
      const size_t length = seed % 2 == 0 ? i : masks.size() - 1 - i;
      pool.Ask({.sequence = sequence,
                .output = {tokens.begin(), tokens.begin() + static_cast<ptrdiff_t>(length)},
                .envelope = envelope_});
    }
    for (size_t length = 0; length < masks.size(); ++length) {
      const MaskReady ready = answers_.Wait(sequence, static_cast<int32_t>(length));
      ASSERT_TRUE(ready.status.ok()) << ready.status;
      EXPECT_EQ(ready.mask, masks[length]) << "seed " << seed << ", length " << length;
    }
  }
}

TEST_F(MaskPoolTest, SaysWhyItCannotAnswer) {
  MaskPool pool(&index_, 1, answers_.Sink());

  pool.Ask({.sequence = SequenceId{1}, .output = {}, .envelope = "?"});
  pool.Ask({.sequence = SequenceId{2},
            .output = {*tokenizer_->Special("<|return|>")},
            .envelope = envelope_});

  EXPECT_EQ(answers_.Wait(SequenceId{1}, 0).status.code(), absl::StatusCode::kInternal);
  EXPECT_EQ(answers_.Wait(SequenceId{2}, 1).status.code(), absl::StatusCode::kInternal);
}

}  // namespace
}  // namespace shoal
