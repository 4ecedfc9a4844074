// tokenizer.json as written by Hugging Face's library, read and checked, but not yet interpreted.
// Only byte-level BPE with the split rules of o200k is understood; all else is refused by name.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"

#include "base/ids.h"
#include "coordinator/text/byte_strings.h"

namespace shoal {

struct TokenizerFile {
  struct AddedToken {
    TokenId id;
    std::string content;
  };

  ByteStrings tokens;              // The vocabulary's bytes, in the order of the file
  std::vector<TokenId> token_ids;  // Of each of `tokens`
  ByteStrings merges;              // Two strings for each merge, most urgent merge first
  std::vector<AddedToken> added_tokens;
  bool ignore_merges = false;  // A piece that is a token needs no merges
};

// Ids are below this, twenty times the release's vocabulary: a wrong file shall not make us
// allocate for an id of two thousand million.
inline constexpr int64_t kMaxNumTokenIds = 1 << 22;

// kInvalidArgument says what is missing or not understood, and where.
absl::StatusOr<TokenizerFile> ReadTokenizerFile(absl::string_view json);

}  // namespace shoal
