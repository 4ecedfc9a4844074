#include "coordinator/serve/request_constraint.h"

#include <memory>
#include <string>

#include "gmock/gmock.h"
#include "gtest/gtest.h"

#include "tests/coordinator/text/token_walk.h"

namespace shoal {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;

constexpr char kPoint[] = R"({"type":"object","properties":{"x":{"type":"integer"}}})";

class RequestConstraintTest : public testing::Test {
 protected:
  RequestConstraintTest() {
    model_.tokenizer = tokenizer_.get();
    model_.token_index = &index_;
  }

  absl::Status Apply(const ApiRequest& asked) {
    return ConstrainChat(asked, model_, &request_, &envelope_);
  }

  const std::unique_ptr<Tokenizer> tokenizer_ =
      *Tokenizer::Parse(TokenizerText(JsonVocabulary({"<|endoftext|>",
                                                      "<|return|>",
                                                      "<|constrain|>",
                                                      "<|channel|>",
                                                      "<|start|>",
                                                      "<|end|>",
                                                      "<|message|>",
                                                      "<|call|>"}),
                                      PairForm::kList));
  const TokenIndex index_{*tokenizer_, tokenizer_->size()};
  ServedModel model_;
  Request request_;
  fleet::v1::Envelope envelope_;
};

TEST_F(RequestConstraintTest, AChatThatDemandsNothingStaysFree) {
  ApiRequest asked;
  asked.conversation.functions = {{.name = "f", .parameters = kPoint}};

  EXPECT_TRUE(Apply(asked).ok());
  EXPECT_FALSE(request_.is_constrained);
  EXPECT_FALSE(envelope_.has_constraint());
}

TEST_F(RequestConstraintTest, DemandsGoIntoTheEnvelopeAndComeBack) {
  ApiRequest asked;
  asked.conversation.functions = {{.name = "f", .parameters = kPoint, .is_strict = true},
                                  {.name = "g", .parameters = kPoint}};
  asked.format = {.kind = OutputFormat::Kind::kJsonSchema, .schema = kPoint};

  ASSERT_TRUE(Apply(asked).ok());

  EXPECT_TRUE(request_.is_constrained);
  EXPECT_EQ(SpecOf(envelope_),
            (ConstraintSpec{.answer_schema = kPoint, .functions = {{"f", kPoint}, {"g", ""}}}));
  const TokenId end = *tokenizer_->Special("<|return|>");
  const TokenId call = *tokenizer_->Special("<|call|>");
  EXPECT_THAT(request_.sampling.stop_tokens, ElementsAre(end, call));
  EXPECT_EQ(EndsOf(envelope_), request_.sampling.stop_tokens);
}

TEST_F(RequestConstraintTest, ToolChoiceDecidesWhatMayBeCalled) {
  ApiRequest asked;
  asked.conversation.functions = {{.name = "f", .parameters = kPoint},
                                  {.name = "g", .parameters = kPoint}};
  asked.tool_choice = {.mode = ToolChoice::Mode::kRequired, .allowed = {"g"}};

  ASSERT_TRUE(Apply(asked).ok());

  EXPECT_EQ(SpecOf(envelope_), (ConstraintSpec{.functions = {{"g", kPoint}}, .must_call = true}));
}

TEST_F(RequestConstraintTest, WhatCannotBePromisedIsRefused) {
  ApiRequest asked;
  asked.format = {.kind = OutputFormat::Kind::kJsonSchema, .schema = R"({"not":{}})"};
  EXPECT_THAT(std::string(Apply(asked).message()), HasSubstr("`not`"));

  model_.tokenizer = nullptr;
  EXPECT_EQ(Apply(asked).code(), absl::StatusCode::kFailedPrecondition);
}

}  // namespace
}  // namespace shoal
