// Structured output through the whole service: a request over gRPC, masks from the pool, plans to a
// worker that obeys them, and text back.
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "nlohmann/json.hpp"

#include "coordinator/text/constraint.h"
#include "tests/coordinator/serve/service_rig.h"
#include "tests/coordinator/text/token_walk.h"

namespace shoal {
namespace {

constexpr char kSchema[] =
    R"({"type":"object","properties":{"name":{"type":"string","minLength":1,"maxLength":8},
        "count":{"type":"integer","minimum":-3,"maximum":120},
        "tags":{"type":"array","items":{"enum":["red","green"]},"maxItems":2}},
        "required":["name","count"],"additionalProperties":false})";

class StructuredServiceTest : public ServiceTest {
 protected:
  StructuredServiceTest() {
    end_ = *json_tokenizer_->Special("<|return|>");
    options_.tokenizer = json_tokenizer_.get();
    options_.config.vocab = json_tokenizer_->size() + 10;  // Padding, as models have it
    options_.config.eos_token_ids = {end_.value};
  }

  // What the worker would like best.
  TokenId Wish(uint64_t prompt, uint64_t seed, int32_t index) const {
    const uint64_t key = prompt * 1'000'003 + seed * 7919 + static_cast<uint64_t>(index);
    return TokenId{static_cast<int32_t>(Mix64(key) % static_cast<uint64_t>(options_.config.vocab))};
  }

  void StartServing() {
    StartWithWorker([this](const KeepRecord& record, int32_t index) {
      return Wish(static_cast<uint64_t>(record.tokens[0].value), record.sampling.seed, index);
    });
  }

  static v1::GenerateRequest AsksForJson(uint32_t prompt) {
    v1::GenerateRequest request = Asks(prompt, 300);
    request.mutable_constraint()->mutable_json_schema()->set_schema_json(kSchema);
    return request;
  }

  // What the rules make of the worker's wishes.
  std::vector<uint32_t> Expected(uint32_t prompt) const {
    const auto rules =
        *ConstraintRules::Create({.is_plain = true, .answer_schema = kSchema}, {end_}, &index_);
    Constraint constraint(rules.get());
    std::vector<uint32_t> tokens;
    while (!constraint.has_ended()) {
      TokenId token = Wish(prompt, 5, static_cast<int32_t>(tokens.size()));
      const TokenSet allowed = constraint.Allowed();
      while (token.value >= index_.num_ids() || !allowed.Has(token)) {
        token.value = (token.value + 1) % options_.config.vocab;
      }
      EXPECT_TRUE(constraint.Advance(token));
      tokens.push_back(static_cast<uint32_t>(token.value));
    }
    return tokens;
  }

  const std::unique_ptr<Tokenizer> json_tokenizer_ =
      *Tokenizer::Parse(TokenizerText(JsonVocabulary({"<|return|>"}), PairForm::kList));
  const TokenIndex index_{*json_tokenizer_, json_tokenizer_->size()};
  TokenId end_;
};

TEST_F(StructuredServiceTest, ManyAtOnceFollowTheirRulesTokenByToken) {
  StartServing();
  constexpr uint32_t kStreams = 24;
  std::vector<ClientStream> streams(kStreams);
  std::vector<std::thread> threads;
  for (uint32_t i = 0; i < kStreams; ++i) {
    threads.emplace_back([&, i] { streams[i] = Generate(AsksForJson(i)); });
  }
  // Beside one that nothing is demanded of, which has its wishes.
  const ClientStream free = Generate(Asks(3, 20));
  for (std::thread& thread : threads) thread.join();

  EXPECT_TRUE(free.status.ok()) << free.status.error_message();
  for (uint32_t i = 0; i < kStreams; ++i) {
    ASSERT_TRUE(streams[i].status.ok()) << streams[i].status.error_message();
    const ClientChoice choice = streams[i].only();
    EXPECT_EQ(choice.finished.reason(), v1::Finished::STOP);
    EXPECT_EQ(choice.tokens, Expected(i));
    const auto document = nlohmann::json::parse(choice.text, nullptr, false);
    ASSERT_TRUE(document.is_object()) << choice.text;
    EXPECT_TRUE(document["name"].is_string()) << choice.text;
    EXPECT_TRUE(document["count"] >= -3 && document["count"] <= 120) << choice.text;
  }
  WaitUntilAllIsFree();
}

TEST_F(StructuredServiceTest, ChoicesAreConstrainedOneByOne) {
  StartServing();
  v1::GenerateRequest request = AsksForJson(7);
  request.mutable_sampling()->set_n(3);

  const ClientStream stream = Generate(request);

  ASSERT_TRUE(stream.status.ok()) << stream.status.error_message();
  ASSERT_EQ(stream.choices.size(), 3u);
  for (const auto& [index, choice] : stream.choices) {
    EXPECT_TRUE(nlohmann::json::accept(choice.text)) << choice.text;
  }
  EXPECT_EQ(stream.choices.at(0).tokens, Expected(7));
}

TEST_F(StructuredServiceTest, WhatCannotBePromisedIsRefusedByName) {
  StartServing();

  struct Case {
    std::string schema;
    std::string word;
  };

  const Case cases[] = {{R"({"properties":{"a":{"not":{}}}})", "#/properties/a: `not`"},
                        {R"({"$ref":"#"})", "without progress"},
                        {"{", "JSON schema"},
                        {"", "schema_json"}};
  for (const Case& c : cases) {
    v1::GenerateRequest request = AsksForJson(1);
    request.mutable_constraint()->mutable_json_schema()->set_schema_json(c.schema);
    const ClientStream stream = Generate(request);

    EXPECT_EQ(stream.status.error_code(), grpc::StatusCode::INVALID_ARGUMENT) << c.schema;
    EXPECT_NE(stream.status.error_message().find(c.word), std::string::npos)
        << stream.status.error_message();
  }
  v1::GenerateRequest endless = AsksForJson(1);
  endless.mutable_limits()->set_min_tokens(4);
  EXPECT_EQ(Generate(endless).status.error_code(), grpc::StatusCode::INVALID_ARGUMENT);
  v1::GenerateRequest empty = Asks(1, 5);
  empty.mutable_constraint();
  EXPECT_EQ(Generate(empty).status.error_code(), grpc::StatusCode::INVALID_ARGUMENT);
}

// `json_object` takes whatever is an object; cut off by max_tokens it says so.
TEST_F(StructuredServiceTest, AnyObjectBeginsAsOne) {
  StartServing();
  v1::GenerateRequest request = Asks(11, 60);
  request.mutable_constraint()->mutable_json_object();

  const ClientChoice choice = Generate(request).only();

  EXPECT_EQ(choice.text.substr(0, 1), "{");
  const bool is_whole = choice.finished.reason() == v1::Finished::STOP;
  EXPECT_EQ(is_whole, nlohmann::json::accept(choice.text)) << choice.text;
}

}  // namespace
}  // namespace shoal
