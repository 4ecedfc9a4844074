#include "coordinator/text/detokenizer.h"

#include <optional>

#include "absl/strings/str_cat.h"

#include "coordinator/text/utf8.h"

namespace shoal {

absl::StatusOr<std::string> Detokenizer::Push(TokenId id) {
  const std::optional<absl::string_view> bytes = tokenizer_.Bytes(id);
  if (!bytes) {
    return absl::InvalidArgumentError(absl::StrCat(
        "the tokenizer has no token ", id.value, "; ids are below ", tokenizer_.size()));
  }
  absl::StrAppend(&held_, *bytes);
  return TakeUtf8(&held_);
}

std::string Detokenizer::Flush() {
  if (held_.empty()) return "";
  held_.clear();
  return std::string(kReplacementCharacter);
}

}  // namespace shoal
