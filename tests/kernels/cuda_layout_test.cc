// The CUDA kernels' index arithmetic and decoding, on the host: a warp is emulated from the PTX
// manual's descriptions of ldmatrix, mma.sync and wgmma, and whole products made of the kernels'
// own index functions are compared with plain ones. Nothing here runs on a GPU.
#include <algorithm>
#include <array>
#include <bit>
#include <cmath>
#include <cstring>
#include <set>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"

#include "kernels/cpu/backend.h"
#include "kernels/cpu/dot.h"
#include "kernels/cuda/fragments.h"
#include "kernels/cuda/mx_layout.h"
#include "kernels/cuda/tuning.h"
#include "kernels/numeric.h"
#include "tests/kernels/arrays.h"

namespace shoal::cuda {
namespace {

constexpr double kE2m1[16] = {0, 0.5, 1, 1.5, 2, 3, 4, 6, -0.0, -0.5, -1, -1.5, -2, -3, -4, -6};

// ---- The machine, as its manual describes it --------------------------------------------------

Bf16 Half(uint32_t pair, int half) {
  return {static_cast<uint16_t>(pair >> (16 * half))};
}

uint32_t Pair(Bf16 low, Bf16 high) {
  return low.bits | uint32_t{high.bits} << 16;
}

// fma.rn.bf16x2 with -0: a product rounded once.
uint32_t MultiplyPair(uint32_t a, uint32_t b) {
  const auto product = [&](int half) {
    return ToBf16(ToFloat(Half(a, half)) * ToFloat(Half(b, half)));
  };
  return Pair(product(0), product(1));
}

using Registers = std::array<std::array<uint32_t, 4>, 32>;  // [lane][register]
using Bytes = std::vector<std::byte>;

Bf16 At(const Bytes& memory, int byte) {
  Bf16 value;
  std::memcpy(&value, memory.data() + byte, sizeof(value));
  return value;
}

// ldmatrix.x4: lane 8 m + i gives the address of row i of matrix m. Without .trans lane l gets
// elements 2 (l % 4), 2 (l % 4) + 1 of row l / 4; with it, of column l / 4.
Registers LoadMatrices(const Bytes& memory, const std::array<int, 32>& address, bool transposed) {
  Registers r{};
  for (int lane = 0; lane < 32; ++lane) {
    for (int m = 0; m < 4; ++m) {
      const auto element = [&](int row, int col) {
        return At(memory, address[static_cast<size_t>(8 * m + row)] + 2 * col);
      };
      const int i = lane / 4, j = 2 * (lane % 4);
      r[static_cast<size_t>(lane)][static_cast<size_t>(m)] =
          transposed ? Pair(element(j, i), element(j + 1, i))
                     : Pair(element(i, j), element(i, j + 1));
    }
  }
  return r;
}

// mma.sync.m16n8k16, the manual's formulas: with group = lane / 4 and t = lane % 4,
// a_i (i = 0 .. 7): row = group + (i in {2, 3, 6, 7} ? 8 : 0), k = 2 t + (i & 1) + (i >= 4 ? 8 : 0)
// b_i (i = 0 .. 3): k = 2 t + (i & 1) + (i >= 2 ? 8 : 0), column = group
// c_i (i = 0 .. 3): row = group + (i >= 2 ? 8 : 0), column = 2 t + (i & 1)
using Sums = std::array<std::array<double, 4>, 32>;

void Mma(Sums* d, const Registers& a, const Registers& b, int first_b) {
  double left[16][16], right[16][8];
  for (int lane = 0; lane < 32; ++lane) {
    const auto l = static_cast<size_t>(lane);
    for (int i = 0; i < 8; ++i) {
      const bool is_low = i == 2 || i == 3 || i == 6 || i == 7;
      left[lane / 4 + (is_low ? 8 : 0)][2 * (lane % 4) + (i & 1) + (i >= 4 ? 8 : 0)] =
          static_cast<double>(ToFloat(Half(a[l][static_cast<size_t>(i / 2)], i & 1)));
    }
    for (int i = 0; i < 4; ++i) {
      right[2 * (lane % 4) + (i & 1) + (i >= 2 ? 8 : 0)][lane / 4] =
          static_cast<double>(ToFloat(Half(b[l][static_cast<size_t>(first_b + i / 2)], i & 1)));
    }
  }
  for (int lane = 0; lane < 32; ++lane) {
    for (int i = 0; i < 4; ++i) {
      const int row = lane / 4 + (i >= 2 ? 8 : 0), col = 2 * (lane % 4) + (i & 1);
      for (int k = 0; k < 16; ++k) {
        (*d)[static_cast<size_t>(lane)][static_cast<size_t>(i)] += left[row][k] * right[k][col];
      }
    }
  }
}

// What wgmma reads at (row, k) of a K-major operand: the address is formed without a swizzle, then
// bits 4-6 are xored with bits 7-9.
Bf16 ThroughDescriptor(const Bytes& memory, uint64_t descriptor, int row, int k) {
  const auto start = static_cast<uint32_t>(descriptor & 0x3fff) * 16;
  const auto stride = static_cast<uint32_t>(descriptor >> 32 & 0x3fff) * 16;
  EXPECT_EQ(descriptor >> 62, 1u);
  const uint32_t plain = start + static_cast<uint32_t>(row / 8) * stride +
                         static_cast<uint32_t>(row % 8 * 128 + 2 * k);
  return At(memory, static_cast<int>(plain ^ (plain >> 3 & 0x70u)));
}

// ---- Operands ---------------------------------------------------------------------------------

// [rows][64] values as CopyTokens and Bf16Weights::Copy leave them in shared memory.
Bytes SwizzledTile(const std::vector<Bf16>& values, int rows) {
  Bytes memory(static_cast<size_t>(rows) * kTileRowBytes);
  for (int row = 0; row < rows; ++row) {
    for (int piece = 0; piece < kPieces; ++piece) {
      std::memcpy(memory.data() + SwizzledByte(row, piece),
                  &values[static_cast<size_t>(row * kTileInputs + 8 * piece)],
                  kPieceBytes);
    }
  }
  return memory;
}

struct MxMatrix {
  int64_t out, in;
  Bytes codes;
  std::vector<uint8_t> scales;

