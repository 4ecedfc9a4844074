#include <algorithm>
#include <cstdlib>
#include <iostream>
#include <map>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"

#include "base/prng.h"
#include "coordinator/text/detokenizer.h"
#include "coordinator/text/tokenizer.h"
#include "tests/coordinator/text/tokenizer_json.h"

namespace shoal {
namespace {

using nlohmann::ordered_json;
using testing::HasSubstr;

uint64_t Seed() {
  const char* const named = std::getenv("SHOAL_SEED");
  const uint64_t seed = named != nullptr ? std::strtoull(named, nullptr, 10) : 7;
  std::cout << "seed " << seed << "\n";
  return seed;
}

std::string Decode(const Tokenizer& tokenizer, const std::vector<TokenId>& ids) {
  Detokenizer detokenizer(&tokenizer);
  std::string text;
  for (const TokenId id : ids) text += *detokenizer.Push(id);
  return text + detokenizer.Flush();
}

std::vector<int32_t> Values(const absl::StatusOr<std::vector<TokenId>>& ids) {
  EXPECT_TRUE(ids.ok()) << ids.status();
  std::vector<int32_t> values;
  if (ids.ok()) {
    for (const TokenId id : *ids) values.push_back(id.value);
  }
  return values;
}

using Merges = std::vector<std::pair<std::string, std::string>>;

// The textbook: look at all pairs, join the leftmost of the most urgent, start again.
std::vector<std::string> TextbookMerges(const std::string& text, const Merges& merges) {
  std::map<std::pair<std::string, std::string>, size_t> urgency;
  for (const auto& merge : merges) urgency.emplace(merge, urgency.size());
  std::vector<std::string> parts;
  for (const char c : text) parts.emplace_back(1, c);
  while (true) {
    size_t best = merges.size();
    size_t best_at = 0;
    for (size_t i = 0; i + 1 < parts.size(); ++i) {
      const auto at = urgency.find({parts[i], parts[i + 1]});
      if (at == urgency.end() || at->second >= best) continue;
      best = at->second;
      best_at = i;
    }
    if (best == merges.size()) return parts;
    parts[best_at] += parts[best_at + 1];
    parts.erase(parts.begin() + static_cast<ptrdiff_t>(best_at) + 1);
  }
}

// Random merges of one to three letters in any order, also those where what a merge makes is more
// urgent than its parts; or with all merges that make the same token side by side.
Merges RandomMerges(Prng* prng) {
  std::vector<std::string> tokens = {"a", "b", "c"};
  tokens.resize(1 + prng->Below(3));
  Merges merges;
  const size_t count = 1 + prng->Below(40);
  while (merges.size() < count) {
    std::pair<std::string, std::string> merge = {tokens[prng->Below(tokens.size())],
                                                 tokens[prng->Below(tokens.size())]};
    if (std::find(merges.begin(), merges.end(), merge) != merges.end()) continue;
    tokens.push_back(merge.first + merge.second);
    merges.push_back(std::move(merge));
  }
  for (size_t i = merges.size() - 1; i > 0; --i) std::swap(merges[i], merges[prng->Below(i + 1)]);
  if (prng->Chance(50)) {
    std::stable_sort(merges.begin(), merges.end(), [](const auto& a, const auto& b) {
      return a.first + a.second < b.first + b.second;
    });
  }
  return merges;
}

TEST(TokenizerTest, MergesAsTheTextbookDoesShortAndLong) {
  Prng prng(Seed());
  for (int round = 0; round < 500; ++round) {
    const Merges merges = RandomMerges(&prng);
    ordered_json tree = TokenizerTree(MakeTestVocabulary(merges, {}), PairForm::kList);
    tree["model"]["ignore_merges"] = false;
    const auto tokenizer = Tokenizer::Parse(tree.dump());
    ASSERT_TRUE(tokenizer.ok()) << tokenizer.status();
    for (const size_t max_length : {8, 50, 300}) {
      std::string text;
      const size_t length = 1 + prng.Below(max_length);
      while (text.size() < length) {
        text.append(1 + prng.Below(6), static_cast<char>('a' + prng.Below(3)));
      }
      std::vector<std::string> parts;
      for (const int32_t id : Values((*tokenizer)->Encode(text, {}))) {
        const absl::string_view bytes = *(*tokenizer)->Bytes(TokenId{id});
        parts.emplace_back(bytes.data(), bytes.size());
      }
      ASSERT_EQ(parts, TextbookMerges(text, merges)) << text;
    }
  }
}

TEST(TokenizerTest, TakesAWholePieceBeforeItsMergesIfTheFileSaysSo) {
  // "abc" is a token that its own bytes never merge into: "bc" comes first.
  const TestVocabulary vocabulary = MakeTestVocabulary({{"b", "c"}, {"a", "b"}, {"ab", "c"}}, {});
  ordered_json tree = TokenizerTree(vocabulary, PairForm::kList);

  EXPECT_EQ(Values((*Tokenizer::Parse(tree.dump()))->Encode("abc", {})),
            std::vector<int32_t>({258}));
  tree["model"]["ignore_merges"] = false;
  EXPECT_EQ(Values((*Tokenizer::Parse(tree.dump()))->Encode("abc", {})),
            std::vector<int32_t>({'a', 256}));
}

TEST(TokenizerTest, DecodesWhatItEncodesForAnyText) {
  Prng prng(Seed());
  const auto tokenizer = Tokenizer::Parse(TokenizerText(
      MakeTestVocabulary({{"\xE4", "\xB8"}, {" ", "a"}, {"e", "s"}, {"\xB8", "\xAD"}}, {"<|end|>"}),
      PairForm::kList));
  ASSERT_TRUE(tokenizer.ok()) << tokenizer.status();
  const std::vector<std::string> characters = {"a",
                                               "e",
                                               "s",
                                               "'",
                                               " ",
                                               "\n",
                                               "\t",
                                               "7",
                                               "\u4E2D",
                                               "\u0301",
                                               "\U0001F600",
                                               "<",
                                               "<|end|>",
                                               std::string(1, '\0'),
                                               "\u00AD",
                                               "\u3000"};
  for (int round = 0; round < 3'000; ++round) {
    std::string text;
    const uint64_t count = prng.Below(120);
    for (uint64_t i = 0; i < count; ++i) text += characters[prng.Below(characters.size())];
    for (const auto mode : {SpecialTokens::Mode::kNone, SpecialTokens::Mode::kAll}) {
      const auto ids = (*tokenizer)->Encode(text, {mode, {}});
      ASSERT_TRUE(ids.ok());
      ASSERT_EQ(Decode(**tokenizer, *ids), text);
      const bool has_special = std::any_of(
          ids->begin(), ids->end(), [&](TokenId id) { return (*tokenizer)->IsSpecial(id); });
      const bool spells_one = text.find("<|end|>") != std::string::npos;
      ASSERT_EQ(has_special, spells_one && mode == SpecialTokens::Mode::kAll);
    }
  }
}

TEST(TokenizerTest, FindsTheLongestOfSeveralMarkers) {
  const auto tokenizer = Tokenizer::Parse(TokenizerText(
      MakeTestVocabulary({}, {"<|a|>", "<|a|>b", "<|", "<|ab|>", "\u4E2D"}), PairForm::kList));
  ASSERT_TRUE(tokenizer.ok()) << tokenizer.status();
  const SpecialTokens all{SpecialTokens::Mode::kAll, {}};

  EXPECT_EQ(Values((*tokenizer)->Encode("<|a|>b<|a|><|a<|ab|>\u4E2D<", all)),
            std::vector<int32_t>({257, 256, 258, 'a', 259, 260, '<'}));
  EXPECT_EQ(
      Values((*tokenizer)->Encode("<|a|>b", {SpecialTokens::Mode::kListed, {"<|a|>", "<|a|>"}})),
      std::vector<int32_t>({256, 'b'}));
  EXPECT_EQ((*tokenizer)->Special("<|a|>"), TokenId{256});
  EXPECT_EQ((*tokenizer)->Special("<|a|"), std::nullopt);
  EXPECT_EQ((*tokenizer)->Special(""), std::nullopt);
}

TEST(TokenizerTest, NamesWhatItCannotEncode) {
  TestVocabulary vocabulary;
  vocabulary.tokens = {"a", "b", "ab"};
  vocabulary.merges = {{"a", "b"}};
  const auto tokenizer = Tokenizer::Parse(TokenizerText(vocabulary, PairForm::kList));
  ASSERT_TRUE(tokenizer.ok()) << tokenizer.status();
  const auto refusal = [&](absl::string_view text, const SpecialTokens& special) {
    return std::string((*tokenizer)->Encode(text, special).status().message());
  };

  EXPECT_EQ(Values((*tokenizer)->Encode("abba", {})), std::vector<int32_t>({2, 1, 0}));
  EXPECT_THAT(refusal("ab abc", {}), HasSubstr("byte 0x20 at offset 2"));
  EXPECT_THAT(refusal("abc", {}), HasSubstr("byte 0x63 at offset 2"));
  EXPECT_THAT(refusal("ab\xC0\x80", {}), HasSubstr("invalid UTF-8 at byte 2"));
  EXPECT_THAT(refusal("abababab\xED\xA0\x80", {}), HasSubstr("invalid UTF-8 at byte 8"));
  EXPECT_THAT(refusal("a\xE4\xB8", {}), HasSubstr("invalid UTF-8 at byte 1"));
  EXPECT_THAT(refusal("a", {SpecialTokens::Mode::kListed, {"<|no|>"}}), HasSubstr("<|no|>"));
}

TEST(TokenizerTest, NamesTheHarmonySpecialsThatAreMissing) {
  std::vector<std::string> specials;
  for (const absl::string_view marker : kHarmonySpecials) {
    specials.emplace_back(marker.data(), marker.size());
  }
  const auto whole =
      Tokenizer::Parse(TokenizerText(MakeTestVocabulary({}, specials), PairForm::kList));
  EXPECT_TRUE(RequireHarmonySpecials(**whole).ok());

  for (const std::string& missing : specials) {
    std::vector<std::string> others = specials;
    others.erase(std::find(others.begin(), others.end(), missing));
    const auto tokenizer =
        Tokenizer::Parse(TokenizerText(MakeTestVocabulary({}, others), PairForm::kList));
    const absl::Status status = RequireHarmonySpecials(**tokenizer);
    EXPECT_THAT(std::string(status.message()), HasSubstr(missing + ","));
  }
}

TEST(TokenizerTest, HandlesAMegabyteOfOneCharacter) {
  const auto tokenizer = Tokenizer::Parse(TokenizerText(
      MakeTestVocabulary({{"a", "a"}, {"aa", "aa"}, {" ", " "}, {"  ", "  "}}, {"<|end|>"}),
      PairForm::kList));
  constexpr size_t kSize = 1 << 20;
  const SpecialTokens all{SpecialTokens::Mode::kAll, {}};

  EXPECT_EQ((*tokenizer)->Encode(std::string(kSize, 'a'), all)->size(), kSize / 4);
  EXPECT_EQ((*tokenizer)->Encode(std::string(kSize, ' '), all)->size(), kSize / 4);
  EXPECT_EQ((*tokenizer)->Encode(std::string(kSize, '<'), all)->size(), kSize);
}

}  // namespace
}  // namespace shoal
