#include "coordinator/text/pretokenizer.h"

#include <algorithm>
#include <array>
#include <cstdint>
#include <optional>
#include <vector>

#include "base/check.h"
#include "coordinator/text/utf8.h"

namespace shoal {
namespace {

// What the split rules can tell apart. Every code point has exactly one class.
enum class CharClass : uint8_t {
  kOther,
  kUpper,    // Lu, Lt: only in the upper-side set
  kLower,    // Ll: only in the lower-side set
  kCommon,   // Lm, Lo: letters of both sets
  kMark,     // M: in both sets, yet no letter
  kNumber,   // N
  kNewline,  // CR, LF
  kSpace,    // Other White_Space
  kEnd,      // Behind the last character
};

// A set of classes, one bit each.
using ClassSet = uint32_t;

constexpr ClassSet Set(CharClass c) {
  return 1u << static_cast<unsigned>(c);
}

constexpr ClassSet kUpperSet = Set(CharClass::kUpper);
constexpr ClassSet kBothSides = Set(CharClass::kCommon) | Set(CharClass::kMark);
constexpr ClassSet kUpperSide = kUpperSet | kBothSides;
constexpr ClassSet kLowerSide = Set(CharClass::kLower) | kBothSides;
constexpr ClassSet kLetters = kUpperSet | Set(CharClass::kLower) | Set(CharClass::kCommon);
constexpr ClassSet kPunctuation = Set(CharClass::kOther) | Set(CharClass::kMark);
constexpr ClassSet kBlank = Set(CharClass::kNewline) | Set(CharClass::kSpace);
// May stand, once, before a word: all but CR, LF, letters and numbers.
constexpr ClassSet kWordPrefix = kPunctuation | Set(CharClass::kSpace);

struct ClassRange {
  uint32_t first, last;  // Code points, both included
  CharClass char_class;
};

constexpr ClassRange kRanges[] = {
#include "coordinator/text/unicode_classes.inc"
};

// Code point -> class in two steps: 256 code points are a page, and equal pages (the many all-Han
// and all-unassigned ones) are kept once, which makes it about 40 KiB.
class ClassTable {
 public:
  ClassTable() {
    std::vector<CharClass> flat(kNumPages * kPageSize, CharClass::kOther);
    for (const ClassRange& range : kRanges) {
      std::fill(flat.begin() + range.first, flat.begin() + range.last + 1, range.char_class);
    }
    for (size_t i = 0; i < kNumPages; ++i) {
      Page page;
      std::copy_n(flat.begin() + static_cast<ptrdiff_t>(i * kPageSize), kPageSize, page.begin());
      const auto at = std::find(pages_.begin(), pages_.end(), page);
      index_[i] = static_cast<uint8_t>(at - pages_.begin());
      if (at == pages_.end()) pages_.push_back(page);
    }
    CHECK_LE(pages_.size(), 256u);  // index_ holds bytes
  }

  CharClass Get(uint32_t code_point) const {
    return pages_[index_[code_point / kPageSize]][code_point % kPageSize];
  }

 private:
  static constexpr size_t kPageSize = 256;
  static constexpr size_t kNumPages = 0x110000 / kPageSize;
  using Page = std::array<CharClass, kPageSize>;

  std::array<uint8_t, kNumPages> index_{};
  std::vector<Page> pages_;
};

const ClassTable& Classes() {
  static const ClassTable table;
  return table;
}

class Scanner {
 public:
  explicit Scanner(absl::string_view text) : text_(text), classes_(Classes()) {}

  size_t PieceEnd(size_t begin) const {
    const Character first = Read(begin);
    if (const std::optional<size_t> end = WordPiece(begin, first)) return *end + Contraction(*end);
    if (first.char_class == CharClass::kNumber) return NumberEnd(begin);
    if (const std::optional<size_t> end = PunctuationPiece(begin, first)) return *end;
    return BlankEnd(begin);
  }

 private:
  struct Character {
    CharClass char_class = CharClass::kEnd;
    size_t end = 0;  // Where the next one begins

    bool In(ClassSet set) const { return (Set(char_class) & set) != 0; }
  };

  Character Read(size_t at) const {
    if (at >= text_.size()) return {CharClass::kEnd, at};
    const Utf8Sequence sequence = ReadUtf8(text_, at);
    return {classes_.Get(sequence.code_point), at + sequence.size};
  }

  bool Has(size_t at, char wanted) const { return at < text_.size() && text_[at] == wanted; }

