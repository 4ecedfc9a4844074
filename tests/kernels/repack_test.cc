// CpuBackend::Repack: every code and scale of the checkpoint is where the layout says, and nothing
// else is in the padding.
#include <cstring>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"

#include "kernels/cpu/backend.h"
#include "kernels/cpu/dot.h"
#include "tests/kernels/arrays.h"

namespace shoal {
namespace {

std::vector<std::byte> RandomBytes(uint64_t seed, int64_t count) {
  std::vector<std::byte> bytes(static_cast<size_t>(count));
  for (int64_t i = 0; i < count; ++i) {
    bytes[static_cast<size_t>(i)] = static_cast<std::byte>(RandomBits(seed, i));
  }
  return bytes;
}

TEST(RepackTest, EveryCodeAndScaleOfTheCheckpointComesBack) {
  struct Shape {
    int64_t out;
    int64_t in;
  };

  for (const Shape shape : {Shape{1, 32}, {16, 64}, {17, 96}, {48, 160}, {90, 2'880}}) {
    const int64_t num_blocks = shape.in / 32;
    const std::vector<std::byte> codes = RandomBytes(1, shape.out * shape.in / 2);
    std::vector<uint8_t> scales;
    for (const std::byte byte : RandomBytes(2, shape.out * num_blocks)) {
      scales.push_back(std::to_integer<uint8_t>(byte) % 255);
    }
    for (const NamedBackend& b : AllBackends()) {
      const int64_t bytes = b.backend->PackedBytes(ExpertFormat::kMxfp4, shape.out, shape.in);
      ASSERT_EQ(bytes % 64, 0);
      std::vector<std::byte> packed(static_cast<size_t>(bytes) + 8, std::byte{0xee});
      b.backend->Repack({.format = ExpertFormat::kMxfp4,
                         .out = shape.out,
                         .in = shape.in,
                         .codes = codes.data(),
                         .scales = scales.data(),
                         .packed = packed.data()});

      std::vector<std::byte> seen_codes(codes.size());
      std::vector<uint8_t> seen_scales(scales.size());
      for (int64_t row = 0; row < shape.out; ++row) {
        const std::byte* tile = packed.data() + row / 16 * MxTileBytes(num_blocks);
        for (int64_t k = 0; k < shape.in; ++k) {
          const auto byte = std::to_integer<uint32_t>(
              tile[k / 32 * 256 + k % 32 / 8 * 64 + row % 16 * 4 + k % 4]);
          const uint32_t code = k % 8 < 4 ? byte & 15u : byte >> 4;
          seen_codes[static_cast<size_t>((row * shape.in + k) / 2)] |=
              static_cast<std::byte>(k % 2 == 0 ? code : code << 4);
        }
        for (int64_t block = 0; block < num_blocks; ++block) {
          seen_scales[static_cast<size_t>(row * num_blocks + block)] =
              std::to_integer<uint8_t>(tile[num_blocks * 256 + block * 16 + row % 16]);
        }
      }
      EXPECT_EQ(seen_codes, codes) << b.name;
      EXPECT_EQ(seen_scales, scales) << b.name;
      for (size_t i = packed.size() - 8; i < packed.size(); ++i) {
        EXPECT_EQ(packed[i], std::byte{0xee}) << b.name << ": wrote past the end";
      }
    }
  }
}

TEST(RepackTest, RowsBeyondTheLastAreZero) {
  constexpr int64_t kOut = 19;
  constexpr int64_t kBlocks = 3;
  const std::vector<std::byte> codes(kOut * kBlocks * 16, std::byte{0xff});
  const std::vector<uint8_t> scales(kOut * kBlocks, 200);
  const std::vector<NamedBackend> all = AllBackends();
  const NamedBackend& b = all.front();
  const auto bytes =
      static_cast<size_t>(b.backend->PackedBytes(ExpertFormat::kMxfp4, kOut, kBlocks * 32));
  std::vector<std::byte> packed(bytes, std::byte{0xee});
  b.backend->Repack({.format = ExpertFormat::kMxfp4,
                     .out = kOut,
                     .in = kBlocks * 32,
                     .codes = codes.data(),
                     .scales = scales.data(),
                     .packed = packed.data()});

  // 19 rows of 48 code bytes and 3 scales; all else is 0.
  size_t num_zeros = 0;
  for (const std::byte byte : packed) num_zeros += byte == std::byte{0} ? 1u : 0u;
  EXPECT_EQ(packed.size() - num_zeros, size_t{kOut * kBlocks * 16 + kOut * kBlocks});
}

TEST(RepackTest, Bf16IsTransposed) {
  constexpr int64_t kOut = 131;
  constexpr int64_t kIn = 70;
  const std::vector<Bf16> checkpoint = RandomBf16(3, kIn * kOut, 1.0);
  for (const NamedBackend& b : AllBackends()) {
    const auto bytes = static_cast<size_t>(b.backend->PackedBytes(ExpertFormat::kBf16, kOut, kIn));
    ASSERT_EQ(bytes, (size_t{kOut * kIn * 2} + 63) / 64 * 64);
    std::vector<Bf16> packed(bytes / 2);
    b.backend->Repack({.format = ExpertFormat::kBf16,
                       .out = kOut,
                       .in = kIn,
                       .codes = reinterpret_cast<const std::byte*>(checkpoint.data()),
                       .scales = nullptr,
                       .packed = reinterpret_cast<std::byte*>(packed.data())});
    for (int64_t o = 0; o < kOut; ++o) {
      for (int64_t i = 0; i < kIn; ++i) {
        ASSERT_EQ(packed[static_cast<size_t>(o * kIn + i)],
                  checkpoint[static_cast<size_t>(i * kOut + o)])
            << b.name;
      }
    }
  }
}

}  // namespace
}  // namespace shoal
