// The physical K/V blocks of one kind (full or window layers) in one rank's memory: who holds
// which.
#pragma once

#include <cstdint>
#include <map>
#include <optional>
#include <vector>

#include "base/ids.h"

namespace shoal {

// Every block is in exactly one of three states:
//   held    at least one holder (a sequence whose table names it)
//   cached  no holder, but its content is a known prefix; taken last, least recently used first
//   free    no holder, content unknown
// Deterministic: the same calls give the same blocks.
class BlockPool {
 public:
  explicit BlockPool(int32_t num_blocks);

  struct Taken {
    BlockId block;
    bool was_cached = false;  // Its content is lost: the prefix index has to forget it
  };

  // A block with one holder; nullopt if every block is held.
  std::optional<Taken> Take();

  // One holder more. REQUIRES: held or cached.
  void Share(BlockId block);

  // One holder less. REQUIRES: held.
  void Release(BlockId block);

  // The content is a known prefix: the block becomes cached when its last holder leaves.
  // REQUIRES: held.
  void MarkCached(BlockId block);

  int32_t num_blocks() const { return static_cast<int32_t>(blocks_.size()); }

  int32_t num_held() const { return num_blocks() - num_free() - num_cached(); }

  int32_t num_cached() const { return static_cast<int32_t>(cached_.size()); }

  int32_t num_free() const { return static_cast<int32_t>(free_.size()); }

  int32_t num_available() const { return num_free() + num_cached(); }

  int32_t holders(BlockId block) const;

 private:
  struct Block {
    int32_t holders = 0;
    bool is_prefix = false;
    uint64_t last_use = 0;  // Key in cached_, while it is there
  };

  Block& At(BlockId block);

  std::vector<Block> blocks_;
  std::vector<BlockId> free_;           // Taken from the back
  std::map<uint64_t, BlockId> cached_;  // By last use
  uint64_t uses_ = 0;
};

}  // namespace shoal
