// The scanner against the split rules themselves: a small backtracking matcher that runs the
// seven alternatives as tokenizer.json spells them.
#include <cstdlib>
#include <functional>
#include <iostream>
#include <map>
#include <optional>
#include <string>
#include <vector>

#include "gtest/gtest.h"

#include "base/prng.h"
#include "coordinator/text/pretokenizer.h"

namespace shoal {
namespace {

// One letter for a general category; S for white space, B for a line break. Written by hand from
// the Unicode charts, not from the table under test.
const std::map<char32_t, char>& Alphabet() {
  static const auto* const categories = new std::map<char32_t, char>{
      {U'A', 'U'},         {U'Z', 'U'},      {U'S', 'U'},      {U'R', 'U'},      {U'E', 'U'},
      {U'L', 'U'},         {U'\u0416', 'U'}, {U'\u01C5', 'U'}, {U'a', 'l'},      {U'z', 'l'},
      {U's', 'l'},         {U't', 'l'},      {U'r', 'l'},      {U'e', 'l'},      {U'v', 'l'},
      {U'm', 'l'},         {U'l', 'l'},      {U'd', 'l'},      {U'\u017F', 'l'}, {U'\u00DF', 'l'},
      {U'\u02B0', 'o'},    {U'\u4E2D', 'o'}, {U'\u05D0', 'o'}, {U'\u0301', 'M'}, {U'\u093F', 'M'},
      {U'\uFE0F', 'M'},    {U'0', 'N'},      {U'7', 'N'},      {U'\u00BD', 'N'}, {U'\u2167', 'N'},
      {U'\u0660', 'N'},    {U' ', 'S'},      {U'\t', 'S'},     {U'\v', 'S'},     {U'\u00A0', 'S'},
      {U'\u2028', 'S'},    {U'\u3000', 'S'}, {U'\n', 'B'},     {U'\r', 'B'},     {U'\'', 'P'},
      {U'!', 'P'},         {U'/', 'P'},      {U'-', 'P'},      {U'\u2019', 'P'}, {U'\x1C', 'P'},
      {U'\x7F', 'P'},      {U'\u200B', 'P'}, {U'\u180E', 'P'}, {U'\uFEFF', 'P'}, {U'\uE000', 'P'},
      {U'\U0001F600', 'P'}};
  return *categories;
}

class Matcher {
 public:
  explicit Matcher(const std::u32string& text) : text_(text) {}

  // The end of the leftmost match at `at`: the first alternative that matches.
  size_t End(size_t at) const {
    const std::vector<std::function<std::optional<size_t>()>> alternatives = {
        [&] {
          return Match({{"!UloNB", 0, 1}, {"UoM", 0, kAny}, {"loM", 1, kAny}}, at, kContraction);
        },
        [&] {
          return Match({{"!UloNB", 0, 1}, {"UoM", 1, kAny}, {"loM", 0, kAny}}, at, kContraction);
        },
        [&] {
          return Match({{"N", 1, 3}}, at, kNothing);
        },
        [&] {
          return Match({{" ", 0, 1}, {"!SBUloN", 1, kAny}, {"B/", 0, kAny}}, at, kNothing);
        },
        [&] {
          return Match({{"SB", 0, kAny}, {"B", 1, kAny}}, at, kNothing);
        },
        [&] {
          return Match({{"SB", 1, kAny}}, at, kNoInk);
        },
        [&] {
          return Match({{"SB", 1, kAny}}, at, kNothing);
        }};
    for (const auto& alternative : alternatives) {
      if (const std::optional<size_t> end = alternative()) return *end;
    }
    ADD_FAILURE() << "no alternative matches";
    return text_.size();
  }

 private:
  enum Tail { kNothing, kContraction, kNoInk };

  static constexpr size_t kAny = 1 << 20;

  struct Item {
    // Categories, or ' ' and '/' for themselves; '!' in front: all but these.
    std::string set;
    size_t min, max;
  };

  bool In(const std::string& set, size_t at) const {
    const char32_t c = text_[at];
    const bool is_listed = set.find(Alphabet().at(c)) != std::string::npos ||
                           (c < 0x80 && (c == U' ' || c == U'/') &&
                            set.find(static_cast<char>(c)) != std::string::npos);
    return is_listed != (set[0] == '!');
  }

  std::optional<size_t> Match(const std::vector<Item>& items, size_t at, Tail tail) const {
    return Match(items, 0, at, tail);
  }

  std::optional<size_t> Match(const std::vector<Item>& items,
                              size_t i,
                              size_t at,
                              Tail tail) const {
    if (i == items.size()) return MatchTail(at, tail);
    size_t count = 0;
    while (count < items[i].max && at + count < text_.size() && In(items[i].set, at + count)) {
      ++count;
    }
    for (; count + 1 > items[i].min; --count) {
      if (const auto end = Match(items, i + 1, at + count, tail)) return end;
      if (count == 0) break;
    }
    return std::nullopt;
  }

