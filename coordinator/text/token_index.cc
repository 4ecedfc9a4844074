#include "coordinator/text/token_index.h"

#include <algorithm>

namespace shoal {
namespace {

std::vector<TokenTrie::Entry> OrdinaryTokens(const Tokenizer& tokenizer, int32_t num_ids) {
  std::vector<TokenTrie::Entry> tokens;
  for (int32_t id = 0; id < num_ids; ++id) {
    const auto bytes = tokenizer.Bytes(TokenId{id});
    const bool is_ordinary = bytes.has_value() && !tokenizer.IsSpecial(TokenId{id});
    if (is_ordinary && bytes->size() <= TokenTrie::kMaxBytes) tokens.emplace_back(*bytes, id);
  }
  return tokens;
}

}  // namespace

TokenIndex::TokenIndex(const Tokenizer& tokenizer, int32_t vocab)
    : TokenIndex(tokenizer,
                 std::min(tokenizer.size(), vocab),
                 OrdinaryTokens(tokenizer, std::min(tokenizer.size(), vocab))) {}

TokenIndex::TokenIndex(const Tokenizer& tokenizer,
                       int32_t num_ids,
                       const std::vector<TokenTrie::Entry>& tokens)
    : tokenizer_(tokenizer),
      num_ids_(num_ids),
      ordinary_(num_ids),
      trie_(tokens),
      strings_(tokens, num_ids) {
  for (const auto& [bytes, id] : tokens) ordinary_.Add(TokenId{id});
}

}  // namespace shoal
