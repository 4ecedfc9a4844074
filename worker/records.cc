#include "worker/records.h"

#include <algorithm>
#include <span>

#include "absl/strings/str_cat.h"

#include "base/check.h"

namespace shoal {
namespace {

absl::Status Differs(SequenceId sequence, size_t position) {
  return absl::DataLossError(absl::StrCat(
      "record disagrees: sequence ", sequence.value, " holds another token at ", position));
}

absl::Status Gap(SequenceId sequence, int32_t index, size_t length) {
  return absl::FailedPreconditionError(absl::StrCat(
      "gap in the record of sequence ", sequence.value, ": index ", index, ", length ", length));
}

// Writes `tokens` at `index`. Compares everything before it changes anything.
absl::Status Extend(Record* record, int32_t index, std::span<const TokenId> tokens) {
  const size_t begin = static_cast<size_t>(index);
  if (begin > record->tokens.size()) return Gap(record->sequence, index, record->tokens.size());
  const size_t known = std::min(tokens.size(), record->tokens.size() - begin);
  for (size_t i = 0; i < known; ++i) {
    if (record->tokens[begin + i] != tokens[i]) return Differs(record->sequence, begin + i);
  }
  record->tokens.insert(
      record->tokens.end(), tokens.begin() + static_cast<ptrdiff_t>(known), tokens.end());
  return absl::OkStatus();
}

}  // namespace

absl::Status Records::Keep(const KeepRecord& message) {
  if (message.index < 0) {
    return absl::InvalidArgumentError(absl::StrCat("record index is negative: ", message.index));
  }
  const auto found = records_.find(message.sequence);
  if (message.index > 0) {
    if (found == records_.end()) return Gap(message.sequence, message.index, 0);
    return Extend(&found->second, message.index, message.tokens);
  }
  if (message.prompt_length < 1 ||
      static_cast<size_t>(message.prompt_length) > message.tokens.size()) {
    return absl::InvalidArgumentError(absl::StrCat("record of sequence ",
                                                   message.sequence.value,
                                                   ": prompt length ",
                                                   message.prompt_length,
                                                   " with ",
                                                   message.tokens.size(),
                                                   " tokens"));
  }
  if (found == records_.end()) {
    records_[message.sequence] = Record{.sequence = message.sequence,
                                        .prompt_length = message.prompt_length,
                                        .sampling = message.sampling,
                                        .tokens = message.tokens,
                                        .envelope = message.envelope};
    return absl::OkStatus();
  }
  Record& record = found->second;
  if (record.prompt_length != message.prompt_length || !(record.sampling == message.sampling)) {
    return absl::DataLossError(
        absl::StrCat("record disagrees: sequence ", message.sequence.value, " has other settings"));
  }
  return Extend(&record, 0, message.tokens);
}

absl::Status Records::Append(SequenceId sequence, int32_t position, TokenId token) {
  CHECK_GE(position, 0);
  const auto found = records_.find(sequence);
  if (found == records_.end()) return Gap(sequence, position, 0);
  return Extend(&found->second, position, std::span<const TokenId>(&token, 1));
}

const Record* Records::Find(SequenceId sequence) const {
  const auto found = records_.find(sequence);
  return found == records_.end() ? nullptr : &found->second;
}

void Records::Forget(SequenceId sequence) {
  records_.erase(sequence);
}

}  // namespace shoal
