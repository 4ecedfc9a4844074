// Embed, RmsNorm, RopeAndAppend, SelectExperts, PickRows, SumSlots: against worked numbers, against
// plain double arithmetic, and each instruction set against the scalar one bit for bit.
#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <numeric>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"

#include "kernels/cpu/backend.h"
#include "tests/kernels/arrays.h"

namespace shoal {
namespace {

using ::testing::ElementsAre;

constexpr float kNan = std::numeric_limits<float>::quiet_NaN();
constexpr float kInf = std::numeric_limits<float>::infinity();

// One bf16 rounding of `exact`, plus what fp32 arithmetic may have moved it by.
void ExpectBf16Near(Bf16 value, double exact, double fp32_error) {
  const double half_ulp = std::ldexp(std::abs(exact), -8);
  EXPECT_NEAR(static_cast<double>(ToFloat(value)), exact, half_ulp * 1.01 + fp32_error);
}

TEST(RmsNormTest, GivesTheWorkedExample) {  // gpt-oss.md 8.4
  for (NamedBackend& b : AllBackends()) {
    std::vector<float> x = {1, -2, 3, -4};
    const std::vector<float> gain = {1, 0.5f, 2, 1};
    std::vector<Bf16> out(4);

    b.backend->RmsNorm(
        {.x = View(x, 1, 4), .gain = gain.data(), .out = View(out, 1, 4), .eps = 1e-5f});

    EXPECT_EQ(out, ToBf16s({0.3651481282f, -0.3651481282f, 2.1908887694f, -1.4605925130f}))
        << b.name;
  }
}

TEST(RmsNormTest, AgreesWithDoubleArithmeticAndAcrossInstructionSets) {
  const std::vector<NamedBackend> all = AllBackends();
  for (const int64_t cols : {1, 2, 15, 16, 17, 64, 90, 2880}) {
    for (const int64_t rows : {1, 7, 33}) {
      for (const bool adds : {false, true}) {
        const auto x0 = RandomFloats(1, rows * cols, 3.0);
        auto add = RandomBf16(2, rows * cols, 1.0);
        const auto gain = RandomFloats(3, cols, 1.0);
        std::vector<std::vector<float>> xs;
        std::vector<std::vector<Bf16>> outs;

        for (const NamedBackend& b : all) {
          xs.push_back(x0);
          outs.emplace_back(x0.size());
          b.backend->RmsNorm({.x = View(xs.back(), rows, cols),
                              .add = adds ? View(add, rows, cols) : TensorView{},
                              .gain = gain.data(),
                              .out = View(outs.back(), rows, cols),
                              .eps = 1e-5f});
        }

        for (size_t i = 1; i < all.size(); ++i) {
          ASSERT_EQ(xs[i], xs[0]) << all[i].name;
          ASSERT_EQ(outs[i], outs[0]) << all[i].name << ", cols " << cols;
        }
        for (int64_t r = 0; r < rows; ++r) {
          double squares = 0;
          for (int64_t c = 0; c < cols; ++c) {
            const size_t i = static_cast<size_t>(r * cols + c);
            const float sum = adds ? x0[i] + ToFloat(add[i]) : x0[i];
            ASSERT_EQ(xs[0][i], sum);
            squares += static_cast<double>(sum) * static_cast<double>(sum);
          }
          const double scale = 1.0 / std::sqrt(squares / static_cast<double>(cols) + 1e-5);
          for (int64_t c = 0; c < cols; ++c) {
            const size_t i = static_cast<size_t>(r * cols + c);
            const double exact = static_cast<double>(xs[0][i]) * scale *
                                 static_cast<double>(gain[static_cast<size_t>(c)]);
            ExpectBf16Near(outs[0][i], exact, std::abs(exact) * 1e-6);
          }
        }
      }
    }
  }
}

TEST(EmbedTest, WidensTheNamedRows) {
  std::vector<Bf16> table = RandomBf16(4, 50 * 37, 1.0);
  std::vector<int32_t> ids(70);
  for (size_t i = 0; i < ids.size(); ++i) ids[i] = static_cast<int32_t>(i * 13 % 50);
  for (NamedBackend& b : AllBackends()) {
    std::vector<float> out(ids.size() * 37);

    b.backend->Embed({.ids = Index(ids), .table = View(table, 50, 37), .out = View(out, 70, 37)});

    for (size_t r = 0; r < ids.size(); ++r) {
      for (size_t c = 0; c < 37; ++c) {
        const Bf16 value = table[static_cast<size_t>(ids[r]) * 37 + c];
        ASSERT_EQ(out[r * 37 + c], ToFloat(value)) << b.name;
      }
    }
  }
}

TEST(PickRowsTest, CopiesTheIndexedRowsOfAStridedView) {
  std::vector<Bf16> x = RandomBf16(5, 9 * 40, 1.0);
  const std::vector<int32_t> index = {8, 0, 0, 3, 7};
  TensorView columns = View(x, 9, 40).Columns(3, 20);
  for (NamedBackend& b : AllBackends()) {
    std::vector<Bf16> out(5 * 20);

    b.backend->PickRows({.x = columns, .index = Index(index), .out = View(out, 5, 20)});

    for (size_t r = 0; r < index.size(); ++r) {
      for (size_t c = 0; c < 20; ++c) {
        ASSERT_EQ(out[r * 20 + c], x[static_cast<size_t>(index[r]) * 40 + 3 + c]) << b.name;
      }
    }
  }
}

TEST(PickRowsTest, CopiesRowsOfTheResidualStream) {
  std::vector<float> x = RandomFloats(5, 9 * 20, 1.0);
  const std::vector<int32_t> index = {8, 0, 0, 3, 7};
  for (NamedBackend& b : AllBackends()) {
    std::vector<float> out(5 * 20);

    b.backend->PickRows({.x = View(x, 9, 20), .index = Index(index), .out = View(out, 5, 20)});

    for (size_t i = 0; i < out.size(); ++i) {
      ASSERT_EQ(out[i], x[static_cast<size_t>(index[i / 20]) * 20 + i % 20]) << b.name;
    }
  }
}

TEST(SumSlotsTest, AddsTheSlotsInOrderAndRoundsNothingToBf16) {
  const std::vector<NamedBackend> all = AllBackends();
  for (const int64_t cols : {1, 16, 50, 2880}) {
    for (const int64_t k : {1, 4}) {
      const int64_t n = 11;
      const auto x0 = RandomFloats(6, n * cols, 10.0);
      auto rows = RandomBf16(7, n * k * cols, 3.0);
      auto shares = RandomFloats(8, n * k, 0.5);
      for (const NamedBackend& b : all) {
        auto x = x0;

        b.backend->SumSlots(
            {.rows = View(rows, n * k, cols), .shares = View(shares, n, k), .x = View(x, n, cols)});

        for (int64_t r = 0; r < n; ++r) {
          for (int64_t c = 0; c < cols; ++c) {
            float sum = x0[static_cast<size_t>(r * cols + c)];
            for (int64_t s = 0; s < k; ++s) {
              sum = std::fma(shares[static_cast<size_t>(r * k + s)],
                             ToFloat(rows[static_cast<size_t>((r * k + s) * cols + c)]),
                             sum);
            }
            ASSERT_EQ(x[static_cast<size_t>(r * cols + c)], sum) << b.name;
          }
        }
      }
    }
  }
}

// One row, one q head of 64 and one k/v head, position 5 in slot 37. cos and sin of pair 1 are
// those of gpt-oss.md 8.2.
TEST(RopeTest, RotatesThePairOfTheWorkedExample) {
  for (NamedBackend& b : AllBackends()) {
    std::vector<Bf16> qkv(3 * 64, ToBf16(0.0f));
    qkv[1] = ToBf16(1.0f);
    qkv[33] = ToBf16(2.0f);
    qkv[128] = ToBf16(7.0f);  // v[0]
    std::vector<float> rope(6 * 64, 0.0f);
    rope[5 * 64 + 2] = -1.2849783451f;
    rope[5 * 64 + 3] = -0.4026053733f;
    const std::vector<int32_t> positions = {5};
    const std::vector<int32_t> slots = {37};
    std::vector<Bf16> cache(2 * 2 * 32 * 64);
    const KvLayer kv = {.data = cache.data(), .num_blocks = 2, .num_kv_heads = 1, .head_dim = 64};

    b.backend->RopeAndAppend({.qkv = View(qkv, 1, 192),
                              .rope = rope.data(),
                              .positions = Index(positions),
                              .slots = Index(slots),
                              .num_heads = 1,
                              .kv = kv});

    EXPECT_EQ(qkv[1], ToBf16(-0.4797675985f)) << b.name;
    EXPECT_EQ(qkv[33], ToBf16(-2.9725620635f)) << b.name;
    EXPECT_EQ(qkv[128], ToBf16(7.0f)) << "v is not rotated; " << b.name;
    EXPECT_EQ(cache[(2 * 32 + 32 + 5) * 64], ToBf16(7.0f)) << "block 1, v, offset 5; " << b.name;
  }
}

TEST(RopeTest, RotatesEveryHeadAndWritesEverySlotForAnyHeadSize) {
  constexpr int64_t kRows = 13;
  constexpr int kHeads = 6;
  constexpr int kKvHeads = 2;
  const std::vector<NamedBackend> all = AllBackends();
  for (const int dim : {2, 6, 30, 32, 34, 64, 80}) {
    const int64_t cols = (kHeads + 2 * kKvHeads) * dim;
    const auto qkv0 = RandomBf16(9, kRows * cols, 2.0);
    const auto rope = RandomFloats(10, 40 * dim, 1.0);
    std::vector<int32_t> positions(kRows);
    std::vector<int32_t> slots(kRows);
    for (int32_t r = 0; r < kRows; ++r) {
      positions[static_cast<size_t>(r)] = r * 3;
      slots[static_cast<size_t>(r)] = r == 6 ? -1 : (r * 29 + 5) % 96;  // One is kept nowhere
    }
    for (const NamedBackend& b : all) {
      auto qkv = qkv0;
      std::vector<Bf16> cache(static_cast<size_t>(3 * 2 * kKvHeads * 32 * dim));
      const KvLayer kv = {
          .data = cache.data(), .num_blocks = 3, .num_kv_heads = kKvHeads, .head_dim = dim};

      b.backend->RopeAndAppend({.qkv = View(qkv, kRows, cols),
                                .rope = rope.data(),
                                .positions = Index(positions),
                                .slots = Index(slots),
                                .num_heads = kHeads,
                                .kv = kv});

      for (int64_t r = 0; r < kRows; ++r) {
        const int32_t slot = slots[static_cast<size_t>(r)];
        for (int64_t h = 0; h < kHeads + 2 * kKvHeads; ++h) {
          for (int64_t i = 0; i < dim; ++i) {
            const Bf16* const before = qkv0.data() + r * cols + h * dim;
            const float* const angle =
                rope.data() + positions[static_cast<size_t>(r)] * dim + i % (dim / 2) * 2;
            const float a = ToFloat(before[i % (dim / 2)]);
            const float c = ToFloat(before[i % (dim / 2) + dim / 2]);
            Bf16 expected = before[i];
            if (h < kHeads + kKvHeads) {
              expected = i < dim / 2 ? ToBf16(std::fma(a, angle[0], 0.0f - c * angle[1]))
                                     : ToBf16(std::fma(c, angle[0], a * angle[1]));
            }
            ASSERT_EQ(qkv[static_cast<size_t>(r * cols + h * dim + i)], expected)
                << b.name << ", dim " << dim << ", head " << h << ", element " << i;
            if (h < kHeads || slot < 0) continue;
            const int64_t place = (slot / 32 * 2 * kKvHeads + h - kHeads) * 32 + slot % 32;
            ASSERT_EQ(cache[static_cast<size_t>(place * dim + i)], expected) << b.name;
          }
        }
      }
    }
  }
}

struct Selection {
  std::vector<int32_t> ids;
  std::vector<float> shares;
};

Selection Select(Backend& backend, std::vector<float> scores, int64_t rows, int64_t k) {
  const int64_t experts = static_cast<int64_t>(scores.size()) / rows;
  Selection result{std::vector<int32_t>(static_cast<size_t>(rows * k)),
                   std::vector<float>(static_cast<size_t>(rows * k))};
  backend.SelectExperts({.scores = View(scores, rows, experts),
                         .ids = View(result.ids, rows, k),
                         .shares = View(result.shares, rows, k)});
  return result;
}

TEST(SelectExpertsTest, GivesTheWorkedExampleWithTies) {  // gpt-oss.md 8.4
  for (NamedBackend& b : AllBackends()) {
    const Selection s =
        Select(*b.backend, {0.25f, 2.0f, -1.0f, 2.0f, 1.0f, 0.5f, 1.5f, 2.0f}, 1, 4);

    EXPECT_THAT(s.ids, ElementsAre(1, 3, 7, 6));
    for (int i = 0; i < 3; ++i) EXPECT_NEAR(s.shares[static_cast<size_t>(i)], 0.2772747813, 1e-7);
    EXPECT_NEAR(s.shares[3], 0.1681756560, 1e-7);
  }
}

// All score rows over three values for five experts, and every k: a stable sort is the reference.
TEST(SelectExpertsTest, OrdersEveryPatternOfTiesAsAStableSort) {
  CpuBackend backend({.num_threads = 1});
  for (int64_t k = 1; k <= 5; ++k) {
    for (int code = 0; code < 243; ++code) {
      std::vector<float> scores;
      for (int digits = code, i = 0; i < 5; ++i, digits /= 3) {
        scores.push_back(static_cast<float>(digits % 3) - 1.0f);
      }
      std::vector<int32_t> order(5);
      std::iota(order.begin(), order.end(), 0);
      std::stable_sort(order.begin(), order.end(), [&](int32_t a, int32_t b) {
        return scores[static_cast<size_t>(a)] > scores[static_cast<size_t>(b)];
      });
      order.resize(static_cast<size_t>(k));

      EXPECT_EQ(Select(backend, scores, 1, k).ids, order) << code;
    }
  }
}

TEST(SelectExpertsTest, NamesDistinctExpertsWhateverTheScores) {
  CpuBackend backend({.num_threads = 1});
  EXPECT_THAT(Select(backend, {kNan, kNan, kNan, kNan, kNan}, 1, 4).ids, ElementsAre(0, 1, 2, 3));
  EXPECT_THAT(Select(backend, {kNan, -kInf, 1.0f, kNan, kInf}, 1, 4).ids, ElementsAre(4, 2, 0, 1));
  EXPECT_THAT(Select(backend, {3.0f}, 1, 1).shares, ElementsAre(1.0f));
}

TEST(SelectExpertsTest, GivesEachRowTheSameBitsAloneAndInABatch) {
  const auto scores = RandomFloats(11, 200 * 128, 2.0);
  for (NamedBackend& b : AllBackends()) {
    const Selection together = Select(*b.backend, scores, 200, 4);
    for (int64_t r : {0, 1, 63, 64, 199}) {
      const auto begin = scores.begin() + r * 128;
      const Selection alone = Select(*b.backend, {begin, begin + 128}, 1, 4);
      for (int64_t s = 0; s < 4; ++s) {
        const size_t i = static_cast<size_t>(r * 4 + s);
        EXPECT_EQ(together.ids[i], alone.ids[static_cast<size_t>(s)]) << b.name;
        EXPECT_EQ(together.shares[i], alone.shares[static_cast<size_t>(s)]) << b.name;
      }
    }
  }
}

TEST(CpuBackendTest, GivesZeroedAlignedMemoryOfAnySize) {
  CpuBackend backend({.num_threads = 1});
  for (const size_t bytes : {size_t{0},
                             size_t{1},
                             size_t{64},
                             size_t{131'071},
                             size_t{131'072},
                             size_t{2} << 20,
                             (size_t{5} << 20) + 3}) {
    auto* const data = static_cast<uint8_t*>(backend.Allocate(bytes));
    ASSERT_NE(data, nullptr);
    EXPECT_EQ(reinterpret_cast<uintptr_t>(data) % 64, 0u);
    for (size_t i = 0; i < bytes; i += 61) ASSERT_EQ(data[i], 0);
    std::memset(data, 0xff, bytes);
    backend.Free(data, bytes);
  }
}

TEST(CpuBackendTest, RefusesMoreMemoryThanTheMachineHas) {
  CpuBackend backend({.num_threads = 1});
  EXPECT_EQ(backend.Allocate(size_t{1} << 46), nullptr);
}

TEST(CpuBackendTest, IsaNamesAreReadBack) {
  for (const CpuIsa isa : {CpuIsa::kScalar, CpuIsa::kAvx2, CpuIsa::kAvx512}) {
    EXPECT_EQ(ParseCpuIsa(CpuIsaName(isa)), isa);
  }
  EXPECT_EQ(ParseCpuIsa("sse9"), std::nullopt);
}

}  // namespace
}  // namespace shoal
