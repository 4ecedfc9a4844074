#include "coordinator/text/detokenizer.h"

#include <optional>

#include "absl/strings/str_cat.h"

#include "coordinator/text/utf8.h"

namespace shoal {
namespace {

constexpr absl::string_view kReplacement = "\xEF\xBF\xBD";  // U+FFFD

}  // namespace

absl::StatusOr<std::string> Detokenizer::Push(TokenId id) {
  const std::optional<absl::string_view> bytes = tokenizer_.Bytes(id);
  if (!bytes) {
    return absl::InvalidArgumentError(absl::StrCat(
        "the tokenizer has no token ", id.value, "; ids are below ", tokenizer_.size()));
  }
  absl::StrAppend(&held_, *bytes);
  std::string text;
  size_t at = 0;
  while (at < held_.size()) {
    const Utf8Sequence sequence = ReadUtf8(held_, at);
    if (sequence.kind == Utf8Sequence::Kind::kIncomplete) break;
    const bool is_whole = sequence.kind == Utf8Sequence::Kind::kCharacter;
    absl::StrAppend(&text,
                    is_whole ? absl::string_view(held_).substr(at, sequence.size) : kReplacement);
    at += sequence.size;
  }
  held_.erase(0, at);
  return text;
}

std::string Detokenizer::Flush() {
  if (held_.empty()) return "";
  held_.clear();
  return std::string(kReplacement);
}

}  // namespace shoal
