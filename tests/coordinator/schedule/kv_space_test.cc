#include "coordinator/schedule/kv_space.h"

#include <algorithm>
#include <vector>

#include "gtest/gtest.h"

namespace shoal {
namespace {

constexpr int32_t kBlock = kPlanBlockTokens;

std::vector<TokenId> Tokens(int32_t length, int32_t first = 0) {
  std::vector<TokenId> tokens;
  for (int32_t i = 0; i < length; ++i) tokens.push_back(TokenId{first + i});
  return tokens;
}

int32_t NumWindowBlocks(const BlockTable& table) {
  int32_t num = 0;
  for (const BlockId block : table.window) num += block != kNoBlock ? 1 : 0;
  return num;
}

TEST(KvSpaceTest, AWindowBlockLeavesExactlyWhenNoLaterPositionSeesIt) {
  // Position p sees [p - window + 1, p]. Over every window and position: the block of position
  // p - window + 1 is there, and none before it.
  for (int32_t window = 1; window <= 3 * kBlock; ++window) {
    KvSpace space(10, 10, window);
    BlockTable table;
    ASSERT_TRUE(space.Grow(8 * kBlock, &table));
    for (int32_t p = 0; p <= 8 * kBlock; ++p) {
      space.Slide(p, &table);
      const int32_t oldest = std::max(0, p - window + 1) / kBlock;
      for (int32_t b = 0; b < 8; ++b) {
        ASSERT_EQ(table.window[static_cast<size_t>(b)] != kNoBlock, b >= oldest)
            << "window " << window << " position " << p << " block " << b;
      }
    }
    space.Release(&table);
    ASSERT_EQ(space.window_blocks().num_free(), 10);
  }
}

TEST(KvSpaceTest, GrowTakesBothKindsOrNothing) {
  KvSpace space(4, 2, 64);
  BlockTable table;

  EXPECT_EQ(space.ReachablePositions(table), 2 * kBlock);
  EXPECT_FALSE(space.Grow(2 * kBlock + 1, &table));
  EXPECT_EQ(space.full().num_held(), 0);
  EXPECT_TRUE(space.Grow(kBlock + 1, &table));
  EXPECT_EQ(space.full().num_held(), 2);
  EXPECT_EQ(space.window_blocks().num_held(), 2);
}

TEST(KvSpaceTest, WithoutWindowLayersThereAreNoWindowBlocks) {
  KvSpace space(4, 0, 0);
  BlockTable table;
  ASSERT_TRUE(space.Grow(4 * kBlock, &table));
  EXPECT_EQ(table.window, std::vector<BlockId>(4, kNoBlock));
  space.Slide(100, &table);
  space.Release(&table);
  EXPECT_EQ(space.full().num_free(), 4);
}

TEST(KvSpaceTest, APrefixIsSharedInWholeBlocksButNeverAllOfThePrompt) {
  KvSpace space(10, 10, 2 * kBlock);
  const std::vector<TokenId> tokens = Tokens(2 * kBlock + 5);
  BlockTable first;
  ASSERT_TRUE(space.Grow(2 * kBlock + 5, &first));
  space.Publish("t", tokens, 2 * kBlock + 5, &first);

  struct Case {
    const char* name;
    std::vector<TokenId> prompt;
    int32_t shared;
  };

  const Case cases[] = {{"longer", Tokens(3 * kBlock), 2 * kBlock},
                        {"one more", Tokens(2 * kBlock + 1), 2 * kBlock},
                        {"exactly the blocks", Tokens(2 * kBlock), kBlock},
                        {"one block", Tokens(kBlock), 0},
                        {"other", Tokens(2 * kBlock + 1, 7), 0}};
  for (const Case& c : cases) EXPECT_EQ(space.CachedPositions("t", c.prompt), c.shared) << c.name;
  EXPECT_EQ(space.CachedPositions("u", Tokens(3 * kBlock)), 0);

  BlockTable second;
  EXPECT_EQ(space.Adopt("t", Tokens(2 * kBlock + 1), &second), 2 * kBlock);
  EXPECT_EQ(second.full[0], first.full[0]);
  EXPECT_EQ(second.window[1], first.window[1]);
  EXPECT_EQ(space.full().holders(first.full[0]), 2);
}

TEST(KvSpaceTest, APrefixEndsWhereItsWindowBlocksAreStillThere) {
  // The first sequence has slid on: window blocks 0 and 1 have left it. With a window of one block
  // the prefix of 3 blocks needs window block 2 only.
  KvSpace space(10, 4, kBlock);
  const std::vector<TokenId> tokens = Tokens(4 * kBlock);
  BlockTable first;
  ASSERT_TRUE(space.Grow(3 * kBlock, &first));
  space.Publish("t", tokens, 3 * kBlock, &first);
  space.Slide(3 * kBlock, &first);
  ASSERT_EQ(NumWindowBlocks(first), 1);

  EXPECT_EQ(space.CachedPositions("t", tokens), 3 * kBlock);

  // Another sequence takes all the window blocks that were cached, the one still held excepted.
  BlockTable second;
  ASSERT_TRUE(space.Grow(3 * kBlock, &second));
  EXPECT_EQ(space.CachedPositions("t", tokens), 3 * kBlock);
  // Without the last one no prefix has the window before its end.
  space.Release(&second);
  space.Release(&first);
  ASSERT_TRUE(space.Grow(4 * kBlock, &second));
  EXPECT_EQ(space.CachedPositions("t", tokens), 0);
}

TEST(KvSpaceTest, BlocksTakenFromTheCacheAreForgotten) {
  KvSpace space(2, 2, kBlock);
  BlockTable table;
  ASSERT_TRUE(space.Grow(2 * kBlock, &table));
  space.Publish("t", Tokens(2 * kBlock), 2 * kBlock, &table);
  space.Release(&table);
  ASSERT_EQ(space.full().num_cached(), 2);

  ASSERT_TRUE(space.Grow(2 * kBlock, &table));

  EXPECT_EQ(space.CachedPositions("t", Tokens(2 * kBlock)), 0);
  EXPECT_EQ(space.index().size(), 0u);
}

TEST(KvSpaceTest, EqualPrefixesOfTwoSequencesLeaveNoBlockBehind) {
  KvSpace space(6, 6, kBlock);
  const std::vector<TokenId> tokens = Tokens(3 * kBlock);
  BlockTable a;
  BlockTable b;
  ASSERT_TRUE(space.Grow(3 * kBlock, &a));
  ASSERT_TRUE(space.Grow(3 * kBlock, &b));
  space.Publish("t", tokens, 3 * kBlock, &a);
  space.Publish("t", tokens, 3 * kBlock, &b);

  space.Release(&a);
  space.Release(&b);

  EXPECT_EQ(space.full().num_held(), 0);
  EXPECT_EQ(space.full().num_cached(), 3);  // One copy of each is a known prefix
  EXPECT_EQ(space.full().num_free(), 3);
}

}  // namespace
}  // namespace shoal
