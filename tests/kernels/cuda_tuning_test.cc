// Host-side choices of the CUDA backend: what a sum's order depends on is pinned, what must cover
// the work is checked exhaustively.
#include <algorithm>
#include <cstdint>
#include <set>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"

#include "kernels/cuda/chip.h"
#include "kernels/cuda/sampling.h"
#include "kernels/cuda/tuning.h"
#include "kernels/numeric.h"
#include "tests/kernels/arrays.h"

namespace shoal::cuda {
namespace {

// Changing one of these changes bits: a new numerics version.
TEST(LinearSplitTest, TheModelsShapesAreSplitAsTheNumericsSay) {
  EXPECT_EQ(LinearSplit(5'120, 2'880), 3);    // qkv
  EXPECT_EQ(LinearSplit(2'880, 4'096), 5);    // out
  EXPECT_EQ(LinearSplit(128, 2'880), 15);     // router, 120b
  EXPECT_EQ(LinearSplit(32, 2'880), 15);      // router, 20b
  EXPECT_EQ(LinearSplit(201'088, 2'880), 1);  // unembedding
  EXPECT_EQ(LinearSplit(128, 64), 1);
  EXPECT_EQ(kChunkTokens, 64);
}

TEST(LinearSplitTest, PartsCoverTheInputsAndNoneIsEmpty) {
  for (int64_t in = 1; in <= 4'160; in += 13) {
    for (const int64_t out : {1, 64, 128, 2'880, 201'088}) {
      const int split = LinearSplit(out, in);
      const int64_t blocks = CeilDiv(in, 64);
      ASSERT_EQ(SplitBegin(blocks, split, 0), 0);
      ASSERT_EQ(SplitBegin(blocks, split, split), blocks);
      for (int part = 0; part < split; ++part) {
        ASSERT_LT(SplitBegin(blocks, split, part), SplitBegin(blocks, split, part + 1));
      }
    }
  }
}

TEST(LinearTokensTest, AWidthHoldsItsRowsUpToTheWidestDecodeTile) {
  for (int64_t rows = 1; rows <= 64; ++rows) {
    EXPECT_GE(LinearTokens(rows), rows);
    EXPECT_LT(LinearTokens(rows), std::max<int64_t>(9, 2 * rows));
  }
  EXPECT_EQ(LinearTokens(65), kPrefillTokens);
}

// Whatever the pairs' distribution, a launch has a block for each tile.
TEST(ExpertTilesTest, TheBoundHoldsForEverySplitOfTheFewAndForTheWorst) {
  for (const int64_t experts : {1, 3, 8, 128}) {
    for (int64_t pairs = 1; pairs <= 600; ++pairs) {
      const int tokens = ExpertTokens(pairs, experts);
      const int64_t bound = MaxExpertTiles(pairs, experts, tokens);
      // Worst: as many experts as possible have one pair beyond whole tiles.
      const int64_t ones = std::min(pairs, experts);
      const int64_t worst = (pairs - ones) / tokens + ones;
      ASSERT_GE(bound, worst);
      ASSERT_GE(bound, CeilDiv(pairs, tokens));  // All on one expert
      for (uint64_t seed = 0; seed < 4; ++seed) {
        std::vector<int64_t> counts(static_cast<size_t>(experts));
        for (int64_t p = 0; p < pairs; ++p) {
          ++counts[RandomBits(seed, p) % static_cast<uint64_t>(experts)];
        }
        int64_t tiles = 0;
        for (const int64_t count : counts) tiles += CeilDiv(count, tokens);
        ASSERT_GE(bound, tiles);
      }
    }
  }
}

TEST(ExpertTilesTest, OneTokenTakesTheNarrowestTileAndAPromptTheWidest) {
  EXPECT_EQ(ExpertTokens(4, 128), 8);
  EXPECT_EQ(MaxExpertTiles(4, 128, 8), 4);
  EXPECT_EQ(ExpertTokens(4 * 8'192, 128), kPrefillTokens);
}

TEST(ChunksTest, AWindowTouchesNoMoreChunksThanItsBound) {
  for (const int64_t window : {0, 1, 4, 63, 64, 65, 128, 129}) {
    for (int64_t position = 0; position < 700; ++position) {
      const int64_t first = window == 0 ? 0 : std::max<int64_t>(0, position - window + 1);
      const int64_t chunks = position / kChunkTokens - first / kChunkTokens + 1;
      ASSERT_LE(chunks, MaxChunks(position + 1, window)) << window << " " << position;
      ASSERT_LE(chunks, MaxChunks(1'024, window));
    }
  }
  EXPECT_EQ(MaxChunks(131'072, 128), 3);  // One thread block of four chunks merges them all.
}

TEST(PagesTest, WholePagesAreInsideAndAsManyAsFit) {
  static std::byte memory[4 * kPageBytes];
  const auto begin = reinterpret_cast<uintptr_t>(memory);
  for (const size_t from : {0, 1, 16, 4'095, 4'096, 4'100}) {
    for (const size_t bytes : {0, 1, 4'095, 4'096, 8'191, 8'192, 8'300, 12'000}) {
      const std::span<const std::byte> pages = WholePages({memory + from, bytes});
      size_t whole = 0;
      for (uintptr_t page = (begin + from) / kPageBytes; page * kPageBytes < begin + from + bytes;
           ++page) {
        const bool is_inside =
            page * kPageBytes >= begin + from && (page + 1) * kPageBytes <= begin + from + bytes;
        whole += is_inside ? 1 : 0;
      }
      ASSERT_EQ(pages.size(), whole * kPageBytes) << from << " " << bytes;
      if (whole == 0) continue;
      ASSERT_EQ(reinterpret_cast<uintptr_t>(pages.data()) % kPageBytes, 0u);
      ASSERT_GE(pages.data(), memory + from);
      ASSERT_LE(pages.data() + pages.size(), memory + from + bytes);
    }
  }
}

TEST(PagesTest, AnOverlapIsWhatBothHave) {
  const std::byte memory[10]{};
  const std::span<const std::byte> all(memory);
  EXPECT_EQ(Overlap(all.first(6), all.subspan(4)).data(), memory + 4);
  EXPECT_EQ(Overlap(all.first(6), all.subspan(4)).size(), 2u);
  EXPECT_EQ(Overlap(all.subspan(2, 3), all).size(), 3u);
  EXPECT_TRUE(Overlap(all.first(4), all.subspan(4)).empty());
  EXPECT_TRUE(Overlap(all.subspan(8), all.first(2)).empty());
}

TEST(SortKeyTest, OrdersAsLogitsFallAndIdsRise) {
  std::vector<float> logits = RandomFloats(5, 300, 10.0);
  for (const float special : {0.0f, -0.0f, 1e-40f, -1e-40f, -__builtin_inff(), 3.4e38f}) {
    logits.push_back(special);
    logits.push_back(special);
  }
  for (size_t a = 0; a < logits.size(); ++a) {
    for (size_t b = 0; b < logits.size(); ++b) {
      const bool is_before = logits[a] != logits[b] ? logits[a] > logits[b] : a < b;
      const bool key_says = SortKey(logits[a], static_cast<uint32_t>(a)) >
                            SortKey(logits[b], static_cast<uint32_t>(b));
      ASSERT_EQ(is_before, key_says) << logits[a] << " " << a << ", " << logits[b] << " " << b;
    }
    const uint64_t key = SortKey(logits[a], static_cast<uint32_t>(a));
    EXPECT_EQ(LogitOfSortKey(key), logits[a]);
    EXPECT_EQ(IdOfSortKey(key), a);
  }
}

TEST(ShareOfWeightTest, IsTheCeilingWithinOneAndTheTotal) {
  EXPECT_EQ(ShareOfWeight(10, 0.25f), 3u);
  EXPECT_EQ(ShareOfWeight(8, 0.25f), 2u);
  EXPECT_EQ(ShareOfWeight(8, 1e-9f), 1u);
  EXPECT_EQ(ShareOfWeight(8, 1.0f), 8u);
  EXPECT_EQ(TokenWeight(1.0f), uint64_t{1} << 40);
  EXPECT_EQ(TokenWeight(0x1.0p-40f), 1u);
}

constexpr int64_t kKiB = 1024;

TEST(ChipTest, TheChipsWithKernelsLackNothing) {
  for (const Chip& chip : {Chip{8, 0, 163 * kKiB},
                           Chip{8, 6, 99 * kKiB},
                           Chip{8, 9, 99 * kKiB},
                           Chip{9, 0, 227 * kKiB},
                           Chip{10, 0, 227 * kKiB},
                           Chip{12, 0, 99 * kKiB}}) {
    EXPECT_EQ(WhatIsMissing(chip), "") << chip.major << "." << chip.minor;
  }
}

TEST(ChipTest, AnOlderOneOrOneWithLessSharedMemoryIsRefusedWithNumbers) {
  EXPECT_EQ(WhatIsMissing({7, 5, 64 * kKiB}),
            "has compute capability 7.5; the kernels need 8.0 or above");
  EXPECT_EQ(WhatIsMissing({8, 8, 96 * kKiB}),
            "gives a thread block 98304 bytes of shared memory; the kernels take up to 101376");
}

TEST(ChipTest, ABuildNamesTheArchitecturesItHas) {
  EXPECT_EQ(ArchitectureNames({900}), "9.0");
  EXPECT_EQ(ArchitectureNames({800, 860, 1'200}), "8.0, 8.6 and 12.0");
}

// A fleet must not mix kinds of matrix unit: what counts is the code that runs, so a chip with
// wgmma that a build without it drives is of another class than one that uses it.
TEST(NumericsClassTest, IsTheCodesUnitAndForMmaTheChipsGeneration) {
  const CompiledCode wgmma{.architecture = 900, .has_wgmma = 1, .awaits_launches = 1};
  const CompiledCode from_ptx{.architecture = 800, .has_wgmma = 0, .awaits_launches = 0};
  EXPECT_EQ(NumericsClass({9, 0, 227 * kKiB}, wgmma), "cuda-wgmma");

  std::set<std::string> classes{"cuda-wgmma"};
  for (const auto& [major, minor] :
       {std::pair{8, 0}, {8, 6}, {8, 9}, {9, 0}, {10, 0}, {10, 3}, {12, 0}}) {
    const Chip chip{.major = major, .minor = minor, .shared_bytes = 99 * kKiB};
    EXPECT_TRUE(classes.insert(NumericsClass(chip, from_ptx)).second) << major << "." << minor;
  }
}

}  // namespace
}  // namespace shoal::cuda
