#include "kernels/numeric.h"

#include <cmath>
#include <vector>

#include "gtest/gtest.h"

namespace shoal {
namespace {

float FromBits(uint32_t bits) {
  return std::bit_cast<float>(bits);
}

TEST(Bf16Test, EveryValueSurvivesTheRoundTrip) {
  for (uint32_t bits = 0; bits < 0x10000; ++bits) {
    const float x = ToFloat({static_cast<uint16_t>(bits)});
    if (std::isnan(x)) {
      EXPECT_EQ(ToBf16(x).bits, 0x7fc0) << bits;
    } else {
      EXPECT_EQ(ToBf16(x).bits, bits);
    }
  }
}

// Against the definition: of the two neighbours the nearer, of two equally near the even one.
TEST(Bf16Test, RoundsToTheNearestAndTiesToEven) {
  for (uint32_t high = 0; high < 0xff80; ++high) {
    if ((high & 0x7fff) >= 0x7f80) continue;
    for (const uint32_t low : {0x0000u, 0x0001u, 0x7fffu, 0x8000u, 0x8001u, 0xffffu}) {
      const bool up = low > 0x8000 || (low == 0x8000 && (high & 1) != 0);
      EXPECT_EQ(ToBf16(FromBits(high << 16 | low)).bits, high + (up ? 1 : 0)) << high << " " << low;
    }
  }
}

TEST(Bf16Test, OverflowsToInfinityAndKeepsNan) {
  EXPECT_EQ(ToBf16(FromBits(0x7f7fffff)).bits, 0x7f80);
  EXPECT_EQ(ToBf16(FromBits(0xff7fffff)).bits, 0xff80);
  for (const uint32_t nan : {0x7f800001u, 0x7fffffffu, 0xff800001u, 0xffc00000u}) {
    EXPECT_EQ(ToBf16(FromBits(nan)).bits, 0x7fc0);
  }
}

// gpt-oss.md 8.1, the Open Compute MX 1.0 example block.
TEST(Mxfp4Test, DecodesTheExampleBlock) {
  const uint8_t bytes[16] = {0x10,
                             0x32,
                             0x54,
                             0x76,
                             0x98,
                             0xba,
                             0xdc,
                             0xfe,
                             0x7f,
                             0x08,
                             0x80,
                             0xf1,
                             0x2a,
                             0x5e,
                             0xc3,
                             0x69};
  const float expected[32] = {0,     0.5f, 1,  1.5f, 2,  3,  4,    6,  0,     -0.5f, -1,
                              -1.5f, -2,   -3, -4,   -6, -6, 6,    0,  0,     0,     0,
                              0.5f,  -6,   -1, 1,    -4, 3,  1.5f, -2, -0.5f, 4};
  const float scale = FromE8m0(122) * 0.5f;  // Half, because the codes are doubled.
  EXPECT_EQ(FromE8m0(122), 0.03125f);
  float sum = 0;
  for (uint32_t k = 0; k < 32; ++k) {
    const uint32_t code = (bytes[k / 2] >> (k % 2 * 4)) & 15u;
    const float value = static_cast<float>(DoubledE2m1(code)) * scale;
    EXPECT_EQ(value, expected[k] * 0.03125f) << k;
    sum += value;
  }
  EXPECT_EQ(sum, -0.109375f);
}

TEST(Mxfp4Test, EveryScaleIsThePowerOfTwoItNames) {
  for (int byte = 0; byte < 255; ++byte) {
    EXPECT_EQ(FromE8m0(static_cast<uint8_t>(byte)), std::ldexp(1.0f, byte - 127));
  }
  EXPECT_TRUE(std::isnan(FromE8m0(255)));
}

double ErrorInUlps(float value, long double exact) {
  int exponent = 0;
  std::frexp(static_cast<double>(exact), &exponent);
  const long double ulp = std::ldexp(1.0L, std::max(exponent, -125) - 24);
  return static_cast<double>(std::abs(static_cast<long double>(value) - exact) / ulp);
}

// One float in 397 of all; 397 is prime, so that every pattern of low bits occurs.
TEST(ExpTest, IsWithinOneUlp) {
  double worst = 0;
  float worst_x = 0;
  for (uint32_t magnitude = 0; magnitude < 0x42b20000u; magnitude += 397) {
    for (const uint32_t sign : {0u, 0x80000000u}) {
      const float x = FromBits(magnitude | sign);
      if (x > ExpConstants::kMax || x < ExpConstants::kMin) continue;
      const double error = ErrorInUlps(Exp(x), std::exp(static_cast<long double>(x)));
      if (error > worst) {
        worst = error;
        worst_x = x;
      }
    }
  }
  RecordProperty("worst_ulp", std::to_string(worst));
  EXPECT_LT(worst, 0.9) << "at " << worst_x;
}

TEST(ExpTest, MeetsItsEdges) {
  constexpr float kInf = std::numeric_limits<float>::infinity();
  EXPECT_EQ(Exp(0.0f), 1.0f);
  EXPECT_EQ(Exp(-0.0f), 1.0f);
  EXPECT_EQ(Exp(kInf), kInf);
  EXPECT_EQ(Exp(-kInf), 0.0f);
  EXPECT_FALSE(std::signbit(Exp(-kInf)));
  EXPECT_TRUE(std::isnan(Exp(std::numeric_limits<float>::quiet_NaN())));
  EXPECT_TRUE(std::isfinite(Exp(ExpConstants::kMax)));
  EXPECT_EQ(Exp(std::nextafter(ExpConstants::kMax, kInf)), kInf);
  EXPECT_GE(Exp(ExpConstants::kMin), std::numeric_limits<float>::min());
  EXPECT_EQ(Exp(std::nextafter(ExpConstants::kMin, -kInf)), 0.0f);
  // The edges lie where they should: the largest float, and the smallest normal one.
  EXPECT_GT(std::exp(static_cast<long double>(std::nextafter(ExpConstants::kMax, kInf))),
            static_cast<long double>(std::numeric_limits<float>::max()));
  EXPECT_LT(std::exp(static_cast<long double>(std::nextafter(ExpConstants::kMin, -kInf))),
            static_cast<long double>(std::numeric_limits<float>::min()));
}

TEST(LogTest, IsWithinTwoUlps) {
  double worst = 0;
  for (uint64_t i = 0; i < 300'000; ++i) {
    uint64_t bits = RandomBits(1, static_cast<int64_t>(i)) >> 1;
    if (i % 3 == 0) bits = (bits & 0x000fffffffffffffu) | 0x3fe0000000000000u;  // Near one.
    const double x = std::bit_cast<double>(bits);
    if (!std::isnormal(x)) continue;
    const long double exact = std::log(static_cast<long double>(x));
    int exponent = 0;
    std::frexp(static_cast<double>(exact), &exponent);
    const long double ulp = std::ldexp(1.0L, exponent - 53);
    const double error =
        static_cast<double>(std::abs(static_cast<long double>(Log(x)) - exact) / ulp);
    worst = std::max(worst, error);
  }
  EXPECT_LT(worst, 2.0);
  EXPECT_EQ(Log(1.0), 0.0);
}

TEST(RandomTest, IsAFunctionOfItsAddressWithPinnedValues) {
  EXPECT_EQ(RandomBits(7, 3), RandomBits(7, 3));
  EXPECT_NE(RandomBits(7, 3), RandomBits(7, 4));
  EXPECT_NE(RandomBits(7, 3), RandomBits(8, 3));
  // splitmix64 seeded with 0 begins with this number (Steele, Lea, Flood 2014).
  EXPECT_EQ(RandomMix(0x9e3779b97f4a7c15u), 0xe220a8397b1dcdafu);
}

// 256 cells over neighbouring seeds and neighbouring positions, which are what requests use.
// chi^2 with 255 degrees of freedom exceeds 330 with probability 1e-3; the seeds are fixed.
TEST(RandomTest, FillsItsIntervalEvenlyAlongSeedsAndAlongPositions) {
  for (const bool along_seeds : {false, true}) {
    std::vector<int> cells(256);
    constexpr int kDraws = 256 * 400;
    for (int i = 0; i < kDraws; ++i) {
      const double u = along_seeds ? Uniform(static_cast<uint64_t>(i), 5) : Uniform(5, i);
      ASSERT_GE(u, 0.0);
      ASSERT_LT(u, 1.0);
      ++cells[static_cast<size_t>(u * 256)];
    }
    double chi2 = 0;
    for (const int n : cells) chi2 += (n - 400.0) * (n - 400.0) / 400.0;
    EXPECT_LT(chi2, 330);
    EXPECT_GT(chi2, 190);
  }
}

}  // namespace
}  // namespace shoal
