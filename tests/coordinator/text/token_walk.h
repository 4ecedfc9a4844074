// Random walks through masks: what a model without any sense would write under a constraint.
#pragma once

#include <cstdint>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/string_view.h"

#include "base/prng.h"
#include "coordinator/text/token_set.h"
#include "coordinator/text/tokenizer.h"
#include "tests/coordinator/text/tokenizer_json.h"

namespace shoal {

// All bytes, and what JSON is often made of, in pieces that do not respect its structure.
inline TestVocabulary JsonVocabulary(std::vector<std::string> specials) {
  const std::vector<std::string> words = {
      "{\"",      "\":",      "\":\"",    "\",",        "\",\"", "\"}",   "\"]",   "},",
      "],",       "}]",       "[{",       "[[",         "]]",    "}}",    "[\"",   ": ",
      ", ",       "\": ",     "\", \"",   "true",       "false", "null",  "tr",    "ue",
      "name",     "id",       "ids",      "a\"",        "\\n",   "\\\"",  "\\u00", "\\ud83d",
      "\xC3\xA9", "\xE2\x82", "\xF0\x9F", "\x98\x80",   "12",    "0.5",   "e+",    "-1",
      "10",       "99",       "00",       "0,",         "1}",    "x\":1", "}\n",   " \"",
      "  ",       "\\",       "abc",      "hello world"};
  std::vector<std::pair<std::string, std::string>> merges;
  for (const std::string& word : words) {
    for (size_t length = 2; length <= word.size(); ++length) {
      const std::string left = word.substr(0, length - 1);
      merges.emplace_back(left, word.substr(length - 1, 1));
    }
  }
  std::vector<std::pair<std::string, std::string>> distinct;
  for (auto& merge : merges) {
    bool is_new = true;
    for (const auto& other : distinct) is_new = is_new && other != merge;
    if (is_new) distinct.push_back(merge);
  }
  return MakeTestVocabulary(std::move(distinct), std::move(specials));
}

inline std::vector<TokenId> Members(const TokenSet& set, int32_t num_ids) {
  std::vector<TokenId> members;
  for (int32_t id = 0; id < num_ids; ++id) {
    if (set.Has(TokenId{id})) members.push_back(TokenId{id});
  }
  return members;
}

// One of `allowed`. Early, anything; later rather what closes something, so that walks end.
inline TokenId Choose(const TokenSet& allowed, const Tokenizer& tokenizer, int step, Prng* prng) {
  const std::vector<TokenId> members = Members(allowed, tokenizer.size());
  std::vector<TokenId> closing;
  for (const TokenId id : members) {
    const absl::string_view bytes = *tokenizer.Bytes(id);
    const bool closes = bytes == "\"" || bytes == "}" || bytes == "]" || bytes == "\"}" ||
                        bytes == "\"]" || bytes == "\":" || tokenizer.IsSpecial(id);
    if (closes) closing.push_back(id);
  }
  const bool wants_end = !closing.empty() && prng->Chance(step < 30 ? 20 : 90);
  const std::vector<TokenId>& from = wants_end ? closing : members;
  return from[prng->Below(from.size())];
}

}  // namespace shoal
