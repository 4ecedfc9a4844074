// The rules of an answer: headers, channels, calls, and JSON inside them.
#include <memory>
#include <string>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "nlohmann/json.hpp"

#include "base/prng.h"
#include "coordinator/text/constraint.h"
#include "tests/coordinator/text/token_walk.h"

namespace shoal {
namespace {

using testing::HasSubstr;

// Words of headers in one piece, in several, and in pieces that end elsewhere.
TestVocabulary HarmonyVocabulary() {
  TestVocabulary json = JsonVocabulary({});
  for (const std::string word :
       {"final", "analysis", "comment", "assistant", " to", "=func", "tions.", "get"}) {
    for (size_t length = 2; length <= word.size(); ++length) {
      json.merges.emplace_back(word.substr(0, length - 1), word.substr(length - 1, 1));
    }
  }
  std::vector<std::pair<std::string, std::string>> distinct;
  for (auto& merge : json.merges) {
    if (std::find(distinct.begin(), distinct.end(), merge) == distinct.end()) {
      distinct.push_back(merge);
    }
  }
  return MakeTestVocabulary(distinct,
                            {"<|startoftext|>",
                             "<|endoftext|>",
                             "<|return|>",
                             "<|constrain|>",
                             "<|channel|>",
                             "<|start|>",
                             "<|end|>",
                             "<|message|>",
                             "<|call|>"});
}

class ConstraintTest : public testing::Test {
 protected:
  std::unique_ptr<ConstraintRules> Rules(const ConstraintSpec& spec) {
    auto rules = ConstraintRules::Create(spec, {*tokenizer_->Special("<|return|>")}, &index_);
    EXPECT_TRUE(rules.ok()) << rules.status();
    return *std::move(rules);
  }

  // As few tokens as the vocabulary makes of it, markers included.
  std::vector<TokenId> Encode(const std::string& text) {
    return *tokenizer_->Encode(text, {.mode = SpecialTokens::Mode::kAll, .listed = {}});
  }

  // The rules take all of `text`, whether in large tokens or byte by byte, and what Allowed() says
  // agrees.
  bool Takes(const ConstraintRules& rules, const std::string& text) {
    Constraint constraint(&rules);
    for (const TokenId token : Encode(text)) {
      const bool is_allowed = constraint.Allowed().Has(token);
      EXPECT_EQ(constraint.Advance(token), is_allowed) << text;
      if (!is_allowed) return false;
    }
    return true;
  }

  bool Ends(const ConstraintRules& rules, const std::string& text) {
    Constraint constraint(&rules);
    for (const TokenId token : Encode(text)) {
      if (!constraint.Advance(token)) return false;
    }
    return constraint.has_ended();
  }

