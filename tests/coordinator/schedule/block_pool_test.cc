#include "coordinator/schedule/block_pool.h"

#include <algorithm>
#include <deque>
#include <map>
#include <vector>

#include "gtest/gtest.h"

#include "base/prng.h"

namespace shoal {
namespace {

TEST(BlockPoolTest, GivesEveryBlockOnceAndThenNone) {
  BlockPool pool(3);
  std::vector<BlockId> taken;
  for (int i = 0; i < 3; ++i) taken.push_back(pool.Take()->block);

  std::sort(taken.begin(), taken.end());
  EXPECT_EQ(taken, (std::vector<BlockId>{BlockId{0}, BlockId{1}, BlockId{2}}));
  EXPECT_FALSE(pool.Take().has_value());
  EXPECT_EQ(pool.num_held(), 3);
}

TEST(BlockPoolTest, ASharedBlockReturnsWithItsLastHolder) {
  BlockPool pool(1);
  const BlockId block = pool.Take()->block;
  pool.Share(block);

  pool.Release(block);
  EXPECT_FALSE(pool.Take().has_value());
  pool.Release(block);
  EXPECT_TRUE(pool.Take().has_value());
}

TEST(BlockPoolTest, TakesFreeBlocksBeforeCachedOnesAndThoseByAge) {
  BlockPool pool(3);
  const BlockId a = pool.Take()->block;
  const BlockId b = pool.Take()->block;
  pool.MarkCached(a);
  pool.MarkCached(b);
  pool.Release(b);
  pool.Release(a);

  EXPECT_FALSE(pool.Take()->was_cached);
  const auto second = pool.Take();
  const auto third = pool.Take();
  EXPECT_EQ(second->block, b);
  EXPECT_TRUE(second->was_cached);
  EXPECT_EQ(third->block, a);
}

TEST(BlockPoolTest, ACachedBlockThatIsSharedAgainIsHeld) {
  BlockPool pool(1);
  const BlockId block = pool.Take()->block;
  pool.MarkCached(block);
  pool.Release(block);
  EXPECT_EQ(pool.num_cached(), 1);

  pool.Share(block);

  EXPECT_EQ(pool.num_cached(), 0);
  EXPECT_EQ(pool.num_held(), 1);
  EXPECT_FALSE(pool.Take().has_value());
}

TEST(BlockPoolDeathTest, MisuseIsOurBug) {
  BlockPool pool(2);
  EXPECT_DEATH(pool.Release(BlockId{0}), "CHECK failed");  // Not held
  EXPECT_DEATH(pool.Share(BlockId{0}), "CHECK failed");    // Free: its content means nothing
  EXPECT_DEATH(pool.Release(BlockId{2}), "CHECK failed");  // No such block
}

// The obvious program: holders by block, and a queue of cached blocks by age.
struct Model {
  std::map<BlockId, int> holders;
  std::map<BlockId, bool> is_prefix;
  std::deque<BlockId> cached;
};

TEST(BlockPoolTest, BehavesAsTheObviousProgram) {
  constexpr int32_t kBlocks = 5;
  for (uint64_t seed = 1; seed <= 300; ++seed) {
    Prng prng(seed);
    BlockPool pool(kBlocks);
    Model model;
    for (int step = 0; step < 200; ++step) {
      const BlockId block{static_cast<int32_t>(prng.Below(kBlocks))};
      const bool is_held = model.holders[block] > 0;
      const auto cached = std::find(model.cached.begin(), model.cached.end(), block);
      switch (prng.Below(4)) {
        case 0: {
          const auto taken = pool.Take();
          const int num_held = static_cast<int>(std::count_if(
              model.holders.begin(), model.holders.end(), [](auto& h) { return h.second > 0; }));
          ASSERT_EQ(taken.has_value(), num_held < kBlocks) << "seed " << seed;
          if (!taken.has_value()) break;
          ASSERT_EQ(model.holders[taken->block], 0) << "seed " << seed;
          const bool had_free = num_held + static_cast<int>(model.cached.size()) < kBlocks;
          ASSERT_EQ(taken->was_cached, !had_free) << "seed " << seed;
          if (taken->was_cached) {
            ASSERT_EQ(taken->block, model.cached.front()) << "seed " << seed;
            model.cached.pop_front();
          }
          model.holders[taken->block] = 1;
          model.is_prefix[taken->block] = false;
          break;
        }
        case 1:
          if (!is_held) break;
          pool.Release(block);
          if (--model.holders[block] == 0 && model.is_prefix[block]) model.cached.push_back(block);
          break;
        case 2:
          if (!is_held && cached == model.cached.end()) break;
          pool.Share(block);
          ++model.holders[block];
          if (cached != model.cached.end()) model.cached.erase(cached);
          break;
        default:
          if (!is_held) break;
          pool.MarkCached(block);
          model.is_prefix[block] = true;
      }
      ASSERT_EQ(pool.num_cached(), static_cast<int32_t>(model.cached.size())) << "seed " << seed;
      ASSERT_EQ(pool.num_free() + pool.num_cached() + pool.num_held(), kBlocks);
      for (const auto& [id, holders] : model.holders) ASSERT_EQ(pool.holders(id), holders);
    }
  }
}

}  // namespace
}  // namespace shoal
