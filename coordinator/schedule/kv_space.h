// One rank's K/V memory as the coordinator keeps its books: both kinds of blocks and the prefixes
// they hold. The full layers' blocks of a sequence grow with it; a window layer's block leaves the
// sequence when no later position can see it.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "absl/strings/string_view.h"

#include "base/ids.h"
#include "coordinator/schedule/block_pool.h"
#include "coordinator/schedule/prefix_index.h"

namespace shoal {

// The blocks of one sequence. Index b covers positions [b * kPlanBlockTokens, (b + 1) *
// kPlanBlockTokens). Changed by KvSpace only.
struct BlockTable {
  std::vector<BlockId> full;
  std::vector<BlockId> window;  // Same length; kNoBlock where a block has left
  int32_t first_window = 0;     // No index below has a window block
  int32_t num_published = 0;    // Leading blocks that the prefix index knows or declined
  PrefixIndex::NodeId node = PrefixIndex::kNone;  // Of the last published block
};

class KvSpace {
 public:
  // `window` is the attention span of the window layers; 0: there are none.
  KvSpace(int32_t num_full_blocks, int32_t num_window_blocks, int32_t window);

  // Leading positions of `tokens` whose blocks could be shared: whole blocks, never all of the
  // tokens, and only as far as the window blocks before the end are there too.
  int32_t CachedPositions(absl::string_view scope, std::span<const TokenId> tokens) const;

  // Shares them into an empty table; returns their number.
  int32_t Adopt(absl::string_view scope, std::span<const TokenId> tokens, BlockTable* table);

  // How long the table could grow, in positions, with the blocks available.
  int32_t ReachablePositions(const BlockTable& table) const;

  // Blocks for positions [0, positions). False, changing nothing, if there are not enough.
  bool Grow(int32_t positions, BlockTable* table);

  // Positions [0, computed) hold the K/V of `tokens`: their whole blocks become a known prefix.
  void Publish(absl::string_view scope,
               std::span<const TokenId> tokens,
               int32_t computed,
               BlockTable* table);

  // Every later position is at least `next_position`: gives back the window blocks it cannot see.
  void Slide(int32_t next_position, BlockTable* table);

  // Gives back everything.
  void Release(BlockTable* table);

  // Blocks that a sequence of `positions` needs, alone on this rank.
  bool CouldEverHold(int32_t positions) const;

  int32_t window() const { return window_; }

  const BlockPool& full() const { return full_; }

  const BlockPool& window_blocks() const { return window_blocks_; }

  const PrefixIndex& index() const { return index_; }

 private:
  std::vector<PrefixIndex::Match> Usable(absl::string_view scope,
                                         std::span<const TokenId> tokens) const;
  // First block index with a position that `position` can see.
  int32_t FirstVisibleBlock(int32_t position) const;
  BlockId TakeFull();
  BlockId TakeWindow();

  const int32_t window_;
  BlockPool full_;
  BlockPool window_blocks_;
  PrefixIndex index_;
};

// Blocks that cover `positions`.
constexpr int32_t NumBlocks(int32_t positions) {
  return (positions + kPlanBlockTokens - 1) / kPlanBlockTokens;
}

}  // namespace shoal
