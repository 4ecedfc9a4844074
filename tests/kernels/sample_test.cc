// Sample against three references: the documented steps with a plain sort and exact sums, which
// must choose the same token; probabilities in double, by chi-square; log-softmax in double.
#include <algorithm>
#include <array>
#include <cmath>
#include <limits>
#include <map>
#include <numeric>
#include <set>
#include <string>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"

#include "kernels/cpu/backend.h"
#include "tests/kernels/arrays.h"

namespace shoal {
namespace {

using ::testing::ElementsAre;

constexpr float kInf = std::numeric_limits<float>::infinity();
constexpr float kNan = std::numeric_limits<float>::quiet_NaN();

SampleResult SampleOne(Backend& backend, std::vector<float> logits, const SampleRow& row) {
  SampleResult result;
  backend.Sample({.logits = View(logits, 1, static_cast<int64_t>(logits.size())),
                  .rows = {&row, 1},
                  .results = {&result, 1}});
  return result;
}

SampleResult SampleOne(const std::vector<float>& logits, const SampleRow& row) {
  CpuBackend backend({.num_threads = 1});
  return SampleOne(backend, logits, row);
}

// harmony-and-api.md section 4, step by step.
std::vector<float> AdjustedLogits(std::vector<float> logits, const SampleRow& row) {
  std::map<int32_t, int32_t> counts;
  for (const auto& output : row.output_counts) {
    if (output.count > 0) counts[output.id] = output.count;
  }
  std::set<int32_t> seen(row.prompt_ids.begin(), row.prompt_ids.end());
  for (const auto& [id, count] : counts) seen.insert(id);
  for (size_t i = 0; i < logits.size(); ++i) {
    const auto id = static_cast<int32_t>(i);
    float& x = logits[i];
    if (std::isnan(x)) x = -kInf;
    if (std::ranges::count(row.forbidden, id) > 0) x = -kInf;
    if (!row.allowed.empty() && (row.allowed[i / 32] >> (i % 32) & 1) == 0) x = -kInf;
    for (const auto& bias : row.bias) {
      if (bias.id == id) x += bias.value;
    }
    if (id < row.penalty_exempt_from) {
      if (seen.contains(id)) {
        x = x > 0 ? x / row.repetition_penalty : x * row.repetition_penalty;
      }
      if (counts.contains(id)) {
        x -= row.frequency_penalty * static_cast<float>(counts[id]) + row.presence_penalty;
      }
    }
    if (row.temperature >= 1e-5f) x /= row.temperature;
  }
  return logits;
}

// The ids that may be drawn, in sorted order, with their integer weights.
std::vector<std::pair<int32_t, uint64_t>> Survivors(const std::vector<float>& logits,
                                                    const SampleRow& row) {
  const std::vector<float> z = AdjustedLogits(logits, row);
  std::vector<int32_t> order(z.size());
  std::iota(order.begin(), order.end(), 0);
  std::stable_sort(order.begin(), order.end(), [&](int32_t a, int32_t b) {
    return z[static_cast<size_t>(a)] > z[static_cast<size_t>(b)];
  });
  std::vector<std::pair<int32_t, uint64_t>> kept;
  uint64_t total = 0;
  for (const int32_t id : order) {
    const float p = Exp(z[static_cast<size_t>(id)] - z[static_cast<size_t>(order[0])]);
    const auto weight = static_cast<uint64_t>(std::ldexp(p, 40));
    if (p < row.min_p || weight == 0) continue;
    if (row.top_k > 0 && kept.size() == static_cast<size_t>(row.top_k)) continue;
    kept.push_back({id, weight});
    total += weight;
  }
  if (row.top_p < 1) {
    const double need = static_cast<double>(row.top_p) * static_cast<double>(total);
    uint64_t sum = 0;
    size_t n = 0;
    while (n < kept.size() && (n == 0 || static_cast<double>(sum) < need)) sum += kept[n++].second;
    kept.resize(n);
  }
  return kept;
}

int32_t DrawBySorting(const std::vector<float>& logits, const SampleRow& row) {
  const auto kept = Survivors(logits, row);
  uint64_t total = 0;
  for (const auto& [id, weight] : kept) total += weight;
  __extension__ using Uint128 = unsigned __int128;
  const auto target =
      static_cast<uint64_t>((Uint128{RandomBits(row.seed, row.position)} * total) >> 64);
  uint64_t sum = 0;
  for (const auto& [id, weight] : kept) {
    sum += weight;
    if (sum > target) return id;
  }
  return -1;
}

TEST(SampleTest, GreedyTakesTheLargestAndTheLowerIdOfEquals) {
  for (NamedBackend& b : AllBackends()) {
    for (const size_t vocab : {1u, 2u, 15u, 16u, 17u, 100u, 1000u}) {
      for (size_t best = 0; best < vocab; best += 1 + vocab / 20) {
        std::vector<float> logits(vocab, -1.0f);
        logits[best] = 2.0f;
        logits.back() = 2.0f;
        EXPECT_EQ(SampleOne(*b.backend, logits, {.temperature = 0.0f}).id,
                  static_cast<int32_t>(best))
            << b.name;
      }
    }
  }
}

TEST(SampleTest, ARowWithoutANumberGivesNoToken) {
  for (NamedBackend& b : AllBackends()) {
    for (const float temperature : {0.0f, 1.0f}) {
      const SampleRow row = {.temperature = temperature, .num_top_logprobs = 2};
      EXPECT_EQ(SampleOne(*b.backend, {-kInf, kNan, -kInf}, row).id, -1) << b.name;
      EXPECT_EQ(SampleOne(*b.backend, {-kInf, kNan, -3.0f}, row).id, 2) << b.name;
      EXPECT_EQ(SampleOne(*b.backend, {kNan, 1e30f, kInf, -kInf}, row).id, 2) << b.name;
    }
  }
}

TEST(SampleTest, NothingMayUnmaskAForbiddenToken) {
  const std::vector<float> logits = {5.0f, 4.0f, 3.0f, 2.0f};
  const std::vector<int32_t> forbidden = {0};
  const std::vector<uint32_t> allowed = {0b1101};
  const std::vector<SampleRow::Bias> bias = {{0, 100.0f}, {1, 100.0f}};
  const std::vector<int32_t> prompt = {0, 1};
  for (const float temperature : {0.0f, 1.0f}) {
    for (int32_t position = 0; position < 50; ++position) {
      const SampleRow row = {.temperature = temperature,
                             .presence_penalty = -2.0f,
                             .repetition_penalty = 0.5f,
                             .position = position,
                             .prompt_ids = prompt,
                             .bias = bias,
                             .forbidden = forbidden,
                             .allowed = allowed};
      EXPECT_GE(SampleOne(logits, row).id, 2);
    }
  }
}

TEST(SampleTest, PenaltiesFollowTheirFormulas) {
  const std::vector<SampleRow::Count> counts = {{1, 3}, {2, 1}, {3, 0}, {4, 2}};
  const std::vector<int32_t> prompt = {0, 2};
  const SampleRow row = {.temperature = 0.0f,
                         .presence_penalty = 0.25f,
                         .frequency_penalty = 0.5f,
                         .repetition_penalty = 2.0f,
                         .penalty_exempt_from = 4,
                         .output_counts = counts,
                         .prompt_ids = prompt};
  // 0: 8 / 2 = 4 (prompt). 1: 12 / 2 - 1.75 = 4.25 (three times). 2: -1 * 2 - 0.75 = -2.75.
  // 3: 4.125 (never generated). 4: exempt.
  EXPECT_EQ(SampleOne({8, 12, -1, 4.125f, 4.2f}, row).id, 1);
  EXPECT_EQ(SampleOne({8, 12, -1, 4.26f, 4.2f}, row).id, 3);
  EXPECT_EQ(SampleOne({8, 12, -1, 4.125f, 4.3f}, row).id, 4);
  EXPECT_EQ(SampleOne({8.6f, 12, -1, 4.125f, 4.2f}, row).id, 0);
  EXPECT_EQ(SampleOne({-9, -9, -1, -2.8f, -2.8f}, row).id, 2);
  EXPECT_EQ(SampleOne({-9, -9, -1, -2.7f, -2.8f}, row).id, 3);
}

TEST(SampleTest, ChoosesTheTokenThatSortingWouldChoose) {
  const std::vector<NamedBackend> all = AllBackends();
  for (int64_t trial = 0; trial < 250; ++trial) {
    int64_t num_picks = 0;
    const auto pick = [&](auto... options) {
      const std::array choices = {options...};
      return choices[RandomBits(99, trial * 100 + num_picks++) % choices.size()];
    };
    const int64_t vocab = pick(1, 2, 7, 33, 500, 2500);
    auto logits = RandomFloats(static_cast<uint64_t>(trial), vocab, pick(0.0, 0.3, 3.0, 30.0));
    if (pick(0, 1) == 1) {
      for (float& x : logits) x = std::round(x);  // Ties.
    }
    std::vector<int32_t> prompt;
    std::vector<SampleRow::Count> counts;
    for (int32_t id = 0; id < vocab; id += 3) prompt.push_back(id);
    for (int32_t id = 0; id < vocab; id += 2) counts.push_back({id, id % 5});
    const std::vector<SampleRow::Bias> bias = {{0, 2.5f}};
    const std::vector<int32_t> forbidden = {static_cast<int32_t>(vocab - 1)};
    SampleRow row = {.temperature = pick(0.1f, 0.7f, 1.0f, 2.0f),
                     .top_p = pick(1.0f, 1.0f, 0.95f, 0.5f, 1e-6f),
                     .min_p = pick(0.0f, 0.0f, 0.05f, 1.0f),
                     .top_k = pick(0, 0, 1, 2, 40, 100'000),
                     .presence_penalty = pick(0.0f, 0.5f),
                     .frequency_penalty = pick(0.0f, -0.25f),
                     .repetition_penalty = pick(1.0f, 1.3f),
                     .penalty_exempt_from = pick(3, 0x7fffffff),
                     .seed = static_cast<uint64_t>(trial) * 7,
                     .output_counts = counts,
                     .prompt_ids = prompt,
                     .bias = bias};
    if (vocab > 1) row.forbidden = forbidden;
    for (row.position = 0; row.position < 5; ++row.position) {
      const int32_t expected = DrawBySorting(logits, row);
      for (const NamedBackend& b : all) {
        ASSERT_EQ(SampleOne(*b.backend, logits, row).id, expected) << b.name << ", " << trial;
      }
    }
  }
}

struct Distribution {
  std::string name;
  SampleRow row;
};

// Tokens that min_p, top_k or top_p remove never appear; the others as often as double arithmetic
// says. 30,000 draws at consecutive positions; chi^2 beyond its 0.999 quantile fails, and the
// positions are fixed.
TEST(SampleTest, DrawsWithTheProbabilitiesOfDoubleArithmetic) {
  const std::vector<float> logits = {0.5f, 2.0f, -1.0f, 2.0f, 1.25f, 0.0f, -4.0f, 3.0f};
  const Distribution cases[] = {
      {"plain", {}},
      {"hot", {.temperature = 1.9f}},
      {"cold", {.temperature = 0.4f}},
      {"top_k", {.top_k = 3}},
      {"top_p", {.top_p = 0.8f}},
      {"min_p", {.min_p = 0.1f}},
      {"all", {.temperature = 1.5f, .top_p = 0.9f, .min_p = 0.08f, .top_k = 5}},
  };
  constexpr int kDraws = 30'000;
  for (const auto& [name, base] : cases) {
    std::vector<int32_t> order = {7, 1, 3, 4, 0, 5, 2, 6};
    std::vector<double> p(8);
    double total = 0;
    for (const int32_t id : order) {
      const double x = static_cast<double>(logits[static_cast<size_t>(id)]);
      p[static_cast<size_t>(id)] = std::exp((x - 3.0) / static_cast<double>(base.temperature));
    }
    int kept = 0;
    for (const int32_t id : order) {
      double& weight = p[static_cast<size_t>(id)];
      if (weight < static_cast<double>(base.min_p)) weight = 0;
      if (base.top_k > 0 && kept >= base.top_k) weight = 0;
      if (weight > 0) ++kept;
      total += weight;
    }
    double before = 0;
    double after = 0;
    for (const int32_t id : order) {
      double& weight = p[static_cast<size_t>(id)];
      if (before >= static_cast<double>(base.top_p) * total) weight = 0;
      before += weight;
      after += weight;
    }

    CpuBackend backend({.num_threads = 1});
    std::vector<int> seen(8);
    SampleRow row = base;
    row.seed = 12345;
    for (row.position = 0; row.position < kDraws; ++row.position) {
      ++seen[static_cast<size_t>(SampleOne(backend, logits, row).id)];
    }

    double chi2 = 0;
    int cells = 0;
    for (size_t i = 0; i < 8; ++i) {
      const double expected = p[i] / after * kDraws;
      if (p[i] == 0) {
        EXPECT_EQ(seen[i], 0) << name << ", token " << i;
        continue;
      }
      chi2 += (seen[i] - expected) * (seen[i] - expected) / expected;
      ++cells;
    }
    // Wilson and Hilferty's approximation of the 0.999 quantile.
    const double d = cells - 1;
    const double bound = d * std::pow(1 - 2 / (9 * d) + 3.09 * std::sqrt(2 / (9 * d)), 3);
    EXPECT_LT(chi2, bound) << name;
  }
}

TEST(SampleTest, LogprobsAreThoseOfTheUnmodifiedLogits) {
  const std::vector<NamedBackend> all = AllBackends();
  for (const int64_t vocab : {1, 3, 31, 4096, 4097, 30'000}) {
    auto logits = RandomFloats(21, vocab, 4.0);
    if (vocab > 3) logits[2] = logits[1];
    double sum = 0;
    for (const float x : logits) sum += std::exp(static_cast<double>(x));
    const std::vector<int32_t> forbidden = {0};
    SampleRow row = {.temperature = 1.7f, .top_k = 5, .seed = 4, .num_top_logprobs = 20};
    if (vocab > 1) row.forbidden = forbidden;
    const SampleResult first = SampleOne(*all[0].backend, logits, row);

    std::vector<int32_t> order(logits.size());
    std::iota(order.begin(), order.end(), 0);
    std::stable_sort(order.begin(), order.end(), [&](int32_t a, int32_t b) {
      return logits[static_cast<size_t>(a)] > logits[static_cast<size_t>(b)];
    });
    const auto exact = [&](int32_t id) {
      return static_cast<double>(logits[static_cast<size_t>(id)]) - std::log(sum);
    };
    EXPECT_NEAR(static_cast<double>(first.logprob), exact(first.id), 2e-6);
    ASSERT_EQ(first.top.size(), static_cast<size_t>(std::min<int64_t>(20, vocab)));
    for (size_t i = 0; i < first.top.size(); ++i) {
      EXPECT_EQ(first.top[i].id, order[i]);
      EXPECT_NEAR(static_cast<double>(first.top[i].logprob), exact(order[i]), 2e-6);
    }
    for (const NamedBackend& b : all) {
      const SampleResult other = SampleOne(*b.backend, logits, row);
      EXPECT_EQ(other.id, first.id) << b.name;
      EXPECT_EQ(other.logprob, first.logprob) << b.name;
      for (size_t i = 0; i < first.top.size(); ++i) {
        EXPECT_EQ(other.top[i].logprob, first.top[i].logprob) << b.name;
      }
    }
  }
}

TEST(SampleTest, LogprobsSkipWhatIsNotANumber) {
  const SampleResult result =
      SampleOne({kNan, 1.0f, -kInf, 1.0f}, {.temperature = 0.0f, .num_top_logprobs = 4});
  EXPECT_EQ(result.id, 1);
  EXPECT_NEAR(result.logprob, std::log(0.5f), 1e-7f);
  ASSERT_EQ(result.top.size(), 3u);
  EXPECT_EQ(result.top[1].id, 3);
  EXPECT_EQ(result.top[2].logprob, -kInf);
}

TEST(SampleTest, NoLogprobsAreGivenUnlessAskedFor) {
  EXPECT_THAT(SampleOne({1, 2}, {}).top, ElementsAre());
  EXPECT_EQ(SampleOne({1, 2}, {}).logprob, 0.0f);
  const SampleResult own = SampleOne({1, 2}, {.temperature = 0, .num_top_logprobs = 0});
  EXPECT_THAT(own.top, ElementsAre());
  EXPECT_NEAR(own.logprob, -0.31326169f, 1e-6f);
}

TEST(SampleTest, ARowsTokenIsTheSameAloneAndInABatch) {
  constexpr int64_t kRows = 9;
  constexpr int64_t kVocab = 3000;
  auto logits = RandomFloats(61, kRows * kVocab, 2.0);
  std::vector<SampleRow> rows(kRows);
  for (size_t r = 0; r < kRows; ++r) {
    rows[r] = {.temperature = r % 3 == 0 ? 0.0f : 1.1f,
               .top_p = r % 2 == 0 ? 1.0f : 0.9f,
               .seed = 100 + r,
               .position = static_cast<int32_t>(r * r),
               .num_top_logprobs = static_cast<int32_t>(r) - 1};
  }
  for (NamedBackend& b : AllBackends()) {
    std::vector<SampleResult> together(kRows);
    b.backend->Sample({.logits = View(logits, kRows, kVocab), .rows = rows, .results = together});
    for (size_t r = 0; r < kRows; ++r) {
      const auto begin = logits.begin() + static_cast<int64_t>(r) * kVocab;
      const SampleResult alone = SampleOne(*b.backend, {begin, begin + kVocab}, rows[r]);
      EXPECT_EQ(together[r].id, alone.id) << b.name;
      EXPECT_EQ(together[r].logprob, alone.logprob) << b.name;
    }
  }
}

}  // namespace
}  // namespace shoal
