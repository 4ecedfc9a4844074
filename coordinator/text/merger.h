// Byte-pair merges of one piece: from single bytes, the most urgent merge first, the leftmost of
// equals, until none is possible. Holds scratch memory, so that a long text allocates little; not
// thread-safe, one per call of Encode.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "absl/status/status.h"
#include "absl/strings/string_view.h"

#include "base/ids.h"
#include "coordinator/text/vocabulary.h"

namespace shoal {

class Merger {
 public:
  // `vocabulary` outlives this.
  explicit Merger(const Vocabulary* vocabulary) : vocabulary_(*vocabulary) {}

  // Appends the tokens of text[begin, end). kInvalidArgument: a byte that no token has, with its
  // offset in `text`. REQUIRES: begin < end <= text.size() < 2^31.
  absl::Status Append(absl::string_view text, size_t begin, size_t end, std::vector<TokenId>* ids);

 private:
  using MergeRank = Vocabulary::MergeRank;
  using Position = uint32_t;  // Of a part: the offset of its first byte in the piece

  // Up to here looking at all pairs for each merge is faster than keeping them in order.
  static constexpr size_t kMaxScanned = 48;

  void MergeByScanning();
  void MergeByQueue();
  void Offer(Position left);
  void Join(Position left);

  const Vocabulary& vocabulary_;
  std::vector<TokenId> tokens_;     // In: one for each byte. Out: the result
  std::vector<MergeRank> ranks_;    // Of each part and the next; kNoMerge
  std::vector<Position> next_;      // Only of the queue; the piece's size after the last part
  std::vector<Position> previous_;  // Only of the queue
  // The queue: ranks that some pair has or had, as a heap with the smallest on top, and the
  // positions of each.
  std::vector<MergeRank> queued_;
  absl::flat_hash_map<MergeRank, std::vector<Position>> positions_;
};

}  // namespace shoal
