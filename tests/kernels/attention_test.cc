// Attention against the worked example, against plain double arithmetic, and bit for bit against a
// second reading of the contract in kernels/backend.h, over every instruction set, thread count,
// chunking and batch. Memory that no row may use holds NaN, table entries that none may read
// nonsense.
#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

#include "gtest/gtest.h"

#include "kernels/cpu/backend.h"
#include "tests/kernels/arrays.h"

namespace shoal {
namespace {

constexpr float kInf = std::numeric_limits<float>::infinity();

struct Shape {
  int num_heads = 4;
  int num_kv_heads = 2;
  int head_dim = 32;
  int window = 0;

  int group() const { return num_heads / num_kv_heads; }

  int64_t q_cols() const { return int64_t{num_heads} * head_dim; }

  int64_t kv_cols() const { return int64_t{num_kv_heads} * head_dim; }
};

// One sequence's queries, keys and values by position, as they leave RopeAndAppend.
struct Sequence {
  int64_t length;
  std::vector<Bf16> q;  // [length, q_cols]
  std::vector<Bf16> k;  // [length, kv_cols]
  std::vector<Bf16> v;  // [length, kv_cols]

  Sequence(const Shape& shape, int64_t num_positions, uint64_t seed)
      : length(num_positions),
        q(RandomBf16(seed, length * shape.q_cols(), 1.5)),
        k(RandomBf16(seed + 1, length * shape.kv_cols(), 1.5)),
        v(RandomBf16(seed + 2, length * shape.kv_cols(), 1.0)) {}
};

// Rows [first, first + count) of a sequence.
struct Chunk {
  const Sequence* sequence;
  int64_t first;
  int64_t count;
};

// The output rows of all chunks, one after the other, by one call. Blocks are scattered; whatever
// the rows may not see is NaN or out of range.
std::vector<Bf16> Attend(Backend& backend,
                         const Shape& shape,
                         const std::vector<float>& sinks,
                         const std::vector<Chunk>& chunks) {
  const int64_t row_cols = shape.q_cols() + 2 * shape.kv_cols();
  std::vector<AttentionEntry> entries;
  std::vector<int32_t> tables;
  int64_t num_rows = 0;
  int64_t num_blocks = 1;  // Block 0 belongs to nobody.
  for (const Chunk& chunk : chunks) {
    entries.push_back({.first_row = static_cast<int32_t>(num_rows),
                       .num_rows = static_cast<int32_t>(chunk.count),
                       .first_position = static_cast<int32_t>(chunk.first),
                       .table_offset = static_cast<int32_t>(tables.size())});
    const int64_t end = chunk.first + chunk.count;
    const int64_t first_seen =
        shape.window > 0 ? std::max<int64_t>(chunk.first - shape.window + 1, 0) : 0;
    for (int64_t tile = 0; tile * kBlockTokens < end; ++tile) {
      const bool is_seen = (tile + 1) * kBlockTokens > first_seen;
      tables.push_back(is_seen ? static_cast<int32_t>(num_blocks++) : 0x7fffffff);
    }
    num_rows += chunk.count;
  }

  const Bf16 nan = {0x7fc0};
  const int64_t head_size = int64_t{kBlockTokens} * shape.head_dim;
  const int64_t block_size = 2 * shape.num_kv_heads * head_size;
  std::vector<Bf16> cache(static_cast<size_t>(num_blocks * block_size), nan);
  std::vector<Bf16> qkv(static_cast<size_t>(num_rows * row_cols), nan);
  for (size_t i = 0; i < chunks.size(); ++i) {
    const Chunk& chunk = chunks[i];
    const int64_t first_seen =
        shape.window > 0 ? std::max<int64_t>(chunk.first - shape.window + 1, 0) : 0;
    for (int64_t p = first_seen; p < chunk.first + chunk.count; ++p) {
      const int64_t block = tables[static_cast<size_t>(entries[i].table_offset + p / kBlockTokens)];
      for (int64_t h = 0; h < shape.num_kv_heads; ++h) {
        Bf16* const k =
            cache.data() + block * block_size + h * head_size + p % kBlockTokens * shape.head_dim;
        Bf16* const v = k + shape.num_kv_heads * head_size;
        const int64_t from = p * shape.kv_cols() + h * shape.head_dim;
        std::copy_n(chunk.sequence->k.begin() + from, shape.head_dim, k);
        std::copy_n(chunk.sequence->v.begin() + from, shape.head_dim, v);
      }
    }
    for (int64_t r = 0; r < chunk.count; ++r) {
      std::copy_n(chunk.sequence->q.begin() + (chunk.first + r) * shape.q_cols(),
                  shape.q_cols(),
                  qkv.begin() + (entries[i].first_row + r) * row_cols);
    }
  }

  std::vector<Bf16> out(static_cast<size_t>(num_rows * shape.q_cols()), nan);
  backend.Attention({.entries = entries,
                     .tables = Index(tables),
                     .q = View(qkv, num_rows, row_cols),
                     .kv = {.data = cache.data(),
                            .num_blocks = num_blocks,
                            .num_kv_heads = shape.num_kv_heads,
                            .head_dim = shape.head_dim},
                     .num_heads = shape.num_heads,
                     .window = shape.window,
                     .sinks = sinks.data(),
                     .out = View(out, num_rows, shape.q_cols())});
  return out;
}

int64_t FirstSeen(const Shape& shape, int64_t position) {
  return shape.window > 0 ? std::max<int64_t>(position - shape.window + 1, 0) : 0;
}

// (E6)-(E8) of one position and head in double.
std::vector<double> ExactHead(
    const Shape& shape, const Sequence& s, int64_t position, int head, double sink) {
  const int dim = shape.head_dim;
  const int64_t kv = head / shape.group() * dim;
  const Bf16* const q = s.q.data() + position * shape.q_cols() + head * dim;
  std::vector<double> scores;
  double max = sink;
  for (int64_t j = FirstSeen(shape, position); j <= position; ++j) {
    double dot = 0;
    for (int d = 0; d < dim; ++d) {
      dot += static_cast<double>(ToFloat(q[d])) *
             static_cast<double>(ToFloat(s.k[static_cast<size_t>(j * shape.kv_cols() + kv + d)]));
    }
    scores.push_back(dot / std::sqrt(dim));
    max = std::max(max, scores.back());
  }
  double denominator = std::exp(sink - max);
  std::vector<double> out(static_cast<size_t>(dim));
  for (size_t i = 0; i < scores.size(); ++i) {
    const double p = std::exp(scores[i] - max);
    denominator += p;
    const int64_t j = FirstSeen(shape, position) + static_cast<int64_t>(i);
    for (int d = 0; d < dim; ++d) {
      out[static_cast<size_t>(d)] +=
          p * static_cast<double>(ToFloat(s.v[static_cast<size_t>(j * shape.kv_cols() + kv + d)]));
    }
  }
  for (double& x : out) x /= denominator;
  return out;
}

float LaneSum(const float (&lane)[16]) {
  float sum[16];
  std::copy_n(lane, 16, sum);
  for (int half = 8; half > 0; half /= 2) {
    for (int i = 0; i < half; ++i) sum[i] += sum[i + half];
  }
  return sum[0];
}

// The same in the contract's arithmetic: every operation and its order from backend.h.
std::vector<Bf16> ContractHead(
    const Shape& shape, const Sequence& s, int64_t position, int head, float sink) {
  const int dim = shape.head_dim;
  const int64_t kv = head / shape.group() * dim;
  const Bf16* const q = s.q.data() + position * shape.q_cols() + head * dim;
  const float scale = 1.0f / std::sqrt(static_cast<float>(dim));
  float max = sink;
  float denominator = 1.0f;
  std::vector<float> sums(static_cast<size_t>(dim), 0.0f);
  for (int64_t tile = FirstSeen(shape, position) / 32; tile <= position / 32; ++tile) {
    float score[32];
    float tile_max = -kInf;
    for (int i = 0; i < 32; ++i) {
      const int64_t j = tile * 32 + i;
      score[i] = -kInf;
      if (j < FirstSeen(shape, position) || j > position) continue;
      float lane[16] = {};
      for (int d = 0; d < dim; ++d) {
        const Bf16 k = s.k[static_cast<size_t>(j * shape.kv_cols() + kv + d)];
        lane[d % 16] = std::fma(ToFloat(q[d]), ToFloat(k), lane[d % 16]);
      }
      score[i] = LaneSum(lane) * scale;
      tile_max = std::max(tile_max, score[i]);
    }
    const float new_max = std::max(max, tile_max);
    const float correction = Exp(max - new_max);
    float weight[32];
    float lane[16] = {};
    for (int i = 0; i < 32; ++i) {
      weight[i] = Exp(score[i] - new_max);
      lane[i % 16] += weight[i];
    }
    denominator = std::fma(denominator, correction, LaneSum(lane));
    for (float& sum : sums) sum *= correction;
    for (int i = 0; i < 32; ++i) {
      const int64_t j = tile * 32 + i;
      if (j < FirstSeen(shape, position) || j > position) continue;
      for (int d = 0; d < dim; ++d) {
        const Bf16 v = s.v[static_cast<size_t>(j * shape.kv_cols() + kv + d)];
        sums[static_cast<size_t>(d)] =
            std::fma(weight[i], ToFloat(v), sums[static_cast<size_t>(d)]);
      }
    }
    max = new_max;
  }
  std::vector<Bf16> out;
  for (const float sum : sums) out.push_back(ToBf16(sum / denominator));
  return out;
}

// gpt-oss.md 8.5. The values are unit vectors, so that the output is the weights.
TEST(AttentionTest, GivesTheWorkedExampleWithSink) {
  const Shape shape = {.num_heads = 1, .num_kv_heads = 1, .head_dim = 4};
  Sequence s(shape, 3, 1);
  std::ranges::fill(s.q, ToBf16(0.0f));
  std::ranges::fill(s.k, ToBf16(0.0f));
  std::ranges::fill(s.v, ToBf16(0.0f));
  const float scores[3] = {1.0f, 2.0f, -0.5f};
  for (size_t j = 0; j < 3; ++j) {
    s.q[j * 4] = ToBf16(1.0f);
    s.k[j * 4] = ToBf16(2.0f * scores[j]);  // Times 1 / sqrt(4).
    s.v[j * 4 + j] = ToBf16(1.0f);
  }
  for (NamedBackend& b : AllBackends()) {
    const std::vector<Bf16> out = Attend(*b.backend, shape, {1.5f}, {{&s, 2, 1}});

    EXPECT_EQ(out, ToBf16s({0.1788866121f, 0.4862642271f, 0.0399149984f, 0.0f})) << b.name;
  }
}

struct ContractCase {
  Shape shape;
  int64_t length;
};

class AttentionContractTest : public ::testing::TestWithParam<ContractCase> {};

TEST_P(AttentionContractTest, HasTheContractsBitsAndTheExactValue) {
  const auto& [shape, length] = GetParam();
  const Sequence s(shape, length, 17);
  const std::vector<float> sinks = RandomFloats(3, shape.num_heads, 2.0);
  const std::vector<NamedBackend> all = AllBackends();
  const std::vector<Bf16> first = Attend(*all[0].backend, shape, sinks, {{&s, 0, length}});

  for (const NamedBackend& b : all) {
    ASSERT_EQ(Attend(*b.backend, shape, sinks, {{&s, 0, length}}), first) << b.name;
  }
  for (int64_t p = 0; p < length; p = p < 3 || p > length - 4 ? p + 1 : p + 7) {
    for (int h = 0; h < shape.num_heads; h += std::max(1, shape.num_heads / 6)) {
      const float sink = sinks[static_cast<size_t>(h)];
      const auto begin = first.begin() + p * shape.q_cols() + h * shape.head_dim;
      const std::vector<Bf16> got(begin, begin + shape.head_dim);
      ASSERT_EQ(got, ContractHead(shape, s, p, h, sink)) << "position " << p << ", head " << h;
      const auto exact = ExactHead(shape, s, p, h, static_cast<double>(sink));
      for (size_t d = 0; d < got.size(); ++d) {
        ASSERT_NEAR(
            static_cast<double>(ToFloat(got[d])), exact[d], std::abs(exact[d]) / 255 + 1e-5);
      }
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Shapes,
                         AttentionContractTest,
                         ::testing::Values(ContractCase{{16, 2, 64, 128},
                                                        140},  // gpt-oss, a quarter of its heads
                                           ContractCase{{16, 2, 64, 0}, 100},
                                           ContractCase{{4, 2, 32, 4}, 75},  // tiny
                                           ContractCase{{4, 2, 32, 0}, 75},
                                           ContractCase{{1, 1, 2, 0}, 40},
                                           ContractCase{{6, 2, 30, 33}, 70},
                                           ContractCase{{5, 5, 34, 32}, 70},
                                           ContractCase{{7, 1, 80, 31}, 70},
                                           ContractCase{{8, 2, 128, 1}, 34},
                                           ContractCase{{9, 3, 66, 0}, 66}));

TEST(AttentionTest, SeesExactlyItsWindow) {
  const std::vector<NamedBackend> all = AllBackends();
  for (const int window : {1, 2, 31, 32, 33, 63, 127, 128, 129}) {
    const Shape shape = {.num_heads = 2, .num_kv_heads = 1, .head_dim = 64, .window = window};
    const Sequence s(shape, 200, 23);
    const std::vector<float> sinks = {0.5f, -1.0f};
    for (const NamedBackend& b : all) {
      for (const int64_t p : {0, 1, 30, 31, 32, 126, 127, 128, 129, 159, 160, 199}) {
        const std::vector<Bf16> out = Attend(*b.backend, shape, sinks, {{&s, p, 1}});
        for (int h = 0; h < 2; ++h) {
          const std::vector<Bf16> got(out.begin() + h * 64, out.begin() + h * 64 + 64);
          ASSERT_EQ(got, ContractHead(shape, s, p, h, sinks[static_cast<size_t>(h)]))
              << b.name << ", window " << window << ", position " << p;
        }
      }
    }
  }
}

TEST(AttentionTest, ChunkingChangesNoBit) {
  const std::vector<NamedBackend> all = AllBackends();
  for (const Shape& shape :
       {Shape{8, 2, 64, 0}, Shape{4, 1, 64, 128}, Shape{4, 2, 32, 5}, Shape{3, 1, 18, 40}}) {
    constexpr int64_t kLength = 200;
    const Sequence s(shape, kLength, 31);
    const std::vector<float> sinks = RandomFloats(5, shape.num_heads, 1.0);
    const std::vector<Bf16> whole = Attend(*all[0].backend, shape, sinks, {{&s, 0, kLength}});
    for (const NamedBackend& b : all) {
      for (const int64_t chunk : {1, 13, 32, 128, 199}) {
        const int64_t step = chunk == 1 ? 11 : chunk;  // Decode: every eleventh position.
        for (int64_t first = 0; first < kLength; first += step) {
          const int64_t count = std::min(chunk, kLength - first);
          const std::vector<Bf16> part = Attend(*b.backend, shape, sinks, {{&s, first, count}});
          ASSERT_TRUE(std::equal(part.begin(), part.end(), whole.begin() + first * shape.q_cols()))
              << b.name << ", chunk " << chunk << " at " << first;
        }
      }
    }
  }
}

TEST(AttentionTest, TheOthersOfABatchChangeNoBit) {
  const Shape shape = {.num_heads = 8, .num_kv_heads = 2, .head_dim = 64, .window = 40};
  const Sequence a(shape, 200, 41);
  const Sequence b(shape, 77, 44);
  const Sequence c(shape, 130, 47);
  const std::vector<float> sinks = RandomFloats(6, shape.num_heads, 1.0);
  const std::vector<Chunk> chunks = {{&a, 199, 1}, {&b, 0, 77}, {&c, 64, 33}, {&c, 129, 1}};
  for (NamedBackend& backend : AllBackends()) {
    const std::vector<Bf16> together = Attend(*backend.backend, shape, sinks, chunks);
    auto row = together.begin();
    for (const Chunk& chunk : chunks) {
      const std::vector<Bf16> alone = Attend(*backend.backend, shape, sinks, {chunk});
      EXPECT_TRUE(std::equal(alone.begin(), alone.end(), row)) << backend.name;
      row += static_cast<int64_t>(alone.size());
    }
  }
}

TEST(AttentionTest, AStrongSinkTakesNearlyAllAndAWeakOneNearlyNothing) {
  const Shape shape = {.num_heads = 3, .num_kv_heads = 1, .head_dim = 64};
  const Sequence s(shape, 90, 51);
  const std::vector<float> sinks = {20.0f, -20.0f, -kInf};
  for (NamedBackend& b : AllBackends()) {
    const std::vector<Bf16> out = Attend(*b.backend, shape, sinks, {{&s, 89, 1}});
    for (int h = 0; h < 3; ++h) {
      const double sink = static_cast<double>(sinks[static_cast<size_t>(h)]);
      const auto exact = ExactHead(shape, s, 89, h, sink);
      for (int d = 0; d < 64; ++d) {
        const double x = exact[static_cast<size_t>(d)];
        EXPECT_NEAR(static_cast<double>(ToFloat(out[static_cast<size_t>(h * 64 + d)])),
                    x,
                    std::abs(x) / 255 + 1e-6)
            << b.name;
      }
    }
  }
}

TEST(AttentionTest, ACallWithoutEntriesDoesNothing) {
  const Shape shape;
  for (NamedBackend& b : AllBackends()) {
    EXPECT_TRUE(Attend(*b.backend, shape, std::vector<float>(4), {}).empty());
  }
}

}  // namespace
}  // namespace shoal
