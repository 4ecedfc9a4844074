// Masks against the definition: a token is allowed if its bytes can follow.
#include <cstdio>
#include <memory>
#include <optional>
#include <string>

#include "gtest/gtest.h"

#include "base/prng.h"
#include "coordinator/text/grammar_mask.h"
#include "coordinator/text/json_schema.h"
#include "proto/token_mask.h"
#include "tests/coordinator/text/token_walk.h"

namespace shoal {
namespace {

const char* const kSchemas[] = {
    R"({"type":"object"})",
    R"({"type":"object","properties":{"name":{"type":"string"},"id":{"type":"integer"},
        "ids":{"type":"array","items":{"type":"number"},"maxItems":3}},"required":["name"]})",
    R"({"type":"object","properties":{"name":{"type":"string","minLength":2,"maxLength":5},
        "id":{"type":"boolean"}},"additionalProperties":{"type":["string","null"]}})",
    R"({"type":"array","items":{"enum":["a","abc","true",true,12,1]},"minItems":1,"maxItems":4})",
    R"({"anyOf":[{"type":"object","properties":{"a":{"type":"integer","minimum":-3,
        "maximum":120}},"required":["a"]},
        {"type":"object","properties":{"a":{"type":"string"}},"required":["a"]},{"type":"null"},
        {"type":"array","items":{"$ref":"#/$defs/t"}}],
        "$defs":{"t":{"type":"object","properties":{"t":{"$ref":"#/$defs/t"}},
            "additionalProperties":false}}})",
    R"({"type":"array","prefixItems":[{"type":"string","minLength":3},{"type":"number",
        "minimum":0,"maximum":1}],"items":{}})",
};

TokenSet BruteForce(const GrammarState& state, const TokenIndex& index) {
  TokenSet allowed(index.num_ids());
  for (int32_t id = 0; id < index.num_ids(); ++id) {
    if (!index.ordinary().Has(TokenId{id})) continue;
    GrammarState copy = state;
    if (copy.Advance(*index.tokenizer().Bytes(TokenId{id}))) allowed.Add(TokenId{id});
  }
  return allowed;
}

// Compares at every `stride`-th step of walks; counts the states compared.
int CompareAlongWalks(const TokenIndex& index, int num_walks, int stride) {
  int num_compared = 0;
  for (const char* schema : kSchemas) {
    const JsonGraph graph = *CompileJsonSchema(schema);
    for (int walk = 0; walk < num_walks; ++walk) {
      Prng prng(static_cast<uint64_t>(walk) + 1);
      GrammarState state(&graph);
      std::string text;
      for (int step = 0; step < 80; ++step) {
        TokenSet allowed(index.num_ids());
        AddAllowedTokens(state, index, &allowed);
        if ((step + walk) % stride == 0) {
          ++num_compared;
          if (allowed != BruteForce(state, index)) {
            ADD_FAILURE() << schema << "\nafter " << text;
            return num_compared;
          }
        }
        if (allowed.IsEmpty()) break;
        const TokenId token = Choose(allowed, index.tokenizer(), step, &prng);
        const absl::string_view bytes = *index.tokenizer().Bytes(token);
        EXPECT_TRUE(state.Advance(bytes)) << text;
        text.append(bytes.data(), bytes.size());
        if (state.IsComplete() && prng.Chance(50)) break;
      }
    }
  }
  return num_compared;
}

TEST(GrammarMaskTest, IsWhatEachTokenSaysOnASmallVocabulary) {
  const auto tokenizer =
      *Tokenizer::Parse(TokenizerText(JsonVocabulary({"<|end|>"}), PairForm::kList));
  const TokenIndex index(*tokenizer, tokenizer->size());

  EXPECT_GT(CompareAlongWalks(index, 40, 1), 3000);
}

TEST(GrammarMaskTest, IsWhatEachTokenSaysOnTheReleasesVocabulary) {
  const std::optional<TestVocabulary> release = ReadO200k(MergeForm::kNeeded);
  if (!release) GTEST_SKIP() << "no vocabulary of the release";
  const auto tokenizer = *Tokenizer::Parse(TokenizerText(*release, PairForm::kString));
  const TokenIndex index(*tokenizer, tokenizer->size());

  EXPECT_GT(CompareAlongWalks(index, 4, 9), 30);
}

// Every state on the way to a string's end, with tokens that stop in the middle of a character or
// of an escape.
TEST(GrammarMaskTest, KnowsTheInsideOfStrings) {
  const auto tokenizer = *Tokenizer::Parse(TokenizerText(JsonVocabulary({}), PairForm::kList));
  const TokenIndex index(*tokenizer, tokenizer->size());
  const char* const beginnings[] = {"\"",
                                    "\"\\",
                                    "\"\\u",
                                    "\"\\u0",
                                    "\"\\u00",
                                    "\"\\u00e",
                                    "\"\\ud8",
                                    "\"\\ud83d",
                                    "\"\\ud83d\\u",
                                    "\"\\ud83d\\ude0",
                                    "\"\xC3",
                                    "\"\xE2\x82",
                                    "\"\xE0",
                                    "\"\xED",
                                    "\"\xF0",
                                    "\"\xF0\x9F\x98",
                                    "\"\xF4"};
  for (const char* schema : {R"({"type":"string"})",
                             R"({"type":"string","maxLength":1})",
                             R"({"type":"string","minLength":4,"maxLength":7})",
                             R"({"type":"string","minLength":4})"}) {
    const JsonGraph graph = *CompileJsonSchema(schema);
    for (const char* beginning : beginnings) {
      GrammarState state(&graph);
      ASSERT_TRUE(state.Advance(beginning)) << beginning;
      TokenSet allowed(index.num_ids());
      AddAllowedTokens(state, index, &allowed);

      EXPECT_EQ(allowed, BruteForce(state, index)) << schema << " after " << beginning;
      EXPECT_FALSE(allowed.IsEmpty());
    }
  }
}

TEST(TokenMaskTest, PacksAndUnpacks) {
  Prng prng(7);
  for (int round = 0; round < 300; ++round) {
    const int32_t vocab = 1 + static_cast<int32_t>(prng.Below(200));
    const double share = static_cast<double>(prng.Below(101));
    std::vector<uint32_t> words((static_cast<size_t>(vocab) + 31) / 32, 0);
    bool is_allowed = false;
    for (int32_t id = 0; id < vocab; ++id) {
      if (prng.Chance(20)) is_allowed = prng.Chance(share);
      if (is_allowed) words[static_cast<size_t>(id) / 32] |= uint32_t{1} << (id % 32);
    }
    const TokenMask mask = PackMask(words);

    EXPECT_LE(CoveredIds(mask), std::ssize(words) * 32);
    EXPECT_FALSE(mask.runs.empty());
    for (size_t i = 1; i < mask.runs.size(); ++i) EXPECT_GT(mask.runs[i], 0u);
    EXPECT_EQ(UnpackMask(mask, static_cast<int32_t>(words.size()) * 32), words);
  }
}

}  // namespace
}  // namespace shoal
