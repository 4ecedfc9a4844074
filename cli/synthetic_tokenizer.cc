#include "cli/synthetic_tokenizer.h"

#include <array>
#include <functional>
#include <utility>

#include "absl/strings/str_cat.h"
#include "nlohmann/json.hpp"

#include "base/check.h"

namespace shoal {
namespace {

// The released file's split pattern, as a JSON string.
constexpr char kPattern[] =
    R"("[^\\r\\n\\p{L}\\p{N}]?[\\p{Lu}\\p{Lt}\\p{Lm}\\p{Lo}\\p{M}]*[\\p{Ll}\\p{Lm}\\p{Lo}\\p{M}]+)"
    R"((?i:'s|'t|'re|'ve|'m|'ll|'d)?|)"
    R"([^\\r\\n\\p{L}\\p{N}]?[\\p{Lu}\\p{Lt}\\p{Lm}\\p{Lo}\\p{M}]+[\\p{Ll}\\p{Lm}\\p{Lo}\\p{M}]*)"
    R"((?i:'s|'t|'re|'ve|'m|'ll|'d)?|)"
    R"(\\p{N}{1,3}| ?[^\\s\\p{L}\\p{N}]+[\\r\\n/]*|\\s*[\\r\\n]+|\\s+(?!\\S)|\\s+")";

constexpr int kReleasedFirstSpecial = 199'998;
constexpr int kReleasedEnd = 200'019;

struct NamedSpecial {
  int released_id;
  const char* name;
};

constexpr NamedSpecial kNamed[] = {{199998, "startoftext"},
                                   {199999, "endoftext"},
                                   {200002, "return"},
                                   {200003, "constrain"},
                                   {200005, "channel"},
                                   {200006, "start"},
                                   {200007, "end"},
                                   {200008, "message"},
                                   {200012, "call"},
                                   {200018, "endofprompt"}};
constexpr int kNumNamed = static_cast<int>(std::size(kNamed));
constexpr int kNumAscii = 0x7F - 0x20 + 2;  // With tab and newline
constexpr int kMinAscii = kNumAscii + kNumNamed;
constexpr int kMinBytes = 256 + kNumNamed;

// A byte as byte-level BPE spells it in JSON: printable Latin-1 as itself, others from U+0100 on.
std::array<std::string, 256> ByteSpellings() {
  std::array<std::string, 256> spellings;
  unsigned next = 0x100;
  for (unsigned byte = 0; byte < 256; ++byte) {
    const bool is_printable = (byte >= 0x21 && byte < 0x7F) || (byte >= 0xA1 && byte != 0xAD);
    const unsigned code = is_printable ? byte : next++;
    std::string& spelling = spellings[byte];
    if (code < 0x80) {
      spelling = static_cast<char>(code);
    } else {
      spelling = {static_cast<char>(0xC0 | code >> 6), static_cast<char>(0x80 | (code & 0x3F))};
    }
  }
  return spellings;
}

using Merge = std::pair<std::string, std::string>;

// The first `count` merges: syllables, syllables behind a space, then words of two syllables, of
// two behind a space, and of three. Both parts of a merge are there before it.
std::vector<Merge> Merges(size_t count, const std::string& space) {
  std::vector<Merge> merges;
  std::vector<std::string> syllables, words;
  const auto add = [&](const std::string& left, const std::string& right) {
    if (merges.size() < count) merges.emplace_back(left, right);
  };
  for (const char consonant : std::string("bcdfghjklmnpqrstvwxz")) {
    for (const char vowel : std::string("aeiou")) {
      add(std::string(1, consonant), std::string(1, vowel));
      syllables.push_back({consonant, vowel});
    }
  }
  for (const std::string& syllable : syllables) add(space, syllable);
  for (const std::string& first : syllables) {
    for (const std::string& second : syllables) {
      add(first, second);
      words.push_back(first + second);
    }
  }
  for (const std::string& first : syllables) {
    for (const std::string& second : syllables) add(space + first, second);
  }
  for (const std::string& word : words) {
    if (merges.size() >= count) break;
    for (const std::string& syllable : syllables) add(word, syllable);
  }
  CHECK_EQ(merges.size(), count);
  return merges;
}

struct Special {
  int id;
  std::string content;
};

