#include "coordinator/schedule/block_pool.h"

#include "base/check.h"

namespace shoal {

BlockPool::BlockPool(int32_t num_blocks) : blocks_(static_cast<size_t>(num_blocks)) {
  free_.reserve(blocks_.size());
  for (int32_t b = num_blocks; b-- > 0;) free_.push_back(BlockId{b});
}

BlockPool::Block& BlockPool::At(BlockId block) {
  CHECK_GE(block.value, 0);
  CHECK_LT(block.value, num_blocks());
  return blocks_[static_cast<size_t>(block.value)];
}

std::optional<BlockPool::Taken> BlockPool::Take() {
  Taken taken;
  if (!free_.empty()) {
    taken.block = free_.back();
    free_.pop_back();
  } else if (!cached_.empty()) {
    taken = {.block = cached_.begin()->second, .was_cached = true};
    cached_.erase(cached_.begin());
  } else {
    return std::nullopt;
  }
  Block& block = At(taken.block);
  CHECK_EQ(block.holders, 0);
  block.holders = 1;
  block.is_prefix = false;
  return taken;
}

void BlockPool::Share(BlockId id) {
  Block& block = At(id);
  if (block.holders == 0) {
    CHECK(block.is_prefix);
    CHECK_EQ(cached_.erase(block.last_use), 1u);
  }
  ++block.holders;
}

void BlockPool::Release(BlockId id) {
  Block& block = At(id);
  CHECK_GT(block.holders, 0);
  if (--block.holders > 0) return;
  if (!block.is_prefix) {
    free_.push_back(id);
    return;
  }
  block.last_use = ++uses_;
  cached_.emplace(block.last_use, id);
}

void BlockPool::MarkCached(BlockId id) {
  Block& block = At(id);
  CHECK_GT(block.holders, 0);
  block.is_prefix = true;
}

int32_t BlockPool::holders(BlockId block) const {
  CHECK_LT(block.value, num_blocks());
  return blocks_[static_cast<size_t>(block.value)].holders;
}

}  // namespace shoal
