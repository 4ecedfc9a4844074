#include "coordinator/serve/request.h"

#include <cmath>
#include <functional>
#include <string>
#include <vector>

#include "absl/time/time.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"

#include "tests/coordinator/serve/small_model.h"

namespace shoal {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;

class RequestTest : public testing::Test {
 protected:
  RequestTest() {
    model_.name = "small";
    model_.config = testing_model::SmallConfig();
    model_.config.max_positions = 100;
    model_.tokenizer = &tokenizer_;
    wire_.mutable_tokens()->add_ids(1);
  }

  absl::StatusOr<Request> Parse() const {
    return ParseRequest(wire_, model_, absl::FromUnixSeconds(1), 77);
  }

  testing_model::AlphabetTokenizer tokenizer_;
  ServedModel model_;
  v1::GenerateRequest wire_;
};

TEST_F(RequestTest, WhatIsLeftOutIsTheModelsDefault) {
  const absl::StatusOr<Request> request = Parse();

  ASSERT_TRUE(request.ok()) << request.status();
  EXPECT_EQ(request->sampling.temperature, 1.0f);
  EXPECT_EQ(request->sampling.top_p, 1.0f);
  EXPECT_EQ(request->sampling.top_k, 0);
  EXPECT_EQ(request->sampling.seed, 77u);
  EXPECT_EQ(request->sampling.num_top_logprobs, -1);
  EXPECT_EQ(request->sampling.penalty_exempt_from, testing_model::kFirstSpecial);
  EXPECT_THAT(request->sampling.stop_tokens, ElementsAre(TokenId{testing_model::kReturn}));
  EXPECT_EQ(request->num_choices, 1);
  EXPECT_EQ(request->max_tokens, 99);  // What one token of prompt leaves.
  EXPECT_FALSE(request->is_named);
  EXPECT_TRUE(CheckRequestId(request->id).ok()) << request->id;
}

TEST_F(RequestTest, ZeroIsAValueAndNotAnAbsence) {
  wire_.mutable_sampling()->set_temperature(0.0f);
  wire_.mutable_sampling()->set_seed(0);
  wire_.mutable_output()->set_logprobs(0);

  const absl::StatusOr<Request> request = Parse();

  ASSERT_TRUE(request.ok());
  EXPECT_EQ(request->sampling.temperature, 0.0f);
  EXPECT_EQ(request->sampling.seed, 0u);
  EXPECT_EQ(request->sampling.num_top_logprobs, 0);
}

TEST_F(RequestTest, RefusesWhatIsOutOfRangeAndNamesFieldAndValue) {
  struct Case {
    const char* field;
    const char* value;
    std::function<void(v1::GenerateRequest*)> set;
  };

  const std::vector<Case> cases = {
      {"temperature", "nan", [](auto* r) { r->mutable_sampling()->set_temperature(NAN); }},
      {"temperature", "-0.5", [](auto* r) { r->mutable_sampling()->set_temperature(-0.5f); }},
      {"temperature", "2.5", [](auto* r) { r->mutable_sampling()->set_temperature(2.5f); }},
      {"top_p", "0", [](auto* r) { r->mutable_sampling()->set_top_p(0.0f); }},
      {"top_p", "1.5", [](auto* r) { r->mutable_sampling()->set_top_p(1.5f); }},
      {"top_p", "nan", [](auto* r) { r->mutable_sampling()->set_top_p(NAN); }},
      {"top_k", "-2", [](auto* r) { r->mutable_sampling()->set_top_k(-2); }},
      {"min_p", "1.25", [](auto* r) { r->mutable_sampling()->set_min_p(1.25f); }},
      {"frequency_penalty", "3", [](auto* r) { r->mutable_sampling()->set_frequency_penalty(3); }},
      {"presence_penalty", "-3", [](auto* r) { r->mutable_sampling()->set_presence_penalty(-3); }},
      {"repetition_penalty",
       "0",
       [](auto* r) { r->mutable_sampling()->set_repetition_penalty(0); }},
      {"repetition_penalty",
       "inf",
       [](auto* r) { r->mutable_sampling()->set_repetition_penalty(INFINITY); }},
      {"logit_bias", "60", [](auto* r) { (*r->mutable_sampling()->mutable_logit_bias())[60] = 1; }},
      {"logit_bias",
       "4294967295",
       [](auto* r) { (*r->mutable_sampling()->mutable_logit_bias())[0xffffffff] = 1; }},
      {"logit_bias",
       "101",
       [](auto* r) { (*r->mutable_sampling()->mutable_logit_bias())[5] = 101; }},
      {"logit_bias",
       "301",
       [](auto* r) {
         for (uint32_t i = 0; i < 301; ++i) (*r->mutable_sampling()->mutable_logit_bias())[i] = 1;
       }},
      {"sampling.n", "0", [](auto* r) { r->mutable_sampling()->set_n(0); }},
      {"sampling.n", "9", [](auto* r) { r->mutable_sampling()->set_n(9); }},
      {"max_tokens", "0", [](auto* r) { r->mutable_limits()->set_max_tokens(0); }},
      {"min_tokens",
       "6",
       [](auto* r) {
         r->mutable_limits()->set_max_tokens(5);
         r->mutable_limits()->set_min_tokens(6);
       }},
      {"limits.stop",
       "17",
       [](auto* r) {
         for (int i = 0; i < 17; ++i) r->mutable_limits()->add_stop("x");
       }},
      {"limits.stop", "257", [](auto* r) { r->mutable_limits()->add_stop(std::string(257, 'x')); }},
      {"limits.stop", "0", [](auto* r) { r->mutable_limits()->add_stop(""); }},
      {"stop_token_ids[0]", "64", [](auto* r) { r->mutable_limits()->add_stop_token_ids(64); }},
      {"logprobs", "21", [](auto* r) { r->mutable_output()->set_logprobs(21); }},
      {"tokens.ids[1]", "64", [](auto* r) { r->mutable_tokens()->add_ids(64); }},
      {"tokens.ids[1]", "4294967295", [](auto* r) { r->mutable_tokens()->add_ids(0xffffffff); }},
      {"prompt", "empty", [](auto* r) { r->mutable_tokens()->clear_ids(); }},
      {"prompt", "empty", [](auto* r) { r->set_text(""); }},
      {"needs a prompt", "text", [](auto* r) { r->clear_prompt(); }},
      {"tokens",
       "100",
       [](auto* r) {
         for (int i = 0; i < 99; ++i) r->mutable_tokens()->add_ids(1);
       }},
      {"text", "801", [](auto* r) { r->set_text(std::string(801, 'a')); }},
      {"request_id", "`a b`", [](auto* r) { r->set_request_id("a b"); }},
      {"request_id", "128", [](auto* r) { r->set_request_id(std::string(129, 'a')); }},
      {"cache_salt", "257", [](auto* r) { r->set_cache_salt(std::string(257, 'a')); }},
  };
  for (const Case& c : cases) {
    v1::GenerateRequest wire = wire_;
    c.set(&wire);
    const absl::Status status = ParseRequest(wire, model_, absl::FromUnixSeconds(1), 77).status();
    EXPECT_TRUE(absl::IsInvalidArgument(status)) << c.field << ": " << status;
    EXPECT_THAT(std::string(status.message()), HasSubstr(c.field));
    EXPECT_THAT(std::string(status.message()), HasSubstr(c.value));
  }
}

TEST_F(RequestTest, MarkersInTextAreTextUnlessAskedFor) {
  wire_.set_text("<|return|>");
  EXPECT_FALSE(Parse().ok());  // The small alphabet has no '<'.

  wire_.set_parse_special(true);
  const absl::StatusOr<Request> request = Parse();

  ASSERT_TRUE(request.ok()) << request.status();
  EXPECT_THAT(request->prompt, ElementsAre(TokenId{testing_model::kReturn}));
}

TEST_F(RequestTest, ABodysHashDependsOnItAndNotOnTheOrderOfAMap) {
  wire_.set_request_id("a");
  for (uint32_t i = 0; i < 50; ++i) (*wire_.mutable_sampling()->mutable_logit_bias())[i] = 1;
  const uint64_t rising = Parse()->body_hash;
  wire_.mutable_sampling()->clear_logit_bias();
  for (uint32_t i = 50; i-- > 0;) (*wire_.mutable_sampling()->mutable_logit_bias())[i] = 1;
  const uint64_t falling = Parse()->body_hash;
  wire_.mutable_limits()->set_max_tokens(7);
  const uint64_t other = Parse()->body_hash;

  EXPECT_EQ(rising, falling);
  EXPECT_NE(rising, other);
}

TEST_F(RequestTest, IgnoreEosKeepsTheClientsOwnStopTokens) {
  wire_.mutable_limits()->set_ignore_eos(true);
  wire_.mutable_limits()->add_stop_token_ids(9);
  wire_.mutable_limits()->add_stop_token_ids(3);
  wire_.mutable_limits()->add_stop_token_ids(9);

  EXPECT_THAT(Parse()->sampling.stop_tokens, ElementsAre(TokenId{3}, TokenId{9}));
}

TEST_F(RequestTest, LogitsAreAskedForWithoutTheCache) {
  const absl::StatusOr<Request> request =
      ParseLogitsRequest({TokenId{1}, TokenId{2}}, model_, absl::FromUnixSeconds(1), 77);

  ASSERT_TRUE(request.ok());
  EXPECT_TRUE(request->wants_prompt_logits);
  EXPECT_FALSE(request->use_prefix_cache);
  EXPECT_EQ(request->max_tokens, 1);
}

}  // namespace
}  // namespace shoal
