// The vector types against the scalar functions of numeric.h, over as many values as a second
// allows: exp on one float in 397, rounding to bf16 on sums that meet every special case.
#include "kernels/cpu/row_kernels.h"

#include <bit>
#include <cmath>
#include <limits>
#include <vector>

#include "gtest/gtest.h"

#include "tests/kernels/arrays.h"

namespace shoal {
namespace {

std::vector<CpuIsa> AvailableIsas() {
  std::vector<CpuIsa> isas;
  for (const CpuIsa isa : {CpuIsa::kScalar, CpuIsa::kAvx2, CpuIsa::kAvx512}) {
    if (isa <= BestCpuIsa()) isas.push_back(isa);
  }
  return isas;
}

// Equal bits, or both NaN.
bool Same(float a, float b) {
  return std::bit_cast<uint32_t>(a) == std::bit_cast<uint32_t>(b) ||
         (std::isnan(a) && std::isnan(b));
}

TEST(RowKernelsTest, ExpHasTheBitsOfTheScalarFunction) {
  constexpr size_t kBatch = 4099;  // Not a multiple of any width.
  std::vector<float> x;
  std::vector<float> y(kBatch);
  for (uint64_t bits = 0; bits < (uint64_t{1} << 32); bits += 397) {
    x.push_back(std::bit_cast<float>(static_cast<uint32_t>(bits)));
    if (x.size() < kBatch && bits + 397 < (uint64_t{1} << 32)) continue;
    for (const CpuIsa isa : AvailableIsas()) {
      GetRowKernels(isa).exp(x.data(), static_cast<int64_t>(x.size()), 0.0f, y.data());
      for (size_t i = 0; i < x.size(); ++i) {
        ASSERT_TRUE(Same(y[i], Exp(x[i]))) << CpuIsaName(isa) << ", exp of " << x[i];
      }
    }
    x.clear();
  }
}

// By way of rotations, which round a sum of two products.
TEST(RowKernelsTest, RoundingToBf16HasTheBitsOfTheScalarFunction) {
  constexpr int64_t kHalf = 1003;
  std::vector<Bf16> a;
  std::vector<Bf16> b;
  for (uint32_t bits = 0; bits < 0x10000; ++bits) {
    for (const uint32_t other :
         {0x0000u, 0x3f80u, 0x3f81u, 0x7f7fu, 0x7f80u, 0xff80u, 0x7fc1u, 0x8001u}) {
      a.push_back({static_cast<uint16_t>(bits)});
      b.push_back({static_cast<uint16_t>(other)});
    }
  }
  // By the first factor sums fall between two bf16, by the second (256 + 1, 258 + 1) halfway.
  for (const float factor : {0x1.000ep-3f, 1.0f}) {
    const std::vector<float> cos(kHalf, 1.0f), sin(kHalf, -factor);
    for (const CpuIsa isa : AvailableIsas()) {
      for (size_t first = 0; first < a.size(); first += kHalf) {
        const size_t n = std::min<size_t>(kHalf, a.size() - first);
        std::vector<Bf16> pairs(a.data() + first, a.data() + first + n);
        pairs.insert(pairs.end(), b.data() + first, b.data() + first + n);
        GetRowKernels(isa).rotate(pairs.data(), cos.data(), sin.data(), static_cast<int64_t>(n));
        for (size_t i = 0; i < n; ++i) {
          const float x = ToFloat(a[first + i]), y = ToFloat(b[first + i]);
          ASSERT_EQ(pairs[i], ToBf16(x + y * factor)) << CpuIsaName(isa) << ", " << x << " " << y;
          ASSERT_EQ(pairs[n + i], ToBf16(y - x * factor))
              << CpuIsaName(isa) << ", " << x << " " << y;
        }
      }
    }
  }
}

TEST(RowKernelsTest, MaxLeavesOutWhatIsNotANumber) {
  constexpr float kNan = std::numeric_limits<float>::quiet_NaN();
  constexpr float kInf = std::numeric_limits<float>::infinity();
  for (const CpuIsa isa : AvailableIsas()) {
    const RowKernels& kernels = GetRowKernels(isa);
    EXPECT_EQ(kernels.max(nullptr, 0), -kInf);
    for (int64_t n = 1; n < 70; ++n) {
      for (int64_t best = 0; best < n; ++best) {
        std::vector<float> x(static_cast<size_t>(n), best % 2 == 0 ? kNan : -5.0f);
        x[static_cast<size_t>(best)] = -2.0f;
        ASSERT_EQ(kernels.max(x.data(), n), -2.0f) << CpuIsaName(isa) << " " << n;
        x[static_cast<size_t>(best)] = kNan;
        ASSERT_EQ(kernels.max(x.data(), n), best % 2 == 0 || n == 1 ? -kInf : -5.0f);
      }
    }
  }
}

TEST(RowKernelsTest, SumExpIsCloseToDoubleAndEqualEverywhere) {
  for (const int64_t n : {1, 15, 17, 4095, 4096, 4097, 50'000}) {
    const std::vector<float> x = RandomFloats(1, n, 3.0);
    double exact = 0;
    for (const float value : x) exact += std::exp(static_cast<double>(value) - 9.0);
    const double first = GetRowKernels(CpuIsa::kScalar).sum_exp(x.data(), n, 9.0f);
    EXPECT_NEAR(first, exact, exact * 2e-6);
    for (const CpuIsa isa : AvailableIsas()) {
      EXPECT_EQ(GetRowKernels(isa).sum_exp(x.data(), n, 9.0f), first) << CpuIsaName(isa);
    }
  }
}

}  // namespace
}  // namespace shoal