std::vector<Special> Specials(int vocab) {
  std::vector<Special> specials;
  if (vocab < kReleasedEnd) {
    for (int i = 0; i < kNumNamed; ++i) {
      specials.push_back({vocab - kNumNamed + i, absl::StrCat("<|", kNamed[i].name, "|>")});
    }
    return specials;
  }
  const NamedSpecial* next = kNamed;
  for (int id = kReleasedFirstSpecial; id < kReleasedEnd; ++id) {
    if (next->released_id == id) {
      specials.push_back({id, absl::StrCat("<|", (next++)->name, "|>")});
    } else {
      specials.push_back({id, absl::StrCat("<|reserved_", id, "|>")});
    }
  }
  return specials;
}

// Spelled bytes hold no control characters, so two escapes are all.
std::string Quoted(const std::string& text) {
  std::string quoted = "\"";
  for (const char c : text) {
    if (c == '"' || c == '\\') quoted += '\\';
    quoted += c;
  }
  return quoted + '"';
}

std::string ByteLevel(bool prefix, bool trim, bool regex) {
  return nlohmann::json{{"type", "ByteLevel"},
                        {"add_prefix_space", prefix},
                        {"trim_offsets", trim},
                        {"use_regex", regex}}
      .dump();
}

// Joins as JSON list elements, one a line.
template <typename T, typename Format>
std::string Lines(const std::vector<T>& items, const Format& format) {
  std::string text;
  for (const T& item : items)
    absl::StrAppend(&text, text.empty() ? "\n    " : ",\n    ", format(item));
  return text + "\n  ";
}

}  // namespace

std::string SyntheticTokenizerJson(int vocab) {
  if (vocab < kMinAscii) return "";
  const std::array<std::string, 256> spellings = ByteSpellings();
  std::vector<std::string> tokens;
  if (vocab < kMinBytes) {
    tokens = {spellings['\t'], spellings['\n']};
    for (unsigned byte = 0x20; byte < 0x7F; ++byte) tokens.push_back(spellings[byte]);
  } else {
    tokens.assign(spellings.begin(), spellings.end());
  }
  const std::vector<Special> specials = Specials(vocab);
  const size_t num_merges = static_cast<size_t>(specials.front().id) - tokens.size();
  const std::vector<Merge> merges = Merges(num_merges, spellings[' ']);
  for (const Merge& merge : merges) tokens.push_back(merge.first + merge.second);

  int id = 0;
  const std::string vocabulary = Lines(
      tokens, [&](const std::string& token) { return absl::StrCat(Quoted(token), ": ", id++); });
  const std::string merge_list = Lines(merges, [](const Merge& merge) {
    return absl::StrCat("[", Quoted(merge.first), ", ", Quoted(merge.second), "]");
  });
  const std::string added = Lines(specials, [](const Special& special) {
    return absl::StrCat("{\"id\": ",
                        special.id,
                        ", \"content\": ",
                        Quoted(special.content),
                        ", \"single_word\": false, \"lstrip\": false, \"rstrip\": false, "
                        "\"normalized\": false, \"special\": true}");
  });
  return absl::StrCat(
      "{\"version\": \"1.0\", \"truncation\": null, \"padding\": null,\n  \"added_tokens\": [",
      added,
      "],\n  \"normalizer\": null,\n  \"pre_tokenizer\": {\"type\": \"Sequence\", ",
      "\"pretokenizers\": [\n    {\"type\": \"Split\", \"pattern\": {\"Regex\": ",
      kPattern,
      "}, \"behavior\": \"Isolated\", \"invert\": false},\n    ",
      ByteLevel(false, true, false),
      "]},\n  \"post_processor\": ",
      ByteLevel(true, false, true),
      ",\n  \"decoder\": ",
      ByteLevel(true, true, true),
      ",\n  \"model\": {\"type\": \"BPE\", \"dropout\": null, \"unk_token\": null, "
      "\"continuing_subword_prefix\": null, \"end_of_word_suffix\": null, \"fuse_unk\": false, "
      "\"byte_fallback\": false, \"ignore_merges\": true,\n  \"vocab\": {",
      vocabulary,
      "},\n  \"merges\": [",
      merge_list,
      "]}}\n");
}

std::vector<int32_t> SyntheticEosIds(int vocab) {
  if (vocab >= kReleasedEnd) return {199999, 200002, 200012};
  if (vocab < kMinAscii) return {};
  const int first = vocab - kNumNamed;
  return {first + 1, first + 2, first + 8};
}

}  // namespace shoal