  uint32_t Code(int64_t row, int64_t input) const {
    const auto byte = std::to_integer<uint32_t>(codes[static_cast<size_t>((row * in + input) / 2)]);
    return input % 2 == 0 ? byte & 15u : byte >> 4;
  }

  double Weight(int64_t row, int64_t input) const {
    return std::ldexp(kE2m1[Code(row, input)],
                      scales[static_cast<size_t>(row * (in / 32) + input / 32)] - 127);
  }
};

MxMatrix RandomMx(uint64_t seed, int64_t out, int64_t in) {
  MxMatrix m{.out = out, .in = in, .codes = {}, .scales = {}};
  for (int64_t i = 0; i < out * in / 2; ++i) {
    m.codes.push_back(static_cast<std::byte>(RandomBits(seed, i)));
  }
  for (int64_t i = 0; i < out * in / 32; ++i) {
    m.scales.push_back(static_cast<uint8_t>(118 + RandomBits(seed + 1, i) % 10));
  }
  return m;
}

std::vector<uint32_t> Pack(const MxMatrix& m) {
  const int64_t tiles = MxTiles(m.out, kTileOuts) * MxTiles(m.in, kTileInputs);
  std::vector<uint32_t> words;
  for (int64_t tile = 0; tile < tiles; ++tile) {
    for (int w = 0; w < kMxTileBytes / 4; ++w) {
      words.push_back(PackedWord(m.codes.data(), m.scales.data(), m.out, m.in, tile, w));
    }
  }
  return words;
}

// MxWeights::Decode's fast path for one warp of a tile: fragments of k step `step`.
Registers DecodeStep(const uint32_t* tile, int warp, int step) {
  Registers a{};
  for (int lane = 0; lane < 32; ++lane) {
    const int thread = 32 * warp + lane;
    const uint32_t codes = tile[4 * thread + step];
    const uint32_t scales = tile[kMxCodeBytes / 4 + thread / 4];
    const uint32_t low = ScalePair(scales >> (8 * (step / 2)) & 0xffu);
    const uint32_t high = ScalePair(scales >> (8 * (step / 2) + 16) & 0xffu);
    a[static_cast<size_t>(lane)] = {MultiplyPair(UnscaledPair<0>(codes), low),
                                    MultiplyPair(UnscaledPair<1>(codes), high),
                                    MultiplyPair(UnscaledPair<2>(codes), low),
                                    MultiplyPair(UnscaledPair<3>(codes), high)};
  }
  return a;
}

// ---- Decoding ---------------------------------------------------------------------------------

template <int r>
void ExpectPairDecodes(uint32_t code, int half, uint32_t noise) {
  // Other registers' bits must not leak in.
  uint32_t word = PlaceCode(code, r) << (16 * half);
  for (int other = 0; other < 4; ++other) {
    for (int h = 0; h < 2; ++h) {
      if (other == r && h == half) continue;
      word |= PlaceCode(noise >> (4 * (2 * other + h)) & 15u, other) << (16 * h);
    }
  }
  const Bf16 bits = Half(UnscaledPair<r>(word), half);
  EXPECT_EQ(std::ldexp(static_cast<double>(ToFloat(bits)), 126), kE2m1[code]);
  EXPECT_EQ(bits.bits >> 15, code >> 3);
}

TEST(MxDecodeTest, EveryCodeInEveryPlaceIsItsValueWhateverLiesBesideIt) {
  for (uint32_t code = 0; code < 16; ++code) {
    for (const uint32_t noise : {0u, 0xffffffffu, 0x5a3c96e1u, 0xa5c3691eu}) {
      for (int half = 0; half < 2; ++half) {
        ExpectPairDecodes<0>(code, half, noise);
        ExpectPairDecodes<1>(code, half, noise);
        ExpectPairDecodes<2>(code, half, noise);
        ExpectPairDecodes<3>(code, half, noise);
      }
    }
  }
}

TEST(MxDecodeTest, TheEightCodesOfAWordFillItExactly) {
  std::set<int> bits;
  for (int r = 0; r < 4; ++r) {
    for (int bit = 0; bit < 4; ++bit) {
      const uint32_t placed = PlaceCode(1u << bit, r);
      EXPECT_EQ(std::popcount(placed), 1);
      bits.insert(std::countr_zero(placed));
    }
  }
  EXPECT_EQ(bits.size(), 16u);
  EXPECT_EQ(*bits.rbegin(), 15);
}

TEST(MxDecodeTest, EveryScaleGivesTheExactWeightOrOverflowsAsBf16Does) {
  for (uint32_t scale = 0; scale < 255; ++scale) {
    for (uint32_t code = 0; code < 16; ++code) {
      const uint32_t unscaled = UnscaledPair<0>(PlaceCode(code, 0));
      const uint32_t weight =
          scale <= 128 ? MultiplyPair(unscaled, ScalePair(scale))
                       : MultiplyPair(MultiplyPair(unscaled, kLargestScalePair), ExcessPair(scale));
      const double exact = std::ldexp(kE2m1[code], static_cast<int>(scale) - 127);
      const Bf16 nearest = ToBf16(static_cast<float>(exact));
      EXPECT_EQ(Half(weight, 0).bits, nearest.bits) << "scale " << scale << " code " << code;
      if (scale <= 252) {
        EXPECT_EQ(static_cast<double>(ToFloat(Half(weight, 0))), exact);
      }
    }
  }
}

// ---- The packed layout ------------------------------------------------------------------------

class PackedLayoutTest : public testing::TestWithParam<std::pair<int64_t, int64_t>> {};

TEST_P(PackedLayoutTest, HoldsEachCodeAndScaleOfTheCpusLayoutAndZerosBeyond) {
  const auto [out, in] = GetParam();
  const MxMatrix m = RandomMx(7, out, in);
  CpuBackend cpu(CpuBackendOptions{});
  Bytes packed(static_cast<size_t>(cpu.PackedBytes(ExpertFormat::kMxfp4, out, in)));
  cpu.Repack({.format = ExpertFormat::kMxfp4,
              .out = out,
              .in = in,
              .codes = m.codes.data(),
              .scales = m.scales.data(),
              .packed = packed.data()});
  const std::vector<uint32_t> words = Pack(m);
  ASSERT_EQ(static_cast<int64_t>(words.size()) * 4, MxPackedBytes(out, in));

  // kernels/cpu/dot.h: byte 64 z + 4 row + i of a block's codes, inputs 8 z + i and 8 z + 4 + i.
  const auto cpu_code = [&](int64_t row, int64_t input) {
    const std::byte* tile = packed.data() + row / shoal::kTileRows * MxTileBytes(in / 32);
    const int64_t k = input % 32;
    const auto byte = std::to_integer<uint32_t>(
        tile[input / 32 * kTileCodeBytes + 64 * (k / 8) + 4 * (row % shoal::kTileRows) + k % 4]);
    return k % 8 < 4 ? byte & 15u : byte >> 4;
  };
  const auto cpu_scale = [&](int64_t row, int64_t block) {
    const std::byte* tile = packed.data() + row / shoal::kTileRows * MxTileBytes(in / 32);
    return std::to_integer<uint32_t>(
        tile[in / 32 * kTileCodeBytes + block * shoal::kTileRows + row % shoal::kTileRows]);
  };

  const int64_t row_tiles = MxTiles(in, kTileInputs);
  for (int64_t row = 0; row < MxTiles(out, kTileOuts) * kTileOuts; ++row) {
    for (int64_t input = 0; input < row_tiles * kTileInputs; ++input) {
      const bool is_inside = row < out && input < in;
      const uint32_t* tile =
          words.data() + (row / kTileOuts * row_tiles + input / kTileInputs) * (kMxTileBytes / 4);
      const int r = static_cast<int>(row % kTileOuts), k = static_cast<int>(input % kTileInputs);
      const CodePlace place = PlaceOf(r, k);
      const uint32_t half = tile[place.word] >> place.shift & 0xffffu;
      const uint32_t code = is_inside ? cpu_code(row, input) : 0u;
      // The bits of this register's code, and only they.
      ASSERT_EQ(half & PlaceCode(15, place.reg), PlaceCode(code, place.reg)) << row << " " << input;
      const int at = ScaleByte(r, k / 32);
      const uint32_t scale = tile[at / 4] >> (8 * (at % 4)) & 0xffu;
      ASSERT_EQ(scale, is_inside ? cpu_scale(row, input / 32) : 0u) << row << " " << input;
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Shapes,
                         PackedLayoutTest,
                         testing::Values(std::pair{64, 64},
                                         std::pair{1, 32},
                                         std::pair{65, 96},
                                         std::pair{192, 64},
                                         std::pair{130, 160},
                                         std::pair{64, 96}));

// ---- Products ---------------------------------------------------------------------------------

// A tile of packed weights times tokens, by mma.sync and by wgmma: the kernels' index functions
// around the manual's instructions, against sums over the checkpoint's own bytes.
TEST(TileProductTest, MxWeightsTimesTokensByBothInstructions) {
  constexpr int kColumns = 32;
  const MxMatrix m = RandomMx(11, 64, 64);
  const std::vector<uint32_t> tile = Pack(m);
  const std::vector<Bf16> x = RandomBf16(12, kColumns * kTileInputs, 1.0);
  const Bytes tokens = SwizzledTile(x, kColumns);
  const uint64_t descriptor = TileDescriptor(0);

  for (int warp = 0; warp < 4; ++warp) {
    std::vector<Sums> by_mma(kColumns / 8);
    double by_wgmma[16][kColumns] = {};
    for (int step = 0; step < 4; ++step) {
      const Registers a = DecodeStep(tile.data(), warp, step);
      for (int n = 0; n < kColumns; n += 16) {
        std::array<int, 32> address{};
        for (int lane = 0; lane < 32; ++lane) {
          address[static_cast<size_t>(lane)] =
              SwizzledByte(LoadBRow(lane, n), LoadBPiece(lane, step));
        }
        const Registers b = LoadMatrices(tokens, address, false);
        Mma(&by_mma[static_cast<size_t>(n / 8)], a, b, 0);
        Mma(&by_mma[static_cast<size_t>(n / 8 + 1)], a, b, 2);
      }
      // wgmma's A registers have mma.sync's layout in each warp's sixteen rows.
      for (int lane = 0; lane < 32; ++lane) {
        for (int r = 0; r < 4; ++r) {
          for (int half = 0; half < 2; ++half) {
            const int k = FragmentAInput(lane, r) + half;
            const double weight = static_cast<double>(
                ToFloat(Half(a[static_cast<size_t>(lane)][static_cast<size_t>(r)], half)));
            for (int col = 0; col < kColumns; ++col) {
              const uint64_t at = descriptor + static_cast<uint64_t>(step) * kDescriptorStep;
              by_wgmma[FragmentARow(lane, r)][col] +=
                  weight * static_cast<double>(ToFloat(ThroughDescriptor(tokens, at, col, k)));
            }
          }
        }
      }
    }
    for (int row = 0; row < 16; ++row) {
      for (int col = 0; col < kColumns; ++col) {
        double expected = 0.0;
        for (int k = 0; k < kTileInputs; ++k) {
          expected += m.Weight(16 * warp + row, k) *
                      static_cast<double>(ToFloat(x[static_cast<size_t>(col * kTileInputs + k)]));
        }
        ASSERT_NEAR(by_wgmma[row][col], expected, 1e-9);
        int found = 0;
        for (int lane = 0; lane < 32; ++lane) {
          for (int c = 0; c < 4; ++c) {
            if (FragmentCRow(lane, c) != row || FragmentCColumn(lane, c) != col % 8) continue;
            ++found;
            ASSERT_NEAR(by_mma[static_cast<size_t>(col / 8)][static_cast<size_t>(lane)]
                              [static_cast<size_t>(c)],
                        expected,
                        1e-9);
          }
        }
        ASSERT_EQ(found, 1);
      }
    }
  }
}

// With eight columns MultiplyRegisters addresses the same rows twice and uses two registers.
TEST(TileProductTest, EightColumnsNeedHalfALoad) {
  const std::vector<Bf16> x = RandomBf16(13, 8 * kTileInputs, 1.0);
  const Bytes tokens = SwizzledTile(x, 8);
  for (int step = 0; step < 4; ++step) {
    std::array<int, 32> address{};
    for (int lane = 0; lane < 32; ++lane) {
      address[static_cast<size_t>(lane)] = SwizzledByte(lane % 8, LoadBPiece(lane % 16, step));
    }
    const Registers b = LoadMatrices(tokens, address, false);
    for (int lane = 0; lane < 32; ++lane) {
      for (int r = 0; r < 2; ++r) {
        for (int half = 0; half < 2; ++half) {
          const int k = 16 * step + FragmentBInput(lane, r) + half;
          EXPECT_EQ(Half(b[static_cast<size_t>(lane)][static_cast<size_t>(r)], half),
                    x[static_cast<size_t>(FragmentBColumn(lane) * kTileInputs + k)]);
        }
      }
    }
  }
}

TEST(TileProductTest, Bf16WeightsAreTheSameFragmentsByLdmatrixAndThroughTheDescriptor) {
  const std::vector<Bf16> w = RandomBf16(14, kTileOuts * kTileInputs, 1.0);
  const Bytes memory = SwizzledTile(w, kTileOuts);
  for (int warp = 0; warp < 4; ++warp) {
    for (int step = 0; step < 4; ++step) {
      std::array<int, 32> address{};
      for (int lane = 0; lane < 32; ++lane) {
        address[static_cast<size_t>(lane)] =
            SwizzledByte(LoadARow(lane, warp), LoadAPiece(lane, step));
      }
      const Registers a = LoadMatrices(memory, address, false);
      for (int lane = 0; lane < 32; ++lane) {
        for (int r = 0; r < 4; ++r) {
          for (int half = 0; half < 2; ++half) {
            const int row = 16 * warp + FragmentARow(lane, r);
            const int k = FragmentAInput(lane, r) + half;
            const Bf16 expected = w[static_cast<size_t>(row * kTileInputs + 16 * step + k)];
            EXPECT_EQ(Half(a[static_cast<size_t>(lane)][static_cast<size_t>(r)], half), expected);
            const uint64_t at = TileDescriptor(0) + static_cast<uint64_t>(step) * kDescriptorStep;
            EXPECT_EQ(ThroughDescriptor(memory, at, row, k), expected);
          }
        }
      }
    }
  }
}

// A chunk of attention by the kernel's index functions: scores, the reuse of their registers as the
// first operand of p . v, and values through transposed loads.
TEST(AttentionLayoutTest, AChunkIsScoresThenWeightedValues) {
  const std::vector<Bf16> q = RandomBf16(21, 16 * 64, 0.3);
  const std::vector<Bf16> k = RandomBf16(22, 64 * 64, 0.3);
  const std::vector<Bf16> v = RandomBf16(23, 64 * 64, 0.3);
  const Bytes keys = SwizzledTile(k, 64);
  const Bytes values = SwizzledTile(v, 64);
  const auto number = [](const std::vector<Bf16>& x, int row, int col) {
    return static_cast<double>(ToFloat(x[static_cast<size_t>(row * 64 + col)]));
  };

  std::array<Sums, 8> s{};
  for (int step = 0; step < 4; ++step) {
    Registers a{};
    for (int lane = 0; lane < 32; ++lane) {
      for (int r = 0; r < 4; ++r) {
        const auto at =
            static_cast<size_t>(FragmentARow(lane, r) * 64 + 16 * step + FragmentAInput(lane, r));
        a[static_cast<size_t>(lane)][static_cast<size_t>(r)] = Pair(q[at], q[at + 1]);
      }
    }
    for (int n = 0; n < 8; n += 2) {
      std::array<int, 32> address{};
      for (int lane = 0; lane < 32; ++lane) {
        address[static_cast<size_t>(lane)] =
            SwizzledByte(LoadBRow(lane, 8 * n), LoadBPiece(lane, step));
      }
      const Registers b = LoadMatrices(keys, address, false);
      Mma(&s[static_cast<size_t>(n)], a, b, 0);
      Mma(&s[static_cast<size_t>(n + 1)], a, b, 2);
    }
  }
  double p[16][64];
  for (int lane = 0; lane < 32; ++lane) {
    for (int n = 0; n < 8; ++n) {
      for (int c = 0; c < 4; ++c) {
        double& value =
            s[static_cast<size_t>(n)][static_cast<size_t>(lane)][static_cast<size_t>(c)];
        const int row = FragmentCRow(lane, c), col = 8 * n + FragmentCColumn(lane, c);
        double expected = 0.0;
        for (int d = 0; d < 64; ++d) expected += number(q, row, d) * number(k, col, d);
        ASSERT_NEAR(value, expected, 1e-9);
        value = static_cast<double>(ToFloat(ToBf16(static_cast<float>(value))));
        p[row][col] = value;
      }
    }
  }

  std::array<Sums, 8> o{};
  for (int step = 0; step < 4; ++step) {
    Registers weights{};
    for (int lane = 0; lane < 32; ++lane) {
      const auto l = static_cast<size_t>(lane);
      for (int r = 0; r < 4; ++r) {
        const auto& group = s[static_cast<size_t>(2 * step + r / 2)][l];
        const auto c = static_cast<size_t>(2 * (r % 2));
        weights[l][static_cast<size_t>(r)] =
            Pair(ToBf16(static_cast<float>(group[c])), ToBf16(static_cast<float>(group[c + 1])));
      }
    }
    for (int n = 0; n < 8; n += 2) {
      std::array<int, 32> address{};
      for (int lane = 0; lane < 32; ++lane) {
        address[static_cast<size_t>(lane)] =
            SwizzledByte(LoadTransposedRow(lane, step), LoadTransposedPiece(lane, n));
      }
      const Registers b = LoadMatrices(values, address, true);
      Mma(&o[static_cast<size_t>(n)], weights, b, 0);
      Mma(&o[static_cast<size_t>(n + 1)], weights, b, 2);
    }
  }
  for (int lane = 0; lane < 32; ++lane) {
    for (int n = 0; n < 8; ++n) {
      for (int c = 0; c < 4; ++c) {
        double expected = 0.0;
        for (int j = 0; j < 64; ++j) {
          expected += p[FragmentCRow(lane, c)][j] * number(v, j, 8 * n + FragmentCColumn(lane, c));
        }
        ASSERT_NEAR(o[static_cast<size_t>(n)][static_cast<size_t>(lane)][static_cast<size_t>(c)],
                    expected,
                    1e-9);
      }
    }
  }
}

// Eight rows' equal pieces, and what a warp copies at once, lie in different banks.
TEST(SwizzleTest, EightRowsPiecesTouchAllBanksOnce) {
  for (int piece = 0; piece < kPieces; ++piece) {
    std::set<int> groups;
    for (int row = 0; row < 8; ++row) groups.insert(SwizzledByte(row, piece) / 16 % 8);
    EXPECT_EQ(groups.size(), 8u);
  }
}

}  // namespace
}  // namespace shoal::cuda
