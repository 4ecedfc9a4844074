// From what clients demand to rules; and the ids that nobody gets.
#include <memory>
#include <optional>
#include <string>

#include "gmock/gmock.h"
#include "gtest/gtest.h"

#include "coordinator/text/answer_demand.h"
#include "coordinator/text/never_sampled.h"
#include "tests/coordinator/text/tokenizer_json.h"

namespace shoal {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;

using Calls = AnswerDemand::Calls;
using Format = AnswerDemand::Format;

constexpr char kObject[] = R"({"type":"object"})";
constexpr char kPoint[] = R"({"type":"object","properties":{"x":{"type":"integer"}}})";
constexpr char kBeyondUs[] = R"({"type":"object","not":{}})";

ConstraintSpec SpecOf(const AnswerDemand& demand) {
  const auto spec = ConstraintOf(demand);
  EXPECT_TRUE(spec.ok() && spec->has_value()) << spec.status();
  return **spec;
}

bool IsFree(const AnswerDemand& demand) {
  const auto spec = ConstraintOf(demand);
  EXPECT_TRUE(spec.ok()) << spec.status();
  return !spec->has_value();
}

TEST(AnswerDemandTest, WhoDemandsNothingIsLeftAlone) {
  EXPECT_TRUE(IsFree({}));
  EXPECT_TRUE(IsFree({.calls = Calls::kForbidden}));
  EXPECT_TRUE(IsFree({.tools = {{"f", kPoint}}}));
}

TEST(AnswerDemandTest, AFormatIsForTheAnswer) {
  EXPECT_EQ(SpecOf({.format = Format::kJsonObject}), (ConstraintSpec{.answer_schema = kObject}));
  EXPECT_EQ(SpecOf({.format = Format::kJsonSchema, .schema = kPoint, .tools = {{"f", kPoint}}}),
            (ConstraintSpec{.answer_schema = kPoint, .functions = {{"f", ""}}}));
}

TEST(AnswerDemandTest, StrictToolsAreHeldToTheirSchema) {
  EXPECT_EQ(SpecOf({.tools = {{"f", kPoint, true}, {"g", kPoint}}}),
            (ConstraintSpec{.functions = {{"f", kPoint}, {"g", ""}}}));
  const ConstraintSpec::Function none = SpecOf({.tools = {{"f", std::nullopt, true}}}).functions[0];
  EXPECT_THAT(none.parameters, HasSubstr("\"additionalProperties\":false"));
}

TEST(AnswerDemandTest, RequiredCallsAreWellFormedAsFarAsPossible) {
  EXPECT_EQ(SpecOf({.tools = {{"f", kPoint}, {"g", kBeyondUs}}, .calls = Calls::kRequired}),
            (ConstraintSpec{.functions = {{"f", kPoint}, {"g", kObject}}, .must_call = true}));
  EXPECT_EQ(
      SpecOf(
          {.tools = {{"f", kPoint}, {"g", kPoint}}, .calls = Calls::kRequired, .callable = {"g"}}),
      (ConstraintSpec{.functions = {{"g", kPoint}}, .must_call = true}));
}

TEST(AnswerDemandTest, OthersAreNotCalled) {
  EXPECT_EQ(SpecOf({.tools = {{"f", kPoint}, {"g", kPoint}}, .callable = {"f"}}),
            (ConstraintSpec{.functions = {{"f", ""}}}));
  EXPECT_EQ(SpecOf({.tools = {{"f", kPoint}}, .calls = Calls::kForbidden}), ConstraintSpec{});
}

TEST(AnswerDemandTest, NamesMustBeThere) {
  EXPECT_THAT(
      std::string(ConstraintOf({.tools = {{"f", kPoint}}, .callable = {"h"}}).status().message()),
      HasSubstr("`h`"));
  EXPECT_EQ(ConstraintOf({.calls = Calls::kRequired}).status().code(),
            absl::StatusCode::kInvalidArgument);
}

TEST(NeverSampledTest, ArePaddingAndMarkersWithoutMeaning) {
  const auto harmony = *Tokenizer::Parse(TokenizerText(MakeTestVocabulary({},
                                                                          {"<|startoftext|>",
                                                                           "<|endoftext|>",
                                                                           "<|reserved_1|>",
                                                                           "<|return|>",
                                                                           "<|constrain|>",
                                                                           "<|channel|>",
                                                                           "<|start|>",
                                                                           "<|end|>",
                                                                           "<|message|>",
                                                                           "<|call|>",
                                                                           "<|reserved_2|>"}),
                                                       PairForm::kList));
  const auto other =
      *Tokenizer::Parse(TokenizerText(MakeTestVocabulary({}, {"<|a|>", "<|b|>"}), PairForm::kList));
  const auto range = [](int32_t first, int32_t last) {
    return TokenRange{TokenId{first}, TokenId{last}};
  };

  EXPECT_THAT(NeverSampled(*harmony, 300, {}),
              ElementsAre(range(256, 256), range(258, 258), range(266, 299)));
  EXPECT_THAT(NeverSampled(*harmony, 267, {258}), ElementsAre(range(256, 256), range(266, 266)));
  EXPECT_THAT(NeverSampled(*other, 260, {}), ElementsAre(range(258, 259)));
  EXPECT_THAT(NeverSampled(*other, 100, {}), ElementsAre());
}

}  // namespace
}  // namespace shoal