  // The end of the longest run of `set` that begins at `at`; `at` itself if there is none.
  size_t RunEnd(size_t at, ClassSet set) const {
    for (Character c = Read(at); c.In(set); c = Read(at)) at = c.end;
    return at;
  }

  // Alternatives 1 and 2, without the contraction. The class of the first character says which of
  // "with prefix" and "without" can match; only a mark can be both, and "with" is tried first.
  std::optional<size_t> WordPiece(size_t begin, Character first) const {
    if (first.In(kLetters)) {
      const std::optional<size_t> end = MixedWord(begin);
      return end ? end : UpperWord(begin);
    }
    if (!first.In(kWordPrefix)) return std::nullopt;
    if (const std::optional<size_t> end = MixedWord(first.end)) return end;
    if (first.char_class == CharClass::kMark) return MixedWord(begin);
    return UpperWord(first.end);
  }

  // [upper side]*[lower side]+ : the body of alternative 1. Marks, Lm and Lo are on both sides, so
  // a run of the upper side is given back up to the last of them if no lower case follows.
  std::optional<size_t> MixedWord(size_t begin) const {
    std::optional<size_t> last_common_end;
    size_t at = begin;
    Character c = Read(at);
    for (; c.In(kUpperSide); c = Read(at)) {
      at = c.end;
      if (c.In(kBothSides)) last_common_end = at;
    }
    if (c.char_class == CharClass::kLower) return RunEnd(at, kLowerSide);
    return last_common_end;
  }

  // The body of alternative 2 where alternative 1 failed: nothing but Lu and Lt can be left.
  std::optional<size_t> UpperWord(size_t begin) const {
    const size_t end = RunEnd(begin, kUpperSet);
    if (end == begin) return std::nullopt;
    return end;
  }

  // Bytes of 's 't 'm 'd 're 've 'll in any case at `at`; 0 if none is there. U+017F (long s)
  // equals s when case is ignored.
  size_t Contraction(size_t at) const {
    if (!Has(at, '\'') || at + 1 == text_.size()) return 0;
    const auto lower = [this](size_t i) {
      return i < text_.size() ? static_cast<char>(text_[i] | 0x20) : '\0';
    };
    const char first = lower(at + 1);
    if (first == 's' || first == 't' || first == 'm' || first == 'd') return 2;
    const char second = lower(at + 2);
    if ((first == 'r' || first == 'v') && second == 'e') return 3;
    if (first == 'l' && second == 'l') return 3;
    return Has(at + 1, '\xC5') && Has(at + 2, '\xBF') ? 3 : 0;
  }

  // Alternative 3: at most three.
  size_t NumberEnd(size_t begin) const {
    size_t end = begin;
    for (int i = 0; i < 3; ++i) {
      const Character c = Read(end);
      if (c.char_class != CharClass::kNumber) break;
      end = c.end;
    }
    return end;
  }

  // Alternative 4: one U+0020 may lead, line breaks and slashes may follow.
  std::optional<size_t> PunctuationPiece(size_t begin, Character first) const {
    const size_t run = Has(begin, ' ') ? first.end : begin;
    size_t end = RunEnd(run, kPunctuation);
    if (end == run) return std::nullopt;
    while (Has(end, '\r') || Has(end, '\n') || Has(end, '/')) ++end;
    return end;
  }

  // Alternatives 5 to 7: up to the last line break of the run; or else all but the last
  // character, which goes with what follows; or else all.
  size_t BlankEnd(size_t begin) const {
    size_t end = begin;
    size_t last_begin = begin;
    size_t newline_end = begin;
    for (Character c = Read(end); c.In(kBlank); c = Read(end)) {
      last_begin = end;
      end = c.end;
      if (c.char_class == CharClass::kNewline) newline_end = end;
    }
    CHECK_GT(end, begin);  // Every other class has matched an alternative above
    if (newline_end > begin) return newline_end;
    return end == text_.size() || last_begin == begin ? end : last_begin;
  }

  const absl::string_view text_;
  const ClassTable& classes_;
};

}  // namespace

size_t PieceEnd(absl::string_view text, size_t begin) {
  return Scanner(text).PieceEnd(begin);
}

bool IsLetterOrNumber(uint32_t code_point) {
  return (Set(Classes().Get(code_point)) & (kLetters | Set(CharClass::kNumber))) != 0;
}

}  // namespace shoal
