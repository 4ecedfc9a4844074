#include "coordinator/text/tokenizer.h"

#include <algorithm>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"

#include "base/status_macros.h"
#include "coordinator/text/marker_set.h"
#include "coordinator/text/merger.h"
#include "coordinator/text/pretokenizer.h"
#include "coordinator/text/tokenizer_file.h"
#include "coordinator/text/utf8.h"
#include "coordinator/text/vocabulary.h"

namespace shoal {
namespace {

constexpr size_t kMaxTextBytes = size_t{1} << 30;  // Positions in a piece have 32 bits

class BytePairTokenizer final : public Tokenizer {
 public:
  explicit BytePairTokenizer(std::unique_ptr<Vocabulary> vocabulary)
      : vocabulary_(std::move(vocabulary)) {}

  absl::StatusOr<std::vector<TokenId>> Encode(absl::string_view text,
                                              const SpecialTokens& special) const override {
    if (text.size() > kMaxTextBytes) {
      return absl::InvalidArgumentError(absl::StrCat(
          "a text of ", text.size(), " bytes cannot be encoded; at most ", kMaxTextBytes));
    }
    if (const size_t valid = ValidUtf8Prefix(text); valid < text.size()) {
      return absl::InvalidArgumentError(absl::StrCat("invalid UTF-8 at byte ", valid));
    }
    switch (special.mode) {
      case SpecialTokens::Mode::kNone:
        break;
      case SpecialTokens::Mode::kAll:
        return Encode(text, vocabulary_->specials());
      case SpecialTokens::Mode::kListed: {
        ASSIGN_OR_RETURN(const MarkerSet listed, Listed(special.listed));
        return Encode(text, listed);
      }
    }
    return Encode(text, MarkerSet({}));
  }

  std::optional<absl::string_view> Bytes(TokenId id) const override {
    return vocabulary_->Bytes(id);
  }

  bool IsSpecial(TokenId id) const override { return vocabulary_->IsSpecial(id); }

  std::optional<TokenId> Special(absl::string_view marker) const override {
    return vocabulary_->specials().Find(marker);
  }

  TokenId FirstSpecial() const override { return vocabulary_->first_special(); }

  int32_t size() const override { return vocabulary_->size(); }

 private:
  absl::StatusOr<MarkerSet> Listed(std::vector<std::string> spellings) const {
    std::sort(spellings.begin(), spellings.end());
    spellings.erase(std::unique(spellings.begin(), spellings.end()), spellings.end());
    std::vector<MarkerSet::Marker> markers;
    for (const std::string& spelling : spellings) {
      const std::optional<TokenId> id = Special(spelling);
      if (!id) {
        return absl::InvalidArgumentError(
            absl::StrCat("the tokenizer has no special token \"", spelling, "\""));
      }
      markers.push_back({spelling, *id});
    }
    return MarkerSet(std::move(markers));
  }

  // REQUIRES: `text` is valid UTF-8. Text on the two sides of a marker is split on its own.
  absl::StatusOr<std::vector<TokenId>> Encode(absl::string_view text,
                                              const MarkerSet& markers) const {
    std::vector<TokenId> ids;
    Merger merger(vocabulary_.get());
    for (size_t at = 0; at < text.size();) {
      const std::optional<MarkerSet::Match> marker = markers.Next(text, at);
      const absl::string_view head = text.substr(0, marker ? marker->begin : text.size());
      while (at < head.size()) {
        const size_t end = PieceEnd(head, at);
        RETURN_IF_ERROR(merger.Append(head, at, end, &ids));
        at = end;
      }
      if (!marker) break;
      ids.push_back(marker->id);
      at = marker->end;
    }
    return ids;
  }

  const std::unique_ptr<const Vocabulary> vocabulary_;
};

}  // namespace

absl::StatusOr<std::unique_ptr<Tokenizer>> Tokenizer::Parse(absl::string_view json) {
  ASSIGN_OR_RETURN(TokenizerFile file, ReadTokenizerFile(json));
  ASSIGN_OR_RETURN(std::unique_ptr<Vocabulary> vocabulary, Vocabulary::Create(std::move(file)));
  return std::unique_ptr<Tokenizer>(new BytePairTokenizer(std::move(vocabulary)));
}

absl::Status RequireHarmonySpecials(const Tokenizer& tokenizer) {
  std::vector<absl::string_view> missing;
  for (const absl::string_view marker : kHarmonySpecials) {
    if (!tokenizer.Special(marker)) missing.push_back(marker);
  }
  if (missing.empty()) return absl::OkStatus();
  return absl::InvalidArgumentError(
      absl::StrCat("tokenizer.json has no special token ",
                   absl::StrJoin(missing, ", "),
                   ", which the harmony format needs; add it to added_tokens, or use the "
                   "tokenizer.json of the release"));
}

}  // namespace shoal
