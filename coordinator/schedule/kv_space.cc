#include "coordinator/schedule/kv_space.h"

#include <algorithm>
#include <optional>

#include "base/check.h"

namespace shoal {

KvSpace::KvSpace(int32_t num_full_blocks, int32_t num_window_blocks, int32_t window)
    : window_(window), full_(num_full_blocks), window_blocks_(num_window_blocks) {}

int32_t KvSpace::FirstVisibleBlock(int32_t position) const {
  return std::max(0, position - window_ + 1) / kPlanBlockTokens;
}

std::vector<PrefixIndex::Match> KvSpace::Usable(absl::string_view scope,
                                                std::span<const TokenId> tokens) const {
  // The last token is always computed: its logits are what the next one is sampled from.
  if (tokens.empty()) return {};
  std::vector<PrefixIndex::Match> matches = index_.Find(scope, tokens.first(tokens.size() - 1));
  if (window_ == 0) return matches;
  const auto has_window = [&](int32_t num_blocks) {
    for (int32_t b = FirstVisibleBlock(num_blocks * kPlanBlockTokens); b < num_blocks; ++b) {
      if (matches[static_cast<size_t>(b)].window == kNoBlock) return false;
    }
    return true;
  };
  while (!has_window(static_cast<int32_t>(matches.size()))) matches.pop_back();
  return matches;
}

int32_t KvSpace::CachedPositions(absl::string_view scope, std::span<const TokenId> tokens) const {
  return static_cast<int32_t>(Usable(scope, tokens).size()) * kPlanBlockTokens;
}

int32_t KvSpace::Adopt(absl::string_view scope,
                       std::span<const TokenId> tokens,
                       BlockTable* table) {
  CHECK(table->full.empty());
  const std::vector<PrefixIndex::Match> matches = Usable(scope, tokens);
  const int32_t num_blocks = static_cast<int32_t>(matches.size());
  const int32_t positions = num_blocks * kPlanBlockTokens;
  table->first_window = window_ == 0 ? num_blocks : FirstVisibleBlock(positions);
  for (int32_t b = 0; b < num_blocks; ++b) {
    const PrefixIndex::Match& match = matches[static_cast<size_t>(b)];
    full_.Share(match.full);
    table->full.push_back(match.full);
    const bool is_visible = b >= table->first_window;
    if (is_visible) window_blocks_.Share(match.window);
    table->window.push_back(is_visible ? match.window : kNoBlock);
  }
  table->num_published = num_blocks;
  table->node = num_blocks > 0 ? matches.back().node : PrefixIndex::kNone;
  return positions;
}

int32_t KvSpace::ReachablePositions(const BlockTable& table) const {
  int32_t more = full_.num_available();
  if (window_ > 0) more = std::min(more, window_blocks_.num_available());
  return (static_cast<int32_t>(table.full.size()) + more) * kPlanBlockTokens;
}

bool KvSpace::Grow(int32_t positions, BlockTable* table) {
  if (positions > ReachablePositions(*table)) return false;
  for (int32_t b = static_cast<int32_t>(table->full.size()); b < NumBlocks(positions); ++b) {
    table->full.push_back(TakeFull());
    table->window.push_back(window_ > 0 ? TakeWindow() : kNoBlock);
  }
  return true;
}

BlockId KvSpace::TakeFull() {
  const std::optional<BlockPool::Taken> taken = full_.Take();
  CHECK(taken.has_value());
  if (taken->was_cached) index_.ForgetFull(taken->block);
  return taken->block;
}

BlockId KvSpace::TakeWindow() {
  const std::optional<BlockPool::Taken> taken = window_blocks_.Take();
  CHECK(taken.has_value());
  if (taken->was_cached) index_.ForgetWindow(taken->block);
  return taken->block;
}

void KvSpace::Publish(absl::string_view scope,
                      std::span<const TokenId> tokens,
                      int32_t computed,
                      BlockTable* table) {
  for (int32_t b = table->num_published; (b + 1) * kPlanBlockTokens <= computed; ++b) {
    const size_t index = static_cast<size_t>(b);
    const auto edge = tokens.subspan(index * kPlanBlockTokens, kPlanBlockTokens);
    // The parent may have vanished meanwhile, if its known blocks were another sequence's: then
    // this branch ends here.
    const PrefixIndex::NodeId parent = b == 0 ? index_.Root(scope) : table->node;
    table->node = index_.Extend(parent, edge);
    table->num_published = b + 1;
    if (table->node == PrefixIndex::kNone) continue;
    if (index_.SetFull(table->node, table->full[index])) full_.MarkCached(table->full[index]);
    const BlockId window_block = table->window[index];
    if (window_block != kNoBlock && index_.SetWindow(table->node, window_block)) {
      window_blocks_.MarkCached(window_block);
    }
  }
}

void KvSpace::Slide(int32_t next_position, BlockTable* table) {
  if (window_ == 0) return;
  const int32_t end =
      std::min(FirstVisibleBlock(next_position), static_cast<int32_t>(table->window.size()));
  for (; table->first_window < end; ++table->first_window) {
    BlockId& block = table->window[static_cast<size_t>(table->first_window)];
    window_blocks_.Release(block);
    block = kNoBlock;
  }
}

void KvSpace::Release(BlockTable* table) {
  // The tail first: of two cached blocks the one deeper in the prefix is of less use.
  for (size_t b = table->full.size(); b-- > 0;) {
    full_.Release(table->full[b]);
    if (table->window[b] != kNoBlock) window_blocks_.Release(table->window[b]);
  }
  *table = BlockTable();
}

bool KvSpace::CouldEverHold(int32_t positions) const {
  if (NumBlocks(positions) > full_.num_blocks()) return false;
  // The positions that the next one sees, wherever the block borders lie, and the next one's.
  const int32_t visible = std::min(NumBlocks(positions), NumBlocks(window_ - 1) + 2);
  return window_ == 0 || visible <= window_blocks_.num_blocks();
}

}  // namespace shoal
