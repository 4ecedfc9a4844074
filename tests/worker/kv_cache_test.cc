#include "worker/kv_cache.h"

#include <cstring>
#include <vector>

#include "gtest/gtest.h"

#include "kernels/cpu/backend.h"
#include "tests/support/forwarding_backend.h"

namespace shoal {
namespace {

std::byte* BlockOf(const KvLayer& layer, int64_t block) {
  return static_cast<std::byte*>(layer.data) + block * layer.block_bytes();
}

class KvCacheTest : public testing::Test {
 protected:
  CpuBackend backend_{{.num_threads = 1, .cpus = {}, .isa = CpuIsa::kScalar}};
  const ModelConfig config_ = ModelConfig::Tiny();
};

TEST_F(KvCacheTest, BytesFollowFromTheGeometry) {
  // 2,048 B per token and layer in the released models, 32 tokens a block.
  const ModelConfig large = ModelConfig::GptOss120b();
  EXPECT_EQ(FullBlockBytes(large), 18 * 32 * 2048);
  EXPECT_EQ(WindowBlockBytes(large), 18 * 32 * 2048);
  EXPECT_EQ(FullBlockBytes(config_), 2 * 2 * 2 * 32 * 32 * 2);
}

TEST_F(KvCacheTest, LayersHaveTheBlocksOfTheirKind) {
  KvCache cache(config_, &backend_);
  ASSERT_TRUE(cache.Resize({.full = 5, .window = 3}).ok());
  for (int layer = 0; layer < config_.num_layers; ++layer) {
    EXPECT_EQ(cache.layer(layer).num_blocks, config_.window(layer) == 0 ? 5 : 3);
    EXPECT_EQ(cache.layer(layer).num_kv_heads, 2);
    EXPECT_EQ(cache.layer(layer).head_dim, 32);
  }
  EXPECT_EQ(cache.bytes(), 5 * FullBlockBytes(config_) + 3 * WindowBlockBytes(config_));
}

TEST_F(KvCacheTest, EqualCountsKeepWhatIsThereOthersBeginAnew) {
  KvCache cache(config_, &backend_);
  ASSERT_TRUE(cache.Resize({.full = 6, .window = 2}).ok());
  std::memset(BlockOf(cache.layer(1), 5), 0x22, 16);
  std::memset(BlockOf(cache.layer(0), 1), 0x33, 16);
  ASSERT_TRUE(cache.Resize({.full = 6, .window = 2}).ok());
  EXPECT_EQ(static_cast<int>(BlockOf(cache.layer(1), 5)[15]), 0x22);
  EXPECT_EQ(static_cast<int>(BlockOf(cache.layer(0), 1)[7]), 0x33);
  ASSERT_TRUE(cache.Resize({.full = 7, .window = 2}).ok());
  EXPECT_EQ(static_cast<int>(BlockOf(cache.layer(1), 5)[15]), 0);
  EXPECT_EQ(static_cast<int>(BlockOf(cache.layer(0), 1)[7]), 0);
}

TEST_F(KvCacheTest, LackOfMemoryNamesTheBytesAndLeavesNothing) {
  // Grants a few layers, then nothing.
  class Poor final : public ForwardingBackend {
   public:
    using ForwardingBackend::ForwardingBackend;

    void* Allocate(size_t bytes) override {
      if (num_grants == 0) return nullptr;
      --num_grants;
      ++num_held;
      return ForwardingBackend::Allocate(bytes);
    }

    void Free(void* data, size_t bytes) override {
      --num_held;
      ForwardingBackend::Free(data, bytes);
    }

    int num_grants = 4;
    int num_held = 0;
  } poor(&backend_);

  {
    KvCache cache(config_, &poor);
    ASSERT_TRUE(cache.Resize({.full = 4, .window = 4}).ok());
    poor.num_grants = 3;
    const absl::Status status = cache.Resize({.full = 8, .window = 8});
    EXPECT_EQ(status.code(), absl::StatusCode::kResourceExhausted);
    EXPECT_NE(status.message().find(
                  std::to_string(8 * (FullBlockBytes(config_) + WindowBlockBytes(config_)))),
              absl::string_view::npos);
    EXPECT_EQ(cache.counts(), (BlockCounts{0, 0}));
    EXPECT_EQ(cache.layer(3).num_blocks, 0);
    EXPECT_EQ(poor.num_held, 0);
    poor.num_grants = 4;
    EXPECT_TRUE(cache.Resize({.full = 4, .window = 4}).ok());
  }
  EXPECT_EQ(poor.num_held, 0);
}

TEST_F(KvCacheTest, MemoryGoesToFullLayersOnceTheWindowsHaveRoom) {
  const ModelConfig config = ModelConfig::GptOss20b();
  const int64_t pair = FullBlockBytes(config) + WindowBlockBytes(config);
  EXPECT_EQ(BlocksThatFit(config, -1, 64, 512), (BlockCounts{0, 0}));
  EXPECT_EQ(BlocksThatFit(config, pair * 10 + pair / 2, 64, 512), (BlockCounts{11, 10}));
  const int64_t bytes = int64_t{2} << 30;
  const BlockCounts large = BlocksThatFit(config, bytes, 64, 512);
  EXPECT_EQ(large.window, 64 * 6 + 17);
  const int64_t used =
      large.full * FullBlockBytes(config) + large.window * WindowBlockBytes(config);
  EXPECT_LE(used, bytes);
  EXPECT_GT(used + FullBlockBytes(config), bytes);
}

// A window pool for 64 sequences would leave 2,000 others of 80 GB waiting, whatever the full
// layers have room for.
TEST_F(KvCacheTest, LargeMemoryHasWindowsForAsManySequencesAsItsFullLayersHold) {
  const ModelConfig config = ModelConfig::GptOss120b();
  const int64_t bytes = 80'000'000'000;
  const BlockCounts counts = BlocksThatFit(config, bytes, 64, 512);
  const int64_t by_window = counts.window / 6;
  const int64_t by_full = int64_t{counts.full} * kBlockTokens / kUsualTokens;
  EXPECT_GT(by_full, 900);
  EXPECT_GE(by_window, by_full);
  EXPECT_LE(by_window, by_full + 4);
  EXPECT_LE(counts.full * FullBlockBytes(config) + counts.window * WindowBlockBytes(config), bytes);
}

}  // namespace
}  // namespace shoal
