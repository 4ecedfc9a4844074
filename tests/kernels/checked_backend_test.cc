// Each operation runs when its arguments are right, and each way to get one wrong is a crash. The
// base arguments are valid; a case changes one thing.
#include "kernels/checked_backend.h"

#include <cstring>
#include <memory>
#include <vector>

#include "gtest/gtest.h"

#include "kernels/cpu/backend.h"
#include "tests/kernels/arrays.h"

namespace shoal {
namespace {

class CheckedBackendDeathTest : public ::testing::Test {
 protected:
  CheckedBackendDeathTest()
      : checked_(std::make_unique<CpuBackend>(CpuBackendOptions{.num_threads = 1})) {
    GTEST_FLAG_SET(death_test_style, "threadsafe");
  }

  CheckedBackend checked_;
  std::vector<Bf16> a_ = RandomBf16(1, 4 * 32, 1.0);
  std::vector<Bf16> b_ = RandomBf16(2, 4 * 32, 1.0);
  std::vector<float> floats_ = RandomFloats(3, 4 * 32, 1.0);
  std::vector<float> stream_ = RandomFloats(4, 4 * 32, 1.0);
};

TEST_F(CheckedBackendDeathTest, EmbedWantsIdsOfTheTable) {
  std::vector<int32_t> ids = {0, 3};
  EmbedArgs args = {.ids = Index(ids), .table = View(a_, 4, 32), .out = View(stream_, 2, 32)};
  checked_.Embed(args);

  ids[1] = 4;
  EXPECT_DEATH(checked_.Embed(args), "IsIndex");
  ids[1] = -1;
  EXPECT_DEATH(checked_.Embed(args), "IsIndex");
  ids[1] = 0;
  args.out.dtype = DType::kBf16;
  EXPECT_DEATH(checked_.Embed(args), "dtype");
}

TEST_F(CheckedBackendDeathTest, RmsNormWantsEqualShapesApart) {
  RmsNormArgs args = {
      .x = View(stream_, 4, 32), .gain = floats_.data(), .out = View(b_, 4, 32), .eps = 1e-5f};
  checked_.RmsNorm(args);

  args.out = View(b_, 3, 32);
  EXPECT_DEATH(checked_.RmsNorm(args), "rows");
  args.out = View(b_, 4, 32);
  args.out.data = stream_.data();
  EXPECT_DEATH(checked_.RmsNorm(args), "begin");
  args.out = View(b_, 4, 32);
  args.gain = nullptr;
  EXPECT_DEATH(checked_.RmsNorm(args), "gain");
}

TEST_F(CheckedBackendDeathTest, LinearWantsOneInnerSize) {
  std::vector<float> out(8);
  LinearArgs args = {.x = View(a_, 4, 32), .weight = View(b_, 2, 32), .out = View(out, 4, 2)};
  checked_.Linear(args);

  args.weight = View(b_, 2, 16);
  EXPECT_DEATH(checked_.Linear(args), "weight.cols");
  args.weight = View(b_, 1, 32);
  EXPECT_DEATH(checked_.Linear(args), "cols");
}

TEST_F(CheckedBackendDeathTest, RopeWantsDistinctSlotsInsideTheCache) {
  std::vector<Bf16> qkv = RandomBf16(4, 2 * 4 * 8, 1.0);
  std::vector<Bf16> cache(2 * 2 * 32 * 8);
  const std::vector<int32_t> positions = {0, 1};
  std::vector<int32_t> slots = {0, 63};
  RopeAndAppendArgs args = {
      .qkv = View(qkv, 2, 32),
      .rope = floats_.data(),
      .positions = Index(positions),
      .slots = Index(slots),
      .num_heads = 2,
      .kv = {.data = cache.data(), .num_blocks = 2, .num_kv_heads = 1, .head_dim = 8}};
  checked_.RopeAndAppend(args);
  slots = {-1, -1};  // Kept nowhere
  checked_.RopeAndAppend(args);

  slots[0] = 64;
  EXPECT_DEATH(checked_.RopeAndAppend(args), "IsIndex");
  slots = {63, 63};
  EXPECT_DEATH(checked_.RopeAndAppend(args), "adjacent_find");
  slots[0] = 0;
  args.num_heads = 3;
  EXPECT_DEATH(checked_.RopeAndAppend(args), "cols");
}

TEST_F(CheckedBackendDeathTest, AttentionWantsEveryBlockThatARowSees) {
  std::vector<Bf16> cache(static_cast<size_t>(3 * 2 * 32 * 8));
  std::vector<int32_t> tables = {-7, 2, 0};
  std::vector<AttentionEntry> entries = {{.num_rows = 4, .first_position = 64}};
  AttentionArgs args = {
      .entries = entries,
      .tables = Index(tables),
      .q = View(a_, 4, 32),
      .kv = {.data = cache.data(), .num_blocks = 3, .num_kv_heads = 2, .head_dim = 8},
      .num_heads = 4,
      .window = 32,
      .sinks = floats_.data(),
      .out = View(b_, 4, 32)};
  args.kv.num_kv_heads = 1;
  checked_.Attention(args);  // Position 64 sees from 33 on: block -7 is outside.

  args.window = 34;
  EXPECT_DEATH(checked_.Attention(args), "IsIndex");
  args.window = 32;
  entries[0].first_position = 93;
  EXPECT_DEATH(checked_.Attention(args), "tables");
  entries[0] = {.first_row = 1, .num_rows = 4, .first_position = 64};
  EXPECT_DEATH(checked_.Attention(args), "rows");
  entries[0].first_row = 0;
  args.kv.num_kv_heads = 3;
  EXPECT_DEATH(checked_.Attention(args), "num_kv_heads");
}

TEST_F(CheckedBackendDeathTest, SelectExpertsWantsNoMoreThanThereAre) {
  std::vector<int32_t> ids(8);
  std::vector<float> shares(8);
  SelectExpertsArgs args = {
      .scores = View(floats_, 2, 3), .ids = View(ids, 2, 3), .shares = View(shares, 2, 3)};
  checked_.SelectExperts(args);

  args.ids = View(ids, 2, 4);
  EXPECT_DEATH(checked_.SelectExperts(args), "cols");
  args.shares = View(shares, 2, 4);
  EXPECT_DEATH(checked_.SelectExperts(args), "k <=");
}

TEST_F(CheckedBackendDeathTest, RowMovesWantMatchingCounts) {
  std::vector<int32_t> index = {1, 0};
  PickRowsArgs pick = {.x = View(a_, 4, 32), .index = Index(index), .out = View(b_, 2, 32)};
  checked_.PickRows(pick);
  index[0] = 4;
  EXPECT_DEATH(checked_.PickRows(pick), "IsIndex");
  pick.x.dtype = DType::kF32;
  EXPECT_DEATH(checked_.PickRows(pick), "dtype");

  SumSlotsArgs sum = {
      .rows = View(a_, 4, 32), .shares = View(floats_, 2, 2), .x = View(stream_, 2, 32)};
  checked_.SumSlots(sum);
  sum.rows = View(a_, 3, 32);
  EXPECT_DEATH(checked_.SumSlots(sum), "rows");
}

TEST_F(CheckedBackendDeathTest, SampleWantsLegalSettings) {
  std::vector<SampleRow> rows(1);
  std::vector<SampleResult> results(1);
  const SampleArgs args = {.logits = View(floats_, 1, 100), .rows = rows, .results = results};
  checked_.Sample(args);

  const std::vector<int32_t> unsorted = {5, 5};
  const std::vector<int32_t> outside = {100};
  const std::vector<uint32_t> few = {1, 1, 1};
  const SampleRow wrong[] = {{.temperature = -1.0f},
                             {.top_p = 0.0f},
                             {.min_p = 1.5f},
                             {.top_k = -1},
                             {.repetition_penalty = 0.0f},
                             {.prompt_ids = unsorted},
                             {.forbidden = outside},
                             {.allowed = few}};
  for (const SampleRow& row : wrong) {
    rows[0] = row;
    EXPECT_DEATH(checked_.Sample(args), "KERNEL_CHECK");
  }
}

TEST_F(CheckedBackendDeathTest, RepackRefusesTheScaleThatIsNotANumber) {
  std::vector<std::byte> codes(16);
  std::vector<uint8_t> scales = {127};
  const auto bytes = static_cast<size_t>(checked_.PackedBytes(ExpertFormat::kMxfp4, 1, 32));
  void* const packed = checked_.Allocate(bytes);
  const RepackArgs args = {.out = 1,
                           .in = 32,
                           .codes = codes.data(),
                           .scales = scales.data(),
                           .packed = static_cast<std::byte*>(packed)};
  checked_.Repack(args);

  scales[0] = 255;
  EXPECT_DEATH(checked_.Repack(args), "255");
  checked_.Free(packed, bytes);
}

TEST_F(CheckedBackendDeathTest, ExpertMlpWantsRoomForItsPairsAndDistinctPlaces) {
  const auto up_bytes = static_cast<size_t>(checked_.PackedBytes(ExpertFormat::kMxfp4, 64, 32));
  const auto down_bytes = static_cast<size_t>(checked_.PackedBytes(ExpertFormat::kMxfp4, 32, 32));
  void* const up = checked_.Allocate(up_bytes);
  void* const down = checked_.Allocate(down_bytes);
  const PackedMatrix gate_up = {
      .out = 64, .in = 32, .experts = {static_cast<const std::byte*>(up)}};
  const PackedMatrix back = {.out = 32, .in = 32, .experts = {static_cast<const std::byte*>(down)}};
  const float* const bias[] = {floats_.data()};
  std::vector<int32_t> offsets = {0, 2};
  std::vector<int32_t> pair_row = {3, 0};
  std::vector<int32_t> pair_out = {1, 0};
  const ExpertMlpArgs args = {.x = View(a_, 4, 32),
                              .expert_offsets = offsets,
                              .pair_row = Index(pair_row),
                              .pair_out = Index(pair_out),
                              .gate_up = &gate_up,
                              .gate_up_bias = bias,
                              .down = &back,
                              .down_bias = bias,
                              .out = View(b_, 2, 32)};
  checked_.ExpertMlp(args);

  pair_out = {1, 1};
  EXPECT_DEATH(checked_.ExpertMlp(args), "adjacent_find");
  pair_out = {1, 0};
  pair_row = {4, 0};
  EXPECT_DEATH(checked_.ExpertMlp(args), "IsIndex");
  pair_row = {3, 0};
  offsets = {0, 3};
  EXPECT_DEATH(checked_.ExpertMlp(args), "pair_row.size >= num_pairs");
  // Room for more: what is behind the last pair may be anything, and its row of `out` stays.
  offsets = {0, 1};
  pair_row = {3, -7};
  pair_out = {1, 1};
  const std::vector<Bf16> before(b_.begin(), b_.begin() + 32);
  checked_.ExpertMlp(args);
  EXPECT_EQ(std::memcmp(b_.data(), before.data(), 32 * sizeof(Bf16)), 0);
  checked_.Free(up, up_bytes);
  checked_.Free(down, down_bytes);
}

}  // namespace
}  // namespace shoal
