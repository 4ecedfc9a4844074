// What leaves token by token: the detokenizer and the stop strings.
#include <algorithm>
#include <cstdlib>
#include <iostream>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "gtest/gtest.h"

#include "base/prng.h"
#include "coordinator/text/detokenizer.h"
#include "coordinator/text/stop_strings.h"
#include "coordinator/text/utf8.h"
#include "tests/coordinator/text/tokenizer_json.h"

namespace shoal {
namespace {

uint64_t Seed() {
  const char* const named = std::getenv("SHOAL_SEED");
  const uint64_t seed = named != nullptr ? std::strtoull(named, nullptr, 10) : 7;
  std::cout << "seed " << seed << "\n";
  return seed;
}

std::string Stream(const Tokenizer& tokenizer, const std::string& bytes) {
  Detokenizer detokenizer(&tokenizer);
  std::string text;
  for (const char c : bytes) text += *detokenizer.Push(TokenId{static_cast<uint8_t>(c)});
  return text + detokenizer.Flush();
}

class DetokenizerTest : public testing::Test {
 protected:
  // Ids below 256 are bytes; 256 and up are pairs of them.
  const std::unique_ptr<Tokenizer> tokenizer_ = *Tokenizer::Parse(TokenizerText(
      MakeTestVocabulary({{"\xE4", "\xB8"}, {"\xAD", "\xE4"}, {" ", "\xF0"}, {"a", "b"}}, {}),
      PairForm::kList));
};

TEST_F(DetokenizerTest, ReplacesEachMaximalSubpartOnce) {
  struct Case {
    std::string bytes, text;
  };

  // The second to fourth are the examples of Unicode 15, tables 3-8 to 3-11.
  const Case cases[] = {
      {"\x41\xC3\xA9\xE2\x82\xAC\xF0\x9F\x98\x80", "A\u00E9\u20AC\U0001F600"},
      {"\xC0\xAF\xE0\x80\xBF\xF0\x81\x82\x41", "\uFFFD\uFFFD\uFFFD\uFFFD\uFFFD\uFFFD\uFFFD\uFFFDA"},
      {"\xED\xA0\x80\xED\xBF\xBF\xED\xAF\x41", "\uFFFD\uFFFD\uFFFD\uFFFD\uFFFD\uFFFD\uFFFD\uFFFDA"},
      {"\xE1\x80\xE2\xF0\x91\x92\xF1\xBF\x41", "\uFFFD\uFFFD\uFFFD\uFFFDA"},
      {"\xF4\x91\x92\x93\xFF\x41\x80\xBF\x42", "\uFFFD\uFFFD\uFFFD\uFFFD\uFFFDA\uFFFD\uFFFDB"},
      {"\xF4\x8F\xBF\xBF\xEE\x80\x80", "\U0010FFFF\uE000"},
      {"x\xF0\x9F\x98", "x\uFFFD"}};
  for (const Case& c : cases) EXPECT_EQ(Stream(*tokenizer_, c.bytes), c.text);
}

TEST_F(DetokenizerTest, GivesTheSameTextHoweverTheBytesAreCutIntoTokens) {
  Prng prng(Seed());
  for (int round = 0; round < 5'000; ++round) {
    Detokenizer pairs(tokenizer_.get());
    std::string bytes, text;
    const uint64_t count = prng.Below(12);
    for (uint64_t i = 0; i < count; ++i) {
      // Mostly the pairs and the bytes that they are made of.
      static constexpr int32_t kIds[] = {256, 257, 258, 259, 0xE4, 0xB8, 0xAD, 0xF0, 0x9F, 0x98};
      const TokenId id{prng.Chance(80) ? kIds[prng.Below(std::size(kIds))]
                                       : static_cast<int32_t>(prng.Below(256))};
      const absl::string_view token = *tokenizer_->Bytes(id);
      bytes.append(token.data(), token.size());
      const std::string delta = *pairs.Push(id);
      ASSERT_EQ(ValidUtf8Prefix(delta), delta.size());
      text += delta;
    }
    text += pairs.Flush();
    ASSERT_EQ(text, Stream(*tokenizer_, bytes));
  }
}

TEST_F(DetokenizerTest, RefusesAnUnknownId) {
  Detokenizer detokenizer(tokenizer_.get());
  EXPECT_FALSE(detokenizer.Push(TokenId{260}).ok());
  EXPECT_FALSE(detokenizer.Push(TokenId{-1}).ok());
  EXPECT_EQ(*detokenizer.Push(TokenId{'a'}), "a");
}

struct Stopped {
  std::string text;
  std::string stop;
};

// At each end from the left, the longest stop string that ends there.
Stopped NaiveSearch(const std::string& text, const std::vector<std::string>& stops) {
  for (size_t end = 1; end <= text.size(); ++end) {
    std::string longest;
    for (const std::string& stop : stops) {
      const bool ends_here =
          stop.size() <= end && text.compare(end - stop.size(), stop.size(), stop) == 0;
      if (ends_here && stop.size() > longest.size()) longest = stop;
    }
    if (!longest.empty()) return {text.substr(0, end - longest.size()), longest};
  }
  return {text, ""};
}

// Whether some stop string could still begin in what has been shown.
bool ShowsABeginning(const std::string& seen, size_t shown, const std::vector<std::string>& stops) {
  for (const std::string& stop : stops) {
    for (size_t size = 1; size <= std::min(stop.size(), seen.size()); ++size) {
      const bool is_open = seen.compare(seen.size() - size, size, stop, 0, size) == 0;
      if (is_open && seen.size() - size < shown) return true;
    }
  }
  return false;
}

TEST(StopStringsTest, FindsThemAcrossAnyCutsAndShowsNoBeginningOfOne) {
  Prng prng(Seed());
  const auto random_text = [&prng](uint64_t max_size) {
    std::string text;
    const uint64_t size = prng.Below(max_size + 1);
    for (uint64_t i = 0; i < size; ++i) text += static_cast<char>('a' + prng.Below(2));
    return text;
  };
  for (int round = 0; round < 20'000; ++round) {
    std::vector<std::string> stops(prng.Below(4));
    for (std::string& stop : stops) stop = random_text(6);
    const std::string text = random_text(40);
    const Stopped expected = NaiveSearch(text, stops);

    StopStrings search(stops);
    std::string shown, stop;
    for (size_t at = 0; at < text.size() && stop.empty();) {
      const size_t size = std::min<size_t>(prng.Below(5), text.size() - at);
      const StopStrings::Result result = search.Push(text.substr(at, size));
      at += size;
      shown += result.text;
      stop = result.stop;
      ASSERT_EQ(result.stopped, !stop.empty());
      ASSERT_TRUE(result.stopped || !ShowsABeginning(text.substr(0, at), shown.size(), stops));
    }
    shown += search.Flush();
    ASSERT_EQ(shown, expected.text) << "in " << text;
    ASSERT_EQ(stop, expected.stop) << "in " << text;
  }
}

TEST(StopStringsTest, HoldsNothingBackWithoutStopStrings) {
  StopStrings search(std::vector<std::string>{""});
  EXPECT_EQ(search.Push("text").text, "text");
  EXPECT_EQ(search.Flush(), "");
}

TEST(StopStringsTest, DropsAllTextAfterAStop) {
  StopStrings search({"END"});
  EXPECT_EQ(search.Push("one E").text, "one ");
  const StopStrings::Result stopped = search.Push("ND two");
  EXPECT_EQ(stopped.text, "");
  EXPECT_EQ(stopped.stop, "END");
  EXPECT_TRUE(search.Push("three").stopped);
  EXPECT_EQ(search.Push("three").text, "");
  EXPECT_EQ(search.Flush(), "");
}

// A search that begins anew at each byte, or a buffer that moves at each call, would look at
// 2 * 10^11 bytes here.
TEST(StopStringsTest, IsLinearForHostileStopStrings) {
  constexpr size_t kStopSize = 200'000;
  constexpr size_t kTextSize = 1'000'000;
  StopStrings search({std::string(kStopSize, 'a') + "b"});
  size_t num_shown = 0;
  for (size_t i = 0; i < kTextSize; ++i) num_shown += search.Push("a").text.size();
  EXPECT_EQ(num_shown, kTextSize - kStopSize);
  EXPECT_EQ(search.Push("b").stop.size(), kStopSize + 1);
}

}  // namespace
}  // namespace shoal
