#include "coordinator/text/merger.h"

#include <algorithm>
#include <functional>
#include <limits>
#include <optional>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"

#include "base/check.h"

namespace shoal {

absl::Status Merger::Append(absl::string_view text,
                            size_t begin,
                            size_t end,
                            std::vector<TokenId>* ids) {
  if (vocabulary_.ignores_merges() || end - begin == 1) {
    if (const std::optional<TokenId> whole = vocabulary_.Find(text.substr(begin, end - begin))) {
      ids->push_back(*whole);
      return absl::OkStatus();
    }
  }

  tokens_.clear();
  for (size_t at = begin; at < end; ++at) {
    const auto byte = static_cast<uint8_t>(text[at]);
    const std::optional<TokenId> token = vocabulary_.OfByte(byte);
    if (!token) {
      return absl::InvalidArgumentError(absl::StrFormat(
          "the tokenizer has no token for the byte 0x%02X at offset %u of the text", byte, at));
    }
    tokens_.push_back(*token);
  }
  ranks_.assign(tokens_.size(), Vocabulary::kNoMerge);
  for (size_t i = 0; i + 1 < tokens_.size(); ++i) {
    ranks_[i] = vocabulary_.RankOf(tokens_[i], tokens_[i + 1]);
  }

  if (tokens_.size() <= kMaxScanned) {
    MergeByScanning();
  } else {
    MergeByQueue();
  }
  ids->insert(ids->end(), tokens_.begin(), tokens_.end());
  return absl::OkStatus();
}

// Quadratic in a size of at most kMaxScanned. As unsigned numbers, kNoMerge is the largest rank.
void Merger::MergeByScanning() {
  const auto is_more_urgent = [](MergeRank a, MergeRank b) {
    return static_cast<uint32_t>(a) < static_cast<uint32_t>(b);
  };
  while (true) {
    const auto best = std::min_element(ranks_.begin(), ranks_.end(), is_more_urgent);
    if (*best == Vocabulary::kNoMerge) return;
    const auto left = static_cast<size_t>(best - ranks_.begin());
    tokens_[left] = vocabulary_.MergedToken(*best);
    tokens_.erase(tokens_.begin() + static_cast<ptrdiff_t>(left) + 1);
    ranks_.erase(best);
    ranks_[left] = left + 1 < tokens_.size() ? vocabulary_.RankOf(tokens_[left], tokens_[left + 1])
                                             : Vocabulary::kNoMerge;
    if (left > 0) ranks_[left - 1] = vocabulary_.RankOf(tokens_[left - 1], tokens_[left]);
  }
}

// The same with a list of parts and a queue of pairs. All pairs of one rank are joined in one sweep
// in the order in which they were offered: joining a pair never makes another of the same rank,
// because what it makes is longer than what that rank makes. So the heap holds each rank once, and
// a text of one repeated character, whose pairs have a handful of ranks, takes linear time.
//
// Why a sweep goes from the left where that matters: the bytes of a token always merge in the same
// order, whatever is around them, as merges across its borders did not happen. So of the pairs of
// one rank only those of one token in a row overlap; these tokens were made in one sweep, from the
// left by the same argument, and offered in its order.
//
// A position in the queue is stale if ranks_ says something else by now. A pair only grows, so no
// rank comes back to a place.
void Merger::MergeByQueue() {
  const auto size = static_cast<Position>(tokens_.size());
  next_.resize(size);
  previous_.resize(size);
  for (Position i = 0; i < size; ++i) {
    next_[i] = i + 1;
    previous_[i] = i - 1;  // Not read for the first
  }
  queued_.clear();
  positions_.clear();
  for (Position i = 0; i + 1 < size; ++i) Offer(i);

  while (!queued_.empty()) {
    const MergeRank rank = queued_.front();
    std::pop_heap(queued_.begin(), queued_.end(), std::greater<>());
    queued_.pop_back();
    const auto node = positions_.extract(rank);
    std::vector<Position> sweep = std::move(node.mapped());
    for (size_t i = 0; i < sweep.size(); ++i) {
      if (ranks_[sweep[i]] != rank) continue;
      Join(sweep[i]);
      // Only where a token is more urgent than one of its parts; then that one goes first.
      if (queued_.empty() || queued_.front() > rank) continue;
      for (++i; i < sweep.size(); ++i) {
        if (ranks_[sweep[i]] == rank) Offer(sweep[i]);
      }
    }
  }

  size_t num_tokens = 0;
  for (Position i = 0; i < size; i = next_[i]) tokens_[num_tokens++] = tokens_[i];
  tokens_.resize(num_tokens);
}

// Queues the pair that begins at `left`, if it merges.
void Merger::Offer(Position left) {
  const MergeRank rank = ranks_[left];
  if (rank == Vocabulary::kNoMerge) return;
  std::vector<Position>& positions = positions_[rank];
  if (positions.empty()) {
    queued_.push_back(rank);
    std::push_heap(queued_.begin(), queued_.end(), std::greater<>());
  }
  positions.push_back(left);
}

// Merges the part at `left` with the next one, whose pair is in ranks_[left].
void Merger::Join(Position left) {
  const auto size = static_cast<Position>(next_.size());
  const Position right = next_[left];
  CHECK_LT(right, size);
  tokens_[left] = vocabulary_.MergedToken(ranks_[left]);
  ranks_[right] = Vocabulary::kNoMerge;
  const Position after = next_[right];
  next_[left] = after;
  ranks_[left] = Vocabulary::kNoMerge;
  if (after < size) {
    previous_[after] = left;
    ranks_[left] = vocabulary_.RankOf(tokens_[left], tokens_[after]);
    Offer(left);
  }
  if (left > 0) {
    const Position before = previous_[left];
    ranks_[before] = vocabulary_.RankOf(tokens_[before], tokens_[left]);
    Offer(before);
  }
}

}  // namespace shoal
