// The token ids and sampling settings of sequences, kept by their home rank. A sequence's progress
// is the length of its record, nothing else. Pure.
#pragma once

#include <cstdint>
#include <map>
#include <vector>

#include "absl/status/status.h"

#include "base/ids.h"
#include "proto/cluster.h"

namespace shoal {

struct Record {
  SequenceId sequence;
  int32_t prompt_length = 0;
  SamplingSettings sampling;
  std::vector<TokenId> tokens;  // Prompt, then output
  std::string envelope;         // Not opened here
};

class Records {
 public:
  // kDataLoss: a token already there differs. kFailedPrecondition: a gap, or index > 0 of an
  // unknown one.
  absl::Status Keep(const KeepRecord& message);

  // The home rank sampled the token at `position`. Equal tokens may be written again; a different
  // one is kDataLoss, a gap kFailedPrecondition.
  absl::Status Append(SequenceId sequence, int32_t position, TokenId token);

  const Record* Find(SequenceId sequence) const;
  void Forget(SequenceId sequence);

  void ForgetAll() { records_.clear(); }

  size_t size() const { return records_.size(); }

 private:
  std::map<SequenceId, Record> records_;
};

}  // namespace shoal
