#include "coordinator/schedule/prefix_index.h"

#include <vector>

#include "gtest/gtest.h"

namespace shoal {
namespace {

std::vector<TokenId> Block(int32_t first) {
  std::vector<TokenId> tokens;
  for (int32_t i = 0; i < kPlanBlockTokens; ++i) tokens.push_back(TokenId{first + i});
  return tokens;
}

std::vector<TokenId> Join(std::initializer_list<std::vector<TokenId>> parts) {
  std::vector<TokenId> all;
  for (const auto& part : parts) all.insert(all.end(), part.begin(), part.end());
  return all;
}

TEST(PrefixIndexTest, FindsTheLeadingBlocksThatAreKnown) {
  PrefixIndex index;
  const auto a = index.Extend(index.Root("t"), Block(0));
  const auto b = index.Extend(a, Block(100));
  ASSERT_TRUE(index.SetFull(a, BlockId{4}));
  ASSERT_TRUE(index.SetFull(b, BlockId{5}));
  ASSERT_TRUE(index.SetWindow(b, BlockId{9}));

  const auto matches = index.Find("t", Join({Block(0), Block(100), Block(200)}));

  ASSERT_EQ(matches.size(), 2u);
  EXPECT_EQ(matches[0].full, BlockId{4});
  EXPECT_EQ(matches[0].window, kNoBlock);
  EXPECT_EQ(matches[1].full, BlockId{5});
  EXPECT_EQ(matches[1].window, BlockId{9});
}

TEST(PrefixIndexTest, APartialBlockOrOneOtherTokenIsNoMatch) {
  PrefixIndex index;
  index.SetFull(index.Extend(index.Root("t"), Block(0)), BlockId{4});
  std::vector<TokenId> shorter = Block(0);
  shorter.pop_back();
  std::vector<TokenId> other = Block(0);
  other.back().value += 1;

  EXPECT_TRUE(index.Find("t", shorter).empty());
  EXPECT_TRUE(index.Find("t", other).empty());
}

TEST(PrefixIndexTest, ScopesDoNotSeeEachOther) {
  PrefixIndex index;
  index.SetFull(index.Extend(index.Root("one"), Block(0)), BlockId{4});

  EXPECT_TRUE(index.Find("two", Block(0)).empty());
  EXPECT_EQ(index.Find("one", Block(0)).size(), 1u);
}

TEST(PrefixIndexTest, TheFirstBlockAtANodeStays) {
  PrefixIndex index;
  const auto node = index.Extend(index.Root("t"), Block(0));
  EXPECT_TRUE(index.SetFull(node, BlockId{4}));
  EXPECT_FALSE(index.SetFull(node, BlockId{5}));
  EXPECT_EQ(index.Find("t", Block(0))[0].full, BlockId{4});
}

TEST(PrefixIndexTest, AMissingBlockHidesWhatIsBehindItUntilItIsKnownAgain) {
  PrefixIndex index;
  const auto a = index.Extend(index.Root("t"), Block(0));
  const auto b = index.Extend(a, Block(100));
  index.SetFull(a, BlockId{4});
  index.SetFull(b, BlockId{5});
  const auto tokens = Join({Block(0), Block(100)});

  index.ForgetFull(BlockId{4});
  EXPECT_TRUE(index.Find("t", tokens).empty());

  EXPECT_TRUE(index.SetFull(index.Extend(index.Root("t"), Block(0)), BlockId{7}));
  EXPECT_EQ(index.Find("t", tokens).size(), 2u);
}

TEST(PrefixIndexTest, NothingIsLeftWhenTheLastBlockIsForgotten) {
  PrefixIndex index;
  const auto a = index.Extend(index.Root("t"), Block(0));
  const auto b = index.Extend(a, Block(100));
  index.SetFull(a, BlockId{4});
  index.SetFull(b, BlockId{5});
  index.SetWindow(b, BlockId{6});

  index.ForgetFull(BlockId{4});
  index.ForgetFull(BlockId{5});
  EXPECT_EQ(index.size(), 3u);  // The window block still holds the branch
  index.ForgetWindow(BlockId{6});

  EXPECT_EQ(index.size(), 0u);
  EXPECT_EQ(index.Extend(b, Block(200)), PrefixIndex::kNone);
  EXPECT_FALSE(index.SetFull(b, BlockId{8}));
}

}  // namespace
}  // namespace shoal
