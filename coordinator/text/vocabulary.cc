#include "coordinator/text/vocabulary.h"

#include <algorithm>
#include <string>

#include "absl/strings/escaping.h"
#include "absl/strings/str_cat.h"

#include "base/status_macros.h"

namespace shoal {
namespace {

template <typename... Parts>
absl::Status Refuse(const Parts&... parts) {
  return absl::InvalidArgumentError(absl::StrCat("tokenizer.json: ", parts...));
}

size_t IndexOf(TokenId id) {
  return static_cast<size_t>(id.value);
}

uint64_t PairKey(TokenId left, TokenId right) {
  return static_cast<uint64_t>(static_cast<uint32_t>(left.value)) << 32 |
         static_cast<uint32_t>(right.value);
}

}  // namespace

absl::StatusOr<std::unique_ptr<Vocabulary>> Vocabulary::Create(TokenizerFile file) {
  auto vocabulary = std::unique_ptr<Vocabulary>(new Vocabulary(&file));
  RETURN_IF_ERROR(vocabulary->AddSpecials(file.added_tokens));
  RETURN_IF_ERROR(vocabulary->AddOrdinary(file.token_ids));
  RETURN_IF_ERROR(vocabulary->AddMerges(file.merges));
  return vocabulary;
}

Vocabulary::Vocabulary(TokenizerFile* file)
    : bytes_(std::move(file->tokens)), specials_({}), ignores_merges_(file->ignore_merges) {
  int32_t size = 0;
  for (const TokenId id : file->token_ids) size = std::max(size, id.value + 1);
  for (const auto& token : file->added_tokens) size = std::max(size, token.id.value + 1);
  index_of_id_.assign(static_cast<size_t>(size), kNone);
  first_special_ = TokenId{size};
  id_of_byte_.fill(kNone);
}

absl::Status Vocabulary::AddSpecials(const std::vector<TokenizerFile::AddedToken>& added) {
  std::vector<MarkerSet::Marker> markers;
  for (const TokenizerFile::AddedToken& token : added) {
    int32_t& index = index_of_id_[IndexOf(token.id)];
    if (index != kNone) return Refuse("two added tokens have id ", token.id.value);
    index = static_cast<int32_t>(bytes_.size());
    bytes_.Append(token.content);
    markers.push_back({token.content, token.id});
    first_special_ = std::min(first_special_, token.id);
  }
  specials_ = MarkerSet(std::move(markers));

  const std::vector<MarkerSet::Marker>& sorted = specials_.markers();
  const auto twice =
      std::adjacent_find(sorted.begin(), sorted.end(), [](const auto& a, const auto& b) {
        return a.spelling == b.spelling;
      });
  if (twice != sorted.end()) return Refuse("the added token ", twice->spelling, " stands twice");
  return absl::OkStatus();
}

absl::Status Vocabulary::AddOrdinary(const std::vector<TokenId>& ids) {
  ordinary_.reserve(ids.size());
  for (size_t i = 0; i < ids.size(); ++i) {
    const TokenId id = ids[i];
    const absl::string_view bytes = bytes_[i];
    int32_t& index = index_of_id_[IndexOf(id)];
    if (index != kNone) {
      // Some files list their special tokens in the vocabulary as well.
      const bool is_listed_special = id >= first_special_ && specials_.Find(bytes) == id;
      if (is_listed_special) continue;
      return Refuse("id ",
                    id.value,
                    " stands for \"",
                    absl::CHexEscape(bytes),
                    "\" and for \"",
                    absl::CHexEscape(bytes_[static_cast<size_t>(index)]),
                    "\"");
    }
    if (id > first_special_) {
      return Refuse("special tokens must have the largest ids: ",
                    first_special_.value,
                    " is one, ",
                    id.value,
                    " is none");
    }
    if (!ordinary_.emplace(bytes, id).second) {
      return Refuse("the token \"", absl::CHexEscape(bytes), "\" stands twice in model.vocab");
    }
    index = static_cast<int32_t>(i);
    if (bytes.size() == 1) id_of_byte_[static_cast<uint8_t>(bytes[0])] = id.value;
  }
  return absl::OkStatus();
}

absl::Status Vocabulary::AddMerges(const ByteStrings& merges) {
  ranks_.reserve(merges.size() / 2);
  merged_.reserve(merges.size() / 2);
  for (size_t i = 0; i < merges.size(); i += 2) {
    const std::optional<TokenId> left = Find(merges[i]);
    const std::optional<TokenId> right = Find(merges[i + 1]);
    const std::optional<TokenId> merged = Find(merges.Joined(i, 2));
    if (!left || !right || !merged) {
      return Refuse("merge ",
                    i / 2,
                    " of \"",
                    absl::CHexEscape(merges[i]),
                    "\" and \"",
                    absl::CHexEscape(merges[i + 1]),
                    "\": these two or what they make are not in model.vocab");
    }
    const auto rank = static_cast<MergeRank>(merged_.size());
    merged_.push_back(*merged);
    if (!ranks_.emplace(PairKey(*left, *right), rank).second) {
      return Refuse("merge ",
                    i / 2,
                    " stands twice: \"",
                    absl::CHexEscape(merges[i]),
                    "\" and \"",
                    absl::CHexEscape(merges[i + 1]),
                    "\"");
    }
  }
  return absl::OkStatus();
}

std::optional<TokenId> Vocabulary::Find(absl::string_view bytes) const {
  const auto at = ordinary_.find(bytes);
  if (at == ordinary_.end()) return std::nullopt;
  return at->second;
}

std::optional<TokenId> Vocabulary::OfByte(uint8_t byte) const {
  const int32_t id = id_of_byte_[byte];
  if (id == kNone) return std::nullopt;
  return TokenId{id};
}

std::optional<absl::string_view> Vocabulary::Bytes(TokenId id) const {
  if (id.value < 0 || id.value >= size()) return std::nullopt;
  const int32_t index = index_of_id_[IndexOf(id)];
  if (index == kNone) return std::nullopt;
  return bytes_[static_cast<size_t>(index)];
}

Vocabulary::MergeRank Vocabulary::RankOf(TokenId left, TokenId right) const {
  const auto at = ranks_.find(PairKey(left, right));
  return at == ranks_.end() ? kNoMerge : at->second;
}

}  // namespace shoal