  std::optional<size_t> MatchTail(size_t at, Tail tail) const {
    if (tail == kNoInk) {
      return at == text_.size() || In("SB", at) ? std::optional<size_t>(at) : std::nullopt;
    }
    if (tail == kNothing) return at;
    for (const std::u32string_view suffix : {U"'s", U"'t", U"'re", U"'ve", U"'m", U"'ll", U"'d"}) {
      if (at + suffix.size() > text_.size()) continue;
      bool is_equal = true;
      for (size_t i = 0; i < suffix.size(); ++i) is_equal &= Folded(text_[at + i]) == suffix[i];
      if (is_equal) return at + suffix.size();
    }
    return at;
  }

  static char32_t Folded(char32_t c) {
    if (c == U'\u017F') return U's';
    return c >= U'A' && c <= U'Z' ? c + 32 : c;
  }

  const std::u32string& text_;
};

std::string Utf8(std::u32string_view text) {
  std::string bytes;
  for (const char32_t c : text) {
    const auto continuation = [c](int shift) {
      return static_cast<char>(0x80 | ((c >> shift) & 0x3F));
    };
    if (c < 0x80) {
      bytes += static_cast<char>(c);
    } else if (c < 0x800) {
      bytes += {static_cast<char>(0xC0 | c >> 6), continuation(0)};
    } else if (c < 0x10000) {
      bytes += {static_cast<char>(0xE0 | c >> 12), continuation(6), continuation(0)};
    } else {
      bytes +=
          {static_cast<char>(0xF0 | c >> 18), continuation(12), continuation(6), continuation(0)};
    }
  }
  return bytes;
}

void ExpectSamePieces(const std::u32string& text) {
  const std::string bytes = Utf8(text);
  const Matcher matcher(text);
  size_t byte_at = 0;
  for (size_t at = 0; at < text.size();) {
    const size_t end = matcher.End(at);
    const std::string expected = Utf8(std::u32string_view(text).substr(at, end - at));
    const size_t byte_end = PieceEnd(bytes, byte_at);
    ASSERT_EQ(bytes.substr(byte_at, byte_end - byte_at), expected) << "in \"" << bytes << "\"";
    at = end;
    byte_at = byte_end;
  }
}

TEST(PretokenizerTest, AgreesWithTheRulesOnEveryShortTextOfItsClasses) {
  // One character for each thing the rules tell apart.
  const std::u32string kinds = U"As\u4E2D\u0301\x37\n \u00A0'/";
  for (size_t length = 1; length <= 5; ++length) {
    std::vector<size_t> digits(length);
    while (true) {
      std::u32string text;
      for (const size_t digit : digits) text += kinds[digit];
      ExpectSamePieces(text);
      if (HasFatalFailure()) return;
      size_t i = 0;
      while (i < length && ++digits[i] == kinds.size()) digits[i++] = 0;
      if (i == length) break;
    }
  }
}

TEST(PretokenizerTest, AgreesWithTheRulesOnRandomTexts) {
  const char* const named = std::getenv("SHOAL_SEED");
  const uint64_t seed = named != nullptr ? std::strtoull(named, nullptr, 10) : 7;
  std::cout << "seed " << seed << "\n";
  Prng prng(seed);
  std::vector<char32_t> characters;
  for (const auto& [character, category] : Alphabet()) characters.push_back(character);
  for (int round = 0; round < 30'000; ++round) {
    std::u32string text;
    const uint64_t length = prng.Below(24);
    while (text.size() < length) {
      const char32_t c = characters[prng.Below(characters.size())];
      text.append(prng.Chance(20) ? 1 + prng.Below(4) : 1, c);
    }
    ExpectSamePieces(text);
    if (HasFatalFailure()) return;
  }
}

// Each must end within the test's time limit; a scanner that looks at every piece's whole
// surroundings would need hours.
TEST(PretokenizerTest, IsLinearOnHostileText) {
  constexpr size_t kRepeats = 1'000'000;
  for (const std::u32string unit : {U"a",
                                    U"A",
                                    U" ",
                                    U"\n",
                                    U"\u0301",
                                    U"\u4E2D"
                                    U"A",
                                    U"\u0301A",
                                    U" \n",
                                    U"\u00A0",
                                    U"!",
                                    U"7",
                                    U"'s",
                                    U" A"}) {
    std::string text;
    const std::string bytes = Utf8(unit);
    for (size_t i = 0; i < kRepeats; ++i) text += bytes;
    text += "x";
    size_t at = 0;
    while (at < text.size()) at = PieceEnd(text, at);
    EXPECT_EQ(at, text.size());
  }
}

}  // namespace
}  // namespace shoal
