// The leaves of every instruction set against int64 and double arithmetic written from the formulas
// alone, and against each other bit by bit.
#include "kernels/cpu/dot.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <string>
#include <vector>

#include "base/prng.h"

namespace shoal {
namespace {

constexpr double kE2m1[16] = {0, 0.5, 1, 1.5, 2, 3, 4, 6, -0.0, -0.5, -1, -1.5, -2, -3, -4, -6};

std::vector<CpuIsa> Isas() {
  std::vector<CpuIsa> isas = {CpuIsa::kScalar};
  if (BestCpuIsa() >= CpuIsa::kAvx2) isas.push_back(CpuIsa::kAvx2);
  if (BestCpuIsa() >= CpuIsa::kAvx512) isas.push_back(CpuIsa::kAvx512);
  return isas;
}

std::string IsaName(const testing::TestParamInfo<CpuIsa>& isa) {
  return std::string(CpuIsaName(isa.param));
}

Bf16 RandomBf16(Prng& prng, int min_exponent, int max_exponent) {
  const uint64_t exponent = static_cast<uint64_t>(min_exponent + 127) +
                            prng.Below(static_cast<uint64_t>(max_exponent - min_exponent) + 1);
  return {static_cast<uint16_t>(prng.Below(2) << 15 | exponent << 7 | prng.Below(128))};
}

// ---- Quantisation -------------------------------------------------------------------------------

std::vector<QuantBlock> Quantize(const DotTable& dot, const std::vector<Bf16>& x) {
  std::vector<QuantBlock> blocks(x.size() / kMxBlock);
  std::memset(blocks.data(), 0, blocks.size() * sizeof(QuantBlock));
  dot.quantize(x.data(), static_cast<int64_t>(blocks.size()), blocks.data());
  return blocks;
}

class QuantizeTest : public testing::TestWithParam<CpuIsa> {
 protected:
  const DotTable& dot() const { return GetDotTable(GetParam()); }
};

TEST_P(QuantizeTest, EveryLargestMagnitudeGetsTheSmallestScaleThatKeepsTheBound) {
  for (uint32_t bits = 1; bits < 0x7f80; ++bits) {
    std::vector<Bf16> x(kMxBlock, Bf16{0});
    x[13] = {static_cast<uint16_t>(bits | 0x8000u)};
    const QuantBlock block = Quantize(dot(), x)[0];
    const int q = 256 * block.hi[13] + block.lo[13];

    ASSERT_LE(std::abs(q), 32'639) << bits;
    ASSERT_EQ(static_cast<double>(q) * 2.0 * static_cast<double>(block.half_scale),
              static_cast<double>(ToFloat(x[13])))
        << bits;
    // Half the scale would pass the bound, except where subnormals make that needless.
    if (bits >= 0x80) {
      ASSERT_GT(2 * std::abs(q), 32'639) << bits;
    }
  }
}

TEST_P(QuantizeTest, QIsToNearestEvenAndTheOffsetIsTwelveTimesItsSum) {
  Prng prng(7);
  for (int trial = 0; trial < 1'000; ++trial) {
    std::vector<Bf16> x;
    for (int k = 0; k < kMxBlock; ++k) x.push_back(RandomBf16(prng, -10, 3));
    const QuantBlock block = Quantize(dot(), x)[0];

    int sum = 0;
    for (int k = 0; k < kMxBlock; ++k) {
      const int q = 256 * block.hi[k] + block.lo[k];
      const double exact = static_cast<double>(ToFloat(x[static_cast<size_t>(k)])) / 2.0 /
                           static_cast<double>(block.half_scale);
      EXPECT_EQ(q, std::nearbyint(exact));
      sum += q;
    }
    EXPECT_EQ(block.offset, -12 * sum);
  }
}

TEST_P(QuantizeTest, AnInfinityOrNanMakesTheWholeBlockNan) {
  for (const int bits : {0x7f80, 0xff80, 0x7fc0, 0xffc1, 0x7f81}) {
    std::vector<Bf16> x(kMxBlock, Bf16{0x3f80});
    x[31] = {static_cast<uint16_t>(bits)};
    const QuantBlock block = Quantize(dot(), x)[0];

    EXPECT_TRUE(std::isnan(block.half_scale));
    EXPECT_THAT(block.hi, testing::Each(0));
    EXPECT_THAT(block.lo, testing::Each(0));
    EXPECT_EQ(block.offset, 0);
  }
}

TEST_P(QuantizeTest, HasTheBitsOfPlainCpp) {
  Prng prng(11);
  for (int trial = 0; trial < 2'000; ++trial) {
    std::vector<Bf16> x;
    for (int k = 0; k < 3 * kMxBlock; ++k) x.push_back({static_cast<uint16_t>(prng.Next())});
    for (int k = 0; k < kMxBlock; ++k) x[static_cast<size_t>(k)] = RandomBf16(prng, -126, -100);
    const std::vector<QuantBlock> expected = Quantize(GetDotTable(CpuIsa::kScalar), x);
    const std::vector<QuantBlock> got = Quantize(dot(), x);

    ASSERT_EQ(std::memcmp(expected.data(), got.data(), got.size() * sizeof(QuantBlock)), 0);
  }
}

INSTANTIATE_TEST_SUITE_P(Isa, QuantizeTest, testing::ValuesIn(Isas()), IsaName);

// ---- MXFP4 products -----------------------------------------------------------------------------

// Tiles of random codes in the packed layout, and the code and scale of each (row, input).
struct Weights {
  int64_t num_tiles;
  int64_t num_blocks;
  std::vector<std::byte> packed;

  Weights(int64_t tiles, int64_t blocks)
      : num_tiles(tiles),
        num_blocks(blocks),
        packed(static_cast<size_t>(tiles * MxTileBytes(blocks))) {}

  std::byte& CodeByte(int64_t row, int64_t k) {
    const int64_t tile = row / 16 * MxTileBytes(num_blocks);
    return packed[static_cast<size_t>(tile + k / 32 * 256 + 64 * (k % 32 / 8) + 4 * (row % 16) +
                                      k % 4)];
  }

  uint8_t Code(int64_t row, int64_t k) {
    const auto byte = std::to_integer<uint8_t>(CodeByte(row, k));
    return static_cast<uint8_t>(k % 8 < 4 ? byte & 15 : byte >> 4);
  }

  void SetCode(int64_t row, int64_t k, uint8_t code) {
    std::byte& byte = CodeByte(row, k);
    byte = k % 8 < 4 ? (byte & std::byte{0xf0}) | std::byte{code}
                     : (byte & std::byte{0x0f}) | std::byte{code} << 4;
  }

  std::byte& Scale(int64_t row, int64_t block) {
    const int64_t tile = row / 16 * MxTileBytes(num_blocks);
    return packed[static_cast<size_t>(tile + num_blocks * 256 + block * 16 + row % 16)];
  }

  void Randomize(Prng& prng, int min_scale, int max_scale) {
    for (int64_t row = 0; row < num_tiles * 16; ++row) {
      for (int64_t k = 0; k < num_blocks * 32; ++k) {
        SetCode(row, k, static_cast<uint8_t>(prng.Below(16)));
      }
      for (int64_t b = 0; b < num_blocks; ++b) {
        const uint64_t range = static_cast<uint64_t>(max_scale - min_scale) + 1;
        Scale(row, b) =
            static_cast<std::byte>(static_cast<uint64_t>(min_scale) + prng.Below(range));
      }
    }
  }
};

std::vector<float> Product(const DotTable& dot,
                           const Weights& weights,
                           const std::vector<Bf16>& x,
                           int64_t num_rows) {
  const std::vector<QuantBlock> blocks = Quantize(dot, x);
  std::vector<const QuantBlock*> rows;
  for (int64_t r = 0; r < num_rows; ++r) rows.push_back(blocks.data() + r * weights.num_blocks);
  std::vector<float> sums(static_cast<size_t>(num_rows * weights.num_tiles * 16), -1.0f);
  dot.mx_product({.tiles = weights.packed.data(),
                  .num_tiles = weights.num_tiles,
                  .num_blocks = weights.num_blocks,
                  .rows = rows.data(),
                  .num_rows = num_rows,
                  .sums = sums.data()});
  return sums;
}

bool SameBits(const std::vector<float>& a, const std::vector<float>& b) {
  return a.size() == b.size() && std::equal(a.begin(), a.end(), b.begin(), [](float x, float y) {
           return std::memcmp(&x, &y, sizeof(x)) == 0 || (std::isnan(x) && std::isnan(y));
         });
}

class MxProductTest : public testing::TestWithParam<CpuIsa> {
 protected:
  const DotTable& dot() const { return GetDotTable(GetParam()); }
};

TEST_P(MxProductTest, TheWorkedExampleOfTheSpecification) {
  constexpr uint8_t kBytes[16] = {0x10,
                                  0x32,
                                  0x54,
                                  0x76,
                                  0x98,
                                  0xBA,
                                  0xDC,
                                  0xFE,
                                  0x7F,
                                  0x08,
                                  0x80,
                                  0xF1,
                                  0x2A,
                                  0x5E,
                                  0xC3,
                                  0x69};
  Weights weights(1, 1);
  for (int64_t k = 0; k < 32; ++k) {
    const uint8_t byte = kBytes[k / 2];
    weights.SetCode(5, k, static_cast<uint8_t>(k % 2 == 0 ? byte & 15 : byte >> 4));
  }
  weights.Scale(5, 0) = std::byte{122};
  std::vector<Bf16> ones(32, ToBf16(1.0f));
  std::vector<Bf16> rising;
  for (int k = 0; k < 32; ++k) rising.push_back(ToBf16(static_cast<float>(k)));

  EXPECT_EQ(Product(dot(), weights, ones, 1)[5], -0.109375f);
  EXPECT_EQ(Product(dot(), weights, rising, 1)[5], -6.0625f);
}

TEST_P(MxProductTest, EveryCodeAtEveryInputWithEveryScale) {
  std::vector<Bf16> x;
  for (int k = 0; k < 32; ++k) x.push_back(ToBf16(static_cast<float>(1 + k)));
  for (const int scale : {0, 1, 2, 127, 252, 253, 254}) {
    for (int64_t k = 0; k < 32; ++k) {
      Weights weights(1, 1);
      for (int64_t row = 0; row < 16; ++row) {
        weights.SetCode(row, k, static_cast<uint8_t>(row));
        weights.Scale(row, 0) = static_cast<std::byte>(scale);
      }
      for (const int64_t num_rows : {1, 6}) {
        std::vector<Bf16> rows;
        for (int64_t r = 0; r < num_rows; ++r) rows.insert(rows.end(), x.begin(), x.end());
        const std::vector<float> sums = Product(dot(), weights, rows, num_rows);
        for (int64_t i = 0; i < num_rows * 16; ++i) {
          const double exact = std::ldexp(kE2m1[i % 16] * static_cast<double>(1 + k), scale - 127);
          ASSERT_EQ(sums[static_cast<size_t>(i)], static_cast<float>(exact))
              << "scale " << scale << " input " << k << " value " << i;
        }
      }
    }
  }
}

// What the header promises, in int64 and double: only the additions of blocks round.
TEST_P(MxProductTest, BlocksAreExactAndAddedInRisingOrder) {
  Prng prng(3);
  for (const int64_t num_rows : {1, 2, 3, 4, 5, 6, 7, 11, 12, 13, 64}) {
    for (const int64_t num_tiles : {1, 2, 3, 4}) {
      const int64_t num_blocks = 1 + static_cast<int64_t>(prng.Below(19));
      Weights weights(num_tiles, num_blocks);
      weights.Randomize(prng, 110, 125);
      std::vector<Bf16> x;
      for (int64_t i = 0; i < num_rows * num_blocks * 32; ++i) {
        x.push_back(RandomBf16(prng, -9, 2));
      }
      const std::vector<QuantBlock> blocks = Quantize(GetDotTable(CpuIsa::kScalar), x);
      const std::vector<float> sums = Product(dot(), weights, x, num_rows);
      for (int64_t i = 0; i < num_rows * num_tiles * 16; ++i) {
        const int64_t row = i % (num_tiles * 16);
        float expected = 0.0f;
        for (int64_t b = 0; b < num_blocks; ++b) {
          const QuantBlock& block =
              blocks[static_cast<size_t>(i / (num_tiles * 16) * num_blocks + b)];
          int64_t integer = 0;
          for (int k = 0; k < 32; ++k) {
            integer += static_cast<int64_t>(2 * kE2m1[weights.Code(row, b * 32 + k)]) *
                       (256 * block.hi[k] + block.lo[k]);
          }
          ASSERT_LT(std::abs(integer), int64_t{1} << 24);
          const double scaled = static_cast<double>(integer) *
                                static_cast<double>(block.half_scale) *
                                std::ldexp(1.0, std::to_integer<int>(weights.Scale(row, b)) - 127);
          expected = static_cast<float>(static_cast<double>(expected) + scaled);
        }
        ASSERT_EQ(sums[static_cast<size_t>(i)], expected) << num_rows << " rows, value " << i;
      }
    }
  }
}

TEST_P(MxProductTest, TheRelativeErrorAgainstRealNumbersIsThatOfSixteenBits) {
  Prng prng(5);
  constexpr int64_t kBlocks = 90;
  Weights weights(1, kBlocks);
  weights.Randomize(prng, 118, 122);
  std::vector<Bf16> x;
  for (int64_t i = 0; i < kBlocks * 32; ++i) x.push_back(RandomBf16(prng, -9, 2));
  const std::vector<float> sums = Product(dot(), weights, x, 1);
  double error = 0;
  double norm = 0;
  for (int64_t row = 0; row < 16; ++row) {
    double exact = 0;
    for (int64_t k = 0; k < kBlocks * 32; ++k) {
      exact += std::ldexp(kE2m1[weights.Code(row, k)],
                          std::to_integer<int>(weights.Scale(row, k / 32)) - 127) *
               static_cast<double>(ToFloat(x[static_cast<size_t>(k)]));
    }
    error += std::pow(static_cast<double>(sums[static_cast<size_t>(row)]) - exact, 2);
    norm += exact * exact;
  }

  EXPECT_LT(std::sqrt(error / norm), 1e-4);
}

TEST_P(MxProductTest, HasTheBitsOfPlainCppOnAnyInput) {
  Prng prng(17);
  for (int trial = 0; trial < 60; ++trial) {
    const auto num_rows = static_cast<int64_t>(1 + prng.Below(20));
    const auto num_tiles = static_cast<int64_t>(1 + prng.Below(4));
    const auto num_blocks = static_cast<int64_t>(1 + prng.Below(17));
    Weights weights(num_tiles, num_blocks);
    weights.Randomize(prng, 0, 254);
    std::vector<Bf16> x;
    for (int64_t i = 0; i < num_rows * num_blocks * 32; ++i) {
      // Zeros, subnormals, the largest numbers, and in every third trial infinities and NaNs.
      const Bf16 value = {static_cast<uint16_t>(prng.Next())};
      const bool finite = (value.bits & 0x7fffu) < 0x7f80u;
      const bool small = prng.Below(4) == 0;
      x.push_back(small ? Bf16{static_cast<uint16_t>(value.bits & 0x80ffu)}
                  : finite || (trial % 3 == 0 && prng.Below(50) == 0) ? value
                                                                      : Bf16{0});
    }

    EXPECT_TRUE(SameBits(Product(GetDotTable(CpuIsa::kScalar), weights, x, num_rows),
                         Product(dot(), weights, x, num_rows)))
        << "trial " << trial;
  }
}

TEST_P(MxProductTest, ARowOfTheBatchHasTheBitsOfTheRowAlone) {
  Prng prng(23);
  constexpr int64_t kBlocks = 11;
  Weights weights(3, kBlocks);
  weights.Randomize(prng, 100, 140);
  std::vector<Bf16> x;
  for (int64_t i = 0; i < 17 * kBlocks * 32; ++i) x.push_back(RandomBf16(prng, -20, 20));
  const std::vector<float> together = Product(dot(), weights, x, 17);
  for (int64_t r = 0; r < 17; ++r) {
    const std::vector<Bf16> row(x.begin() + r * kBlocks * 32, x.begin() + (r + 1) * kBlocks * 32);
    const std::vector<float> alone = Product(dot(), weights, row, 1);
    EXPECT_TRUE(SameBits(alone, {together.begin() + r * 48, together.begin() + (r + 1) * 48}));
  }
}

TEST_P(MxProductTest, ANonFiniteActivationMakesTheRowNanAndNoOther) {
  Prng prng(29);
  Weights weights(1, 2);
  weights.Randomize(prng, 0, 254);
  std::vector<Bf16> x(3 * 64, ToBf16(0.0f));
  x[64 + 40] = {0xff80};
  const std::vector<float> sums = Product(dot(), weights, x, 3);
  for (size_t i = 0; i < 48; ++i) {
    if (i / 16 == 1) {
      EXPECT_TRUE(std::isnan(sums[i]));
    } else {
      EXPECT_EQ(sums[i], 0.0f);
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Isa, MxProductTest, testing::ValuesIn(Isas()), IsaName);

// ---- bf16 products ------------------------------------------------------------------------------

class LinearProductTest : public testing::TestWithParam<CpuIsa> {
 protected:
  // Rows of random values in [2^-8, 2^3), and their product by the table under test.
  std::vector<float> Product(const DotTable& dot,
                             const std::vector<float>& x,
                             int64_t num_rows,
                             const std::vector<Bf16>& w,
                             int64_t num_outs,
                             int64_t in) {
    const int64_t stride = PanelStride(in);
    std::vector<float> memory(static_cast<size_t>(num_rows * stride) + 16,
                              std::numeric_limits<float>::quiet_NaN());
    auto address = reinterpret_cast<uintptr_t>(memory.data());
    float* panel = memory.data() + (64 - address % 64) % 64 / sizeof(float);
    for (int64_t r = 0; r < num_rows; ++r) {
      std::copy_n(x.data() + r * in, in, panel + r * stride);
    }
    std::vector<float> out(static_cast<size_t>(num_rows * num_outs), -1.0f);
    dot.linear_product({.x = panel,
                        .x_stride = stride,
                        .num_rows = num_rows,
                        .weight = w.data(),
                        .weight_stride = in,
                        .num_outs = num_outs,
                        .in = in,
                        .out = out.data(),
                        .out_stride = num_outs});
    return out;
  }
};

TEST_P(LinearProductTest, SumsByLanes) {
  Prng prng(31);
  for (const int64_t num_rows : {1, 2, 3, 4, 5, 7, 8, 16, 17, 64}) {
    for (const int64_t num_outs : {1, 4, 5, 6, 7, 13}) {
      for (const int64_t in : {1, 15, 16, 17, 31, 32, 33, 96, 1'024, 1'031, 2'880}) {
        std::vector<float> x;
        for (int64_t i = 0; i < num_rows * in; ++i) x.push_back(ToFloat(RandomBf16(prng, -8, 2)));
        std::vector<Bf16> w;
        for (int64_t i = 0; i < num_outs * in; ++i) w.push_back(RandomBf16(prng, -8, 2));
        const std::vector<float> out =
            Product(GetDotTable(GetParam()), x, num_rows, w, num_outs, in);

        const int64_t row = static_cast<int64_t>(prng.Below(static_cast<uint64_t>(num_rows)));
        for (int64_t o = 0; o < num_outs; ++o) {
          double lanes[16] = {};  // Each sum is rounded to float: an fma, since products are exact.
          for (int64_t k = 0; k < in; ++k) {
            const double product = static_cast<double>(x[static_cast<size_t>(row * in + k)]) *
                                   static_cast<double>(ToFloat(w[static_cast<size_t>(o * in + k)]));
            lanes[k % 16] = static_cast<double>(static_cast<float>(lanes[k % 16] + product));
          }
          for (int half = 8; half >= 1; half /= 2) {
            for (int j = 0; j < half; ++j) {
              lanes[j] = static_cast<double>(static_cast<float>(lanes[j] + lanes[j + half]));
            }
          }
          ASSERT_EQ(out[static_cast<size_t>(row * num_outs + o)], static_cast<float>(lanes[0]))
              << num_rows << " rows, in " << in << ", out " << o;
        }
      }
    }
  }
}

TEST_P(LinearProductTest, HasTheBitsOfPlainCppOnAnyInput) {
  Prng prng(37);
  for (int trial = 0; trial < 60; ++trial) {
    const auto num_rows = static_cast<int64_t>(1 + prng.Below(20));
    const auto num_outs = static_cast<int64_t>(1 + prng.Below(9));
    const auto in = static_cast<int64_t>(1 + prng.Below(100));
    std::vector<float> x;
    std::vector<Bf16> w;
    for (int64_t i = 0; i < num_rows * in; ++i) {
      x.push_back(ToFloat({static_cast<uint16_t>(prng.Next())}));
    }
    // Subnormal products, of either sign, next to infinities and NaNs.
    for (int64_t i = 0; i < num_outs * in; ++i) {
      w.push_back({static_cast<uint16_t>(prng.Next() & (trial % 2 == 0 ? 0xffff : 0x80ff))});
    }

    EXPECT_TRUE(SameBits(Product(GetDotTable(CpuIsa::kScalar), x, num_rows, w, num_outs, in),
                         Product(GetDotTable(GetParam()), x, num_rows, w, num_outs, in)))
        << "trial " << trial;
  }
}

INSTANTIATE_TEST_SUITE_P(Isa, LinearProductTest, testing::ValuesIn(Isas()), IsaName);

// ---- SwiGLU and finishing -----------------------------------------------------------------------

class EpilogueTest : public testing::TestWithParam<CpuIsa> {
 protected:
  const DotTable& dot() const { return GetDotTable(GetParam()); }

  std::vector<Bf16> SwiGlu(const DotTable& dot,
                           const std::vector<float>& sums,
                           const std::vector<float>& bias) {
    std::vector<Bf16> h(sums.size() / 2);
    dot.swiglu({.sums = sums.data(),
                .bias = bias.data(),
                .count = static_cast<int64_t>(h.size()),
                .alpha = 1.702f,
                .limit = 7.0f,
                .h = h.data()});
    return h;
  }
};

TEST_P(EpilogueTest, SwiGluHasTheValuesOfTheSpecification) {
  const std::vector<float> sums = {1, 0.5, 10, -9, -3, 8, -20, 2, 0.5, -1, 7, 7};
  const std::vector<Bf16> h = SwiGlu(dot(), sums, std::vector<float>(sums.size(), 0.0f));

  const float expected[] = {1.2686937f, -41.999718f, -0.14457048f, -9.88e-14f, 0.0f, 55.999626f};
  for (size_t j = 0; j < h.size(); ++j) {
    EXPECT_NEAR(ToFloat(h[j]), expected[j], std::abs(expected[j]) * 0x1p-8f) << j;
  }
}

TEST_P(EpilogueTest, SwiGluIsTheFormulaRoundedToBf16) {
  Prng prng(41);
  std::vector<float> sums;
  std::vector<float> bias;
  for (int i = 0; i < 2 * 1'000 + 2 * 7; ++i) {
    sums.push_back(static_cast<float>(prng.Below(4'000)) / 100.0f - 20.0f);
    bias.push_back(static_cast<float>(prng.Below(100)) / 100.0f);
  }
  const std::vector<Bf16> h = SwiGlu(dot(), sums, bias);
  for (size_t j = 0; j < h.size(); ++j) {
    const double gate = static_cast<double>(sums[2 * j] + bias[2 * j]);
    const double up = static_cast<double>(sums[2 * j + 1] + bias[2 * j + 1]);
    const double a = std::min(gate, 7.0);
    const double exact = a / (1.0 + std::exp(-1.702 * a)) * (std::clamp(up, -7.0, 7.0) + 1.0);
    ASSERT_NEAR(static_cast<double>(ToFloat(h[j])), exact, std::abs(exact) * 0x1.01p-8 + 1e-30);
  }
}

TEST_P(EpilogueTest, HasTheBitsOfPlainCpp) {
  Prng prng(43);
  const DotTable& plain = GetDotTable(CpuIsa::kScalar);
  for (const size_t count : {1u, 15u, 16u, 17u, 32u, 1'000u}) {
    std::vector<float> sums;
    std::vector<float> bias;
    for (size_t i = 0; i < 2 * count; ++i) {
      const auto bits = static_cast<uint32_t>(prng.Next());
      sums.push_back(i % 5 == 0 ? std::bit_cast<float>(bits)
                                : static_cast<float>(bits % 100'000) / 1e3f - 50.0f);
      bias.push_back(static_cast<float>(bits % 7));
    }

    EXPECT_EQ(SwiGlu(plain, sums, bias), SwiGlu(dot(), sums, bias));

    for (const float* b :
         {static_cast<const float*>(nullptr), static_cast<const float*>(bias.data())}) {
      const auto n = static_cast<int64_t>(sums.size());
      std::vector<Bf16> expected(sums.size());
      std::vector<Bf16> got(sums.size());
      plain.finish_bf16(sums.data(), b, n, expected.data());
      dot().finish_bf16(sums.data(), b, n, got.data());
      EXPECT_EQ(expected, got);

      std::vector<float> expected_f32(sums.size());
      std::vector<float> got_f32(sums.size());
      plain.finish_f32(sums.data(), b, n, expected_f32.data());
      dot().finish_f32(sums.data(), b, n, got_f32.data());
      EXPECT_EQ(std::memcmp(expected_f32.data(), got_f32.data(), sums.size() * sizeof(float)), 0);
    }
  }
}

TEST_P(EpilogueTest, ReadBytesReadsEveryCacheLine) {
  std::vector<std::byte> memory(2 * 4'096, std::byte{0});
  for (size_t line = 0; line < memory.size(); line += 64) {
    memory[line + line / 64 % 64] = std::byte{1};
    EXPECT_NE(dot().read_bytes(memory.data(), static_cast<int64_t>(memory.size())), 0) << line;
    memory[line + line / 64 % 64] = std::byte{0};
  }
  EXPECT_EQ(dot().read_bytes(memory.data(), static_cast<int64_t>(memory.size())), 0);
}

INSTANTIATE_TEST_SUITE_P(Isa, EpilogueTest, testing::ValuesIn(Isas()), IsaName);

}  // namespace
}  // namespace shoal
