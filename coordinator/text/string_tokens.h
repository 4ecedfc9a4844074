// What each token does inside a JSON string, found out once: most tokens just stay inside, and the
// few that hold a quote end the string and go on with whatever follows it. So the mask inside a
// string is a copy and a short walk, not a walk through 200,000 tokens.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "absl/strings/string_view.h"

#include "base/ids.h"
#include "coordinator/text/json_string.h"
#include "coordinator/text/token_set.h"
#include "coordinator/text/token_trie.h"

namespace shoal {

class StringTokens {
 public:
  // A token that ends the string: what is before its quote, and after it.
  struct Closing {
    TokenId token;
    absl::string_view before;
    uint32_t num_characters = 0;  // That begin before the quote
    bool has_escape = false;
  };

  struct Table {
    explicit Table(int32_t num_ids) : inside(num_ids) {}

    TokenSet inside;  // Tokens that stay in the string
    // By what follows the quote: index 0 for nothing, i for the string that after_quote() finds as
    // i.
    std::vector<std::vector<Closing>> closing;
  };

  // `tokens` are views that outlive this.
  StringTokens(const std::vector<TokenTrie::Entry>& tokens, int32_t num_ids);

  // nullptr: few tokens fit in that state, and a walk finds them.
  const Table* Find(StringState state) const;

  // From between two characters.
  const TokenSet& InsideWithin(uint32_t max_characters) const;

  const TokenSet& InsideWithoutEscapes() const { return without_escapes_; }

  const TokenTrie& after_quote() const { return *after_quote_; }

 private:
  struct Reading {
    StringState state = StringState::kPlain;
    size_t size = 0;  // Bytes read: all, or those up to the quote
    uint32_t num_characters = 0;
    bool has_escape = false;
  };

  static Reading Read(StringState state, absl::string_view bytes);
  size_t IndexAfterQuote(absl::string_view after);
  void Fill(StringState state, const std::vector<TokenTrie::Entry>& tokens, int32_t num_ids);
  void FillLengths(const std::vector<TokenTrie::Entry>& tokens, int32_t num_ids);

  std::array<std::optional<Table>, kNumStringStates> tables_;
  std::vector<TokenSet> within_;  // By characters
  TokenSet without_escapes_;
  absl::flat_hash_map<absl::string_view, size_t> index_after_quote_;
  std::unique_ptr<TokenTrie> after_quote_;
};

}  // namespace shoal
