// Token ids <-> bytes, special tokens, and which two tokens merge into which. Immutable after
// Create; thread-safe. About 20 MB for the release's 200,019 tokens and 446,189 merges.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <utility>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"

#include "base/ids.h"
#include "coordinator/text/byte_strings.h"
#include "coordinator/text/marker_set.h"
#include "coordinator/text/tokenizer_file.h"

namespace shoal {

class Vocabulary {
 public:
  // The place of a merge in the file: the smaller, the more urgent. A token's bytes always merge
  // in the same way, whatever is around them; so it makes no difference whether the file has that
  // one merge for each token or (the release) every way to split it into two tokens.
  using MergeRank = int32_t;
  static constexpr MergeRank kNoMerge = -1;

  // kInvalidArgument: an id or a spelling stands twice, a merge names an unknown token, a special
  // token has an id among the ordinary ones.
  static absl::StatusOr<std::unique_ptr<Vocabulary>> Create(TokenizerFile file);

  Vocabulary(const Vocabulary&) = delete;
  Vocabulary& operator=(const Vocabulary&) = delete;

  // Ordinary tokens only: a special token is never found by its bytes here.
  std::optional<TokenId> Find(absl::string_view bytes) const;
  // The ordinary token of one byte; nullopt: the vocabulary has none.
  std::optional<TokenId> OfByte(uint8_t byte) const;

  // nullopt: no such id. A special token's bytes are its spelling.
  std::optional<absl::string_view> Bytes(TokenId id) const;

  bool IsSpecial(TokenId id) const { return id >= first_special_ && Bytes(id).has_value(); }

  const MarkerSet& specials() const { return specials_; }

  TokenId first_special() const { return first_special_; }  // size(), if there are none

  int32_t size() const { return static_cast<int32_t>(index_of_id_.size()); }  // Largest id + 1

  // kNoMerge if the two do not merge.
  MergeRank RankOf(TokenId left, TokenId right) const;

  TokenId MergedToken(MergeRank rank) const { return merged_[static_cast<size_t>(rank)]; }

  // A piece that is itself a token is that token, whatever its merges would give.
  bool ignores_merges() const { return ignores_merges_; }

 private:
  static constexpr int32_t kNone = -1;

  explicit Vocabulary(TokenizerFile* file);

  absl::Status AddSpecials(const std::vector<TokenizerFile::AddedToken>& added);
  absl::Status AddOrdinary(const std::vector<TokenId>& ids);
  absl::Status AddMerges(const ByteStrings& merges);

  ByteStrings bytes_;                 // Of all tokens: in the order of the file, then the specials
  std::vector<int32_t> index_of_id_;  // Into bytes_; kNone
  MarkerSet specials_;
  TokenId first_special_;
  bool ignores_merges_;
  absl::flat_hash_map<absl::string_view, TokenId> ordinary_;  // Views into bytes_
  std::array<int32_t, 256> id_of_byte_;                       // kNone
  absl::flat_hash_map<uint64_t, MergeRank> ranks_;            // By left id << 32 | right id
  std::vector<TokenId> merged_;                               // By rank
};

}  // namespace shoal
