// CpuBackend::Linear: against double arithmetic over awkward shapes, every backend against the
// scalar one bit for bit, rows against themselves alone. The order of the sums is dot_test's.
#include <cmath>
#include <cstring>
#include <limits>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"

#include "kernels/cpu/backend.h"
#include "tests/kernels/arrays.h"

namespace shoal {
namespace {

constexpr float kNan = std::numeric_limits<float>::quiet_NaN();
constexpr float kInf = std::numeric_limits<float>::infinity();

struct Case {
  int64_t rows;
  int64_t outs;
  int64_t in;
};

constexpr Case kCases[] = {{1, 1, 1},
                           {1, 33, 17},
                           {7, 130, 96},
                           {16, 48, 64},
                           {17, 25, 31},
                           {64, 100, 45},
                           {65, 121, 90},
                           {130, 7, 2'880},
                           {3, 250, 1'031}};

// Where the sum of |products| is `magnitude`, fp32 additions may err by this much.
double Tolerance(double magnitude, int64_t in) {
  return magnitude * static_cast<double>(in / 16 + 8) * 0x1p-24;
}

TEST(LinearTest, AgreesWithDoubleArithmeticAndAcrossInstructionSets) {
  const std::vector<NamedBackend> all = AllBackends();
  for (const Case& c : kCases) {
    for (const bool has_bias : {false, true}) {
      std::vector<Bf16> x = RandomBf16(1, c.rows * c.in, 2.0);
      std::vector<Bf16> weight = RandomBf16(2, c.outs * c.in, 0.5);
      const std::vector<float> bias = RandomFloats(3, c.outs, 1.0);
      std::vector<std::vector<float>> outs;
      for (const NamedBackend& b : all) {
        outs.emplace_back(static_cast<size_t>(c.rows * c.outs), kNan);
        std::vector<Bf16> rounded(outs.back().size());
        LinearArgs args = {.x = View(x, c.rows, c.in),
                           .weight = View(weight, c.outs, c.in),
                           .bias = has_bias ? bias.data() : nullptr,
                           .out = View(outs.back(), c.rows, c.outs)};
        b.backend->Linear(args);
        args.out = View(rounded, c.rows, c.outs);
        b.backend->Linear(args);

        EXPECT_EQ(rounded, ToBf16s(outs.back())) << b.name;
        EXPECT_EQ(std::memcmp(outs.back().data(), outs[0].data(), outs[0].size() * sizeof(float)),
                  0)
            << b.name << ", in " << c.in;
      }
      for (int64_t r = 0; r < c.rows; ++r) {
        for (int64_t o = 0; o < c.outs; ++o) {
          double exact = has_bias ? static_cast<double>(bias[static_cast<size_t>(o)]) : 0.0;
          double magnitude = std::abs(exact);
          for (int64_t k = 0; k < c.in; ++k) {
            const double product =
                static_cast<double>(ToFloat(x[static_cast<size_t>(r * c.in + k)])) *
                static_cast<double>(ToFloat(weight[static_cast<size_t>(o * c.in + k)]));
            exact += product;
            magnitude += std::abs(product);
          }
          ASSERT_NEAR(static_cast<double>(outs[0][static_cast<size_t>(r * c.outs + o)]),
                      exact,
                      Tolerance(magnitude, c.in))
              << "row " << r << ", out " << o << ", in " << c.in;
        }
      }
    }
  }
}

TEST(LinearTest, ARowHasTheBitsItHasAlone) {
  constexpr int64_t kOuts = 61;
  constexpr int64_t kIn = 1'100;
  std::vector<Bf16> x = RandomBf16(4, 66 * kIn, 1.0);
  std::vector<Bf16> weight = RandomBf16(5, kOuts * kIn, 1.0);
  for (const NamedBackend& b : AllBackends()) {
    std::vector<float> together(66 * kOuts);
    b.backend->Linear({.x = View(x, 66, kIn),
                       .weight = View(weight, kOuts, kIn),
                       .bias = nullptr,
                       .out = View(together, 66, kOuts)});
    for (const int64_t rows : {1, 2, 4, 5, 16, 17, 64}) {
      std::vector<float> few(static_cast<size_t>(rows * kOuts));
      b.backend->Linear({.x = View(x, 66, kIn).Slice(66 - rows, rows),
                         .weight = View(weight, kOuts, kIn),
                         .bias = nullptr,
                         .out = View(few, rows, kOuts)});
      EXPECT_EQ(std::memcmp(
                    few.data(), together.data() + (66 - rows) * kOuts, few.size() * sizeof(float)),
                0)
          << b.name << ", rows " << rows;
    }
  }
}

TEST(LinearTest, ReadsAndWritesThroughStridesAndTouchesNothingElse) {
  constexpr int64_t kRows = 18;
  constexpr int64_t kOuts = 20;
  constexpr int64_t kIn = 50;
  std::vector<Bf16> wide = RandomBf16(6, kRows * 80, 1.0);
  std::vector<Bf16> weights = RandomBf16(7, kOuts * 64, 1.0);
  std::vector<Bf16> x;
  std::vector<Bf16> weight;
  for (int64_t r = 0; r < kRows; ++r) {
    x.insert(x.end(), wide.begin() + r * 80 + 30, wide.begin() + r * 80 + 80);
  }
  for (int64_t o = 0; o < kOuts; ++o) {
    weight.insert(weight.end(), weights.begin() + o * 64, weights.begin() + o * 64 + kIn);
  }
  for (const NamedBackend& b : AllBackends()) {
    std::vector<float> expected(kRows * kOuts);
    b.backend->Linear({.x = View(x, kRows, kIn),
                       .weight = View(weight, kOuts, kIn),
                       .bias = nullptr,
                       .out = View(expected, kRows, kOuts)});
    std::vector<float> out(kRows * 32, -7.0f);
    b.backend->Linear({.x = View(wide, kRows, 80).Columns(30, kIn),
                       .weight = View(weights, kOuts, 64).Columns(0, kIn),
                       .bias = nullptr,
                       .out = View(out, kRows, 32).Columns(4, kOuts)});
    for (int64_t i = 0; i < kRows * 32; ++i) {
      const int64_t o = i % 32 - 4;
      const float value =
          o >= 0 && o < kOuts ? expected[static_cast<size_t>(i / 32 * kOuts + o)] : -7.0f;
      ASSERT_EQ(out[static_cast<size_t>(i)], value) << b.name << ", element " << i;
    }
  }
}

TEST(LinearTest, NoRowsAreNoWork) {
  std::vector<Bf16> weight(64);
  std::vector<Bf16> x(16);
  std::vector<Bf16> out(4);
  for (const NamedBackend& b : AllBackends()) {
    b.backend->Linear({.x = View(x, 0, 16),
                       .weight = View(weight, 4, 16),
                       .bias = nullptr,
                       .out = View(out, 0, 4)});
  }
}

TEST(LinearTest, InfinitiesAndNansFollowTheirRowsOnly) {
  std::vector<Bf16> x = ToBf16s({1, kInf, 1, 1, 1, kNan, 1, 1, 1});
  std::vector<Bf16> weight = ToBf16s({1, 1, 1, 1, 0, 1});
  for (const NamedBackend& b : AllBackends()) {
    std::vector<float> out(6);
    b.backend->Linear({.x = View(x, 3, 3),
                       .weight = View(weight, 2, 3),
                       .bias = nullptr,
                       .out = View(out, 3, 2)});
    EXPECT_EQ(out[0], kInf) << b.name;
    EXPECT_TRUE(std::isnan(out[1])) << b.name;  // Infinity times zero.
    EXPECT_TRUE(std::isnan(out[2]) && std::isnan(out[3])) << b.name;
    EXPECT_THAT((std::vector<float>{out[4], out[5]}), testing::ElementsAre(3.0f, 2.0f)) << b.name;
  }
}

}  // namespace
}  // namespace shoal