  const std::unique_ptr<Tokenizer> tokenizer_ =
      *Tokenizer::Parse(TokenizerText(HarmonyVocabulary(), PairForm::kList));
  const TokenIndex index_{*tokenizer_, tokenizer_->size()};
};

constexpr char kPoint[] =
    R"({"type":"object","properties":{"x":{"type":"integer"}},"required":["x"]})";

TEST_F(ConstraintTest, APlainOutputIsOneDocumentAndThenItsEnd) {
  const auto rules = Rules({.is_plain = true, .answer_schema = kPoint});

  EXPECT_TRUE(Ends(*rules, R"({"x":1}<|return|>)"));
  EXPECT_FALSE(Takes(*rules, R"({"x":1} )"));
  EXPECT_FALSE(Takes(*rules, R"({"x":1<|return|>)"));
  EXPECT_FALSE(Takes(*rules, R"({"x":1}<|end|>)"));
  EXPECT_FALSE(Takes(*rules, "<|channel|>"));
}

TEST_F(ConstraintTest, AnAnswerFollowsItsSchemaOnTheFinalChannelOnly) {
  const auto rules = Rules({.answer_schema = kPoint});
  const std::string thought =
      "<|channel|>analysis<|message|>not {json\" at all<|end|><|start|>assistant";

  EXPECT_TRUE(Ends(*rules, R"(<|channel|>final<|message|>{"x":-12}<|return|>)"));
  EXPECT_TRUE(
      Ends(*rules, thought + R"(<|channel|>final <|constrain|>json<|message|>{"x":0}<|return|>)"));
  EXPECT_TRUE(Ends(*rules, thought + thought + R"(<|channel|>final<|message|>{"x":0}<|return|>)"));
  EXPECT_FALSE(Takes(*rules, "<|channel|>final<|message|>no"));
  EXPECT_FALSE(Takes(*rules, R"(<|channel|>final<|message|>{"x":1}<|call|>)"));
  EXPECT_FALSE(Takes(*rules, R"(<|channel|>final<|message|>{"x":1}<|end|>)"));
  EXPECT_FALSE(Takes(*rules, "<|channel|>commentary"));
  EXPECT_FALSE(Takes(*rules, " to"));
  EXPECT_FALSE(Takes(*rules, "<|channel|>analysis<|message|>x<|return|>"));
  EXPECT_FALSE(Takes(*rules, "<|channel|>analysis<|message|>x<|channel|>"));
  EXPECT_FALSE(Takes(*rules, "<|start|>"));
  EXPECT_FALSE(Takes(*rules, "final"));
  EXPECT_FALSE(Takes(*rules, thought.substr(0, thought.size() - 9) + "user"));
}

TEST_F(ConstraintTest, AllowsExactlyTheTokensThatItTakes) {
  const auto rules = Rules(
      {.answer_schema = kPoint, .functions = {{"get", kPoint}, {"get_all", ""}, {"x-1", "{}"}}});
  for (uint64_t seed = 1; seed <= 60; ++seed) {
    Prng prng(seed);
    Constraint constraint(rules.get());
    for (int step = 0; step < 100 && !constraint.has_ended(); ++step) {
      const TokenSet allowed = constraint.Allowed();
      for (int32_t id = 0; id < tokenizer_->size(); ++id) {
        Constraint copy = constraint;
        ASSERT_EQ(copy.Advance(TokenId{id}), allowed.Has(TokenId{id})) << id << ", step " << step;
      }
      ASSERT_TRUE(constraint.Advance(Choose(allowed, *tokenizer_, step, &prng)));
    }
  }
}

TEST_F(ConstraintTest, CallsHaveTheirRecipientBeforeOrAfterTheChannel) {
  const auto rules = Rules({.functions = {{"get", kPoint}, {"get_all", ""}}});

  EXPECT_TRUE(Ends(
      *rules,
      R"(<|channel|>commentary to=functions.get <|constrain|>json<|message|>{"x":1}<|call|>)"));
  EXPECT_TRUE(
      Ends(*rules,
           R"(<|channel|>commentary to=functions.get<|constrain|>json<|message|>{"x":1}<|call|>)"));
  EXPECT_TRUE(Ends(*rules, R"(<|channel|>commentary to=functions.get<|message|>{"x":1}<|call|>)"));
  EXPECT_TRUE(Ends(
      *rules,
      R"( to=functions.get<|channel|>commentary <|constrain|>json<|message|>{"x":1}<|call|>)"));
  EXPECT_TRUE(Ends(*rules, R"( to=functions.get<|channel|>commentary<|message|>{"x":1}<|call|>)"));
  EXPECT_TRUE(
      Ends(*rules, R"( to=functions.get_all<|channel|>commentary<|message|>any [text<|call|>)"));
  EXPECT_TRUE(Ends(*rules, "<|channel|>final<|message|>free text<|return|>"));
  EXPECT_TRUE(Takes(
      *rules, "<|channel|>commentary<|message|>I look<|end|><|start|>assistant to=functions.get"));
  EXPECT_FALSE(Takes(*rules, R"( to=functions.get<|channel|>commentary<|message|>{"y")"));
  EXPECT_FALSE(Takes(*rules, " to=functions.other"));
  EXPECT_FALSE(Takes(*rules, " to=get"));
  EXPECT_FALSE(Takes(*rules, " to=functions.get_al<|channel|>"));
  EXPECT_FALSE(Takes(*rules, " to=functions.get<|channel|>final"));
}

TEST_F(ConstraintTest, ARequiredCallCannotBeAvoided) {
  const auto rules = Rules({.functions = {{"get", kPoint}}, .must_call = true});
  const std::string thought = "<|channel|>analysis<|message|>hm<|end|><|start|>assistant";

  EXPECT_TRUE(Ends(
      *rules, thought + R"( to=functions.get<|channel|>commentary<|message|>{"x":1}<|call|>)"));
  EXPECT_TRUE(Takes(*rules, thought + thought + "<|channel|>commentary to=functions.get"));
  EXPECT_FALSE(Takes(*rules, "<|channel|>final"));
  EXPECT_FALSE(Takes(*rules, thought + "<|channel|>final"));
  EXPECT_FALSE(Takes(*rules, "<|channel|>commentary<|message|>"));
  EXPECT_FALSE(Takes(*rules, thought + thought + "<|channel|>analysis"));
}

TEST_F(ConstraintTest, NoFunctionsMeansNoCalls) {
  const auto rules = Rules({});

  EXPECT_TRUE(Ends(*rules, "<|channel|>final<|message|>x<|return|>"));
  EXPECT_FALSE(Takes(*rules, " to"));
  EXPECT_FALSE(Takes(*rules, "<|channel|>commentary"));
}

TEST_F(ConstraintTest, RefusesWhatCannotBe) {
  const auto refusal = [&](const ConstraintSpec& spec) {
    return std::string(ConstraintRules::Create(spec, {}, &index_).status().message());
  };

  EXPECT_THAT(refusal({.must_call = true}), HasSubstr("no function"));
  EXPECT_THAT(refusal({.functions = {{"f", R"({"not":{}})"}}}),
              HasSubstr("`f`: JSON schema at #: `not`"));
  EXPECT_THAT(refusal({.answer_schema = "{"}), HasSubstr("JSON schema: "));
  EXPECT_THAT(refusal({.is_plain = true, .answer_schema = "{}"}), HasSubstr("stop_token_ids"));
}

// A model that knows nothing writes valid documents.
TEST_F(ConstraintTest, RandomAnswersAreValid) {
  const auto rules = Rules({.answer_schema = kPoint});
  int num_ended = 0;
  for (uint64_t seed = 1; seed <= 200; ++seed) {
    Prng prng(seed);
    Constraint constraint(rules.get());
    std::string answer;
    for (int step = 0; step < 300 && !constraint.has_ended(); ++step) {
      const TokenId token = Choose(constraint.Allowed(), *tokenizer_, step, &prng);
      ASSERT_TRUE(constraint.Advance(token));
      const absl::string_view bytes = *tokenizer_->Bytes(token);
      answer.append(bytes.data(), bytes.size());
    }
    if (!constraint.has_ended()) continue;
    ++num_ended;
    const size_t begin = answer.rfind("<|message|>") + 11;
    const std::string json = answer.substr(begin, answer.rfind("<|return|>") - begin);
    const auto document = nlohmann::json::parse(json, nullptr, false);
    ASSERT_TRUE(document.is_object() && document.size() == 1) << json;
    EXPECT_TRUE(document["x"].is_number_integer()) << json;
  }
  EXPECT_GT(num_ended, 100);
}

}  // namespace
}  // namespace shoal
