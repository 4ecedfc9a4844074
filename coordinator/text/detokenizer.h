// Token ids -> text, one by one. Holds back bytes that may become a UTF-8 character; ill-formed
// parts become U+FFFD (maximal subparts, Unicode 15 section 3.9). A pure function of the tokens so
// far.
#pragma once

#include <string>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"

#include "base/ids.h"
#include "coordinator/text/tokenizer.h"

namespace shoal {

class Detokenizer {
 public:
  explicit Detokenizer(const Tokenizer* tokenizer) : tokenizer_(*tokenizer) {}

  // The text that is complete after this token; kInvalidArgument for an unknown id.
  absl::StatusOr<std::string> Push(TokenId id);
  // What is left at the end.
  std::string Flush();

 private:
  const Tokenizer& tokenizer_;
  std::string held_;  // An incomplete UTF-8 character: at most 3 bytes
};

}  // namespace shoal
