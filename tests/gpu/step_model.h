// The order of operations of worker/forward.cc, once more, for a machine that has the kernels and
// nothing else: random weights of any geometry, a cell of one rank, greedy sampling.
#pragma once

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <functional>
#include <utility>
#include <vector>

#include "kernels/backend.h"
#include "tests/gpu/device_arrays.h"
#include "tests/kernels/arrays.h"

namespace shoal::gpu {

struct Geometry {
  const char* name;
  int layers;
  int64_t hidden, intermediate;
  int experts, k, heads, kv_heads, head_dim;
  int64_t vocab;
  int32_t window;  // Of the even layers
};

inline constexpr Geometry k120b{"120b", 36, 2'880, 2'880, 128, 4, 64, 8, 64, 201'088, 128};
inline constexpr Geometry k20b{"20b", 24, 2'880, 2'880, 32, 4, 64, 8, 64, 201'088, 128};
// Small, and awkward where the kernels are sensitive.
inline constexpr Geometry kSmall{"small", 4, 320, 192, 16, 4, 8, 2, 64, 1'003, 128};

// A part of a step: positions [first, first + tokens.size()) of a sequence.
struct Part {
  int sequence;
  int32_t first;
  std::vector<int32_t> tokens;
};

// Copies on the device, queued like an operation; null: there is no such thing, so bytes come from
// the host again.
using DeviceCopy = std::function<void(void* to, const void* from, size_t bytes)>;

class StepModel {
 public:
  // Room for `sequences` of `positions` each, and steps of `max_rows`. Weights are random; equal
  // for all experts and, where `repeats`, made by repeating a block (else 120b would take minutes).
  StepModel(Backend* gpu,
            DeviceCopy copy,
            const Geometry& g,
            int sequences,
            int32_t positions,
            int64_t max_rows,
            bool repeats)
      : gpu_(*gpu),
        copy_(std::move(copy)),
        g_(g),
        memory_(gpu),
        blocks_per_sequence_((positions + 31) / 32) {
    const int64_t q = int64_t{g.heads} * g.head_dim;
    const int64_t qkv = q + int64_t{2} * g.kv_heads * g.head_dim;
    embedding_ = Weight(1, g.vocab, g.hidden, 1.0, repeats);
    unembedding_ = Weight(2, g.vocab, g.hidden, 0.05, repeats);
    gain_ = memory_.Put(std::vector<float>(static_cast<size_t>(g.hidden), 1.0f));
    rope_ = memory_.Put(Rope(g, positions));
    MakeExperts();
    KvLayer kv{.data = nullptr,
               .num_blocks = int64_t{sequences} * blocks_per_sequence_,
               .num_kv_heads = g.kv_heads,
               .head_dim = g.head_dim};
    for (int layer = 0; layer < g.layers; ++layer) {
      const auto seed = static_cast<uint64_t>(repeats ? 50 : 50 + 10 * layer);
      Layer l;
      l.qkv = Weight(seed, qkv, g.hidden, 0.03, repeats);
      l.out = Weight(seed + 1, g.hidden, q, 0.03, repeats);
      l.router = Weight(seed + 2, g.experts, g.hidden, 0.05, repeats);
      l.qkv_bias = memory_.Put(RandomFloats(seed + 3, qkv, 0.1));
      l.out_bias = memory_.Put(RandomFloats(seed + 4, g.hidden, 0.1));
      l.router_bias = memory_.Put(RandomFloats(seed + 5, g.experts, 0.5));
      l.sinks = memory_.Put(RandomFloats(seed + 6, g.heads, 1.0));
      kv.data = memory_.Allocate(static_cast<size_t>(kv.num_blocks * kv.block_bytes()));
      l.kv = kv;
      layers_.push_back(l);
    }
    MakeBuffers(max_rows, qkv, q);
  }

  // Random K and V everywhere, as if all sequences were long.
  void FillCache() {
    const std::vector<Bf16> block = RandomBf16(99, 1 << 20, 1.0);
    for (const Layer& l : layers_) Repeat(block, l.kv.data, l.kv.num_blocks * l.kv.block_bytes());
  }

  // Runs the step and samples the last row of each part, greedily. logits: of those rows.
  std::vector<int32_t> Step(const std::vector<Part>& parts, std::vector<float>* logits) {
    Prepare(parts);
    const int64_t rows = rows_;
    gpu_.Replay(replay_key_, [&] {
      gpu_.Embed({.ids = {ids_, rows}, .table = embedding_, .out = Rows(hidden_)});
      for (int layer = 0; layer < g_.layers; ++layer) RunLayer(layer);
      return true;
    });
    const auto n = static_cast<int64_t>(parts.size());
    const TensorView picked = picked_.Slice(0, n), normed = normed_.Slice(0, n);
    const TensorView out = logits_.Slice(0, n);
    gpu_.PickRows({.x = Rows(hidden_), .index = {sample_rows_, n}, .out = picked});
    gpu_.RmsNorm({.x = picked, .add = {}, .gain = gain_, .out = normed, .eps = 1e-5f});
    gpu_.Linear({.x = normed, .weight = unembedding_, .bias = nullptr, .out = out});
    std::vector<SampleRow> settings(parts.size());
    for (SampleRow& row : settings) row.temperature = 0.0f;
    std::vector<SampleResult> results(parts.size());
    gpu_.Sample({.logits = out, .rows = settings, .results = results});
    if (logits != nullptr) {
      logits->resize(static_cast<size_t>(n * g_.vocab));
      gpu_.Read(logits->data(), out.data, logits->size() * sizeof(float));
    }
    std::vector<int32_t> sampled;
    for (const SampleResult& result : results) sampled.push_back(result.id);
    return sampled;
  }

  // Bytes a decode step of `batch` rows at `context` must read at least: dense weights and head
  // once, the experts that were chosen, K and V.
  double DecodeBytes(int batch, int64_t context) const {
    const double q = static_cast<double>(g_.heads) * g_.head_dim;
    const double kv = 2.0 * g_.kv_heads * g_.head_dim;
    const auto h = static_cast<double>(g_.hidden);
    const double dense = 2.0 * h * (q + kv + q + g_.experts);
    const double expert = 3.0 * h * static_cast<double>(g_.intermediate) * 4.25 / 8;
    const double hit = g_.experts * (1.0 - std::pow(1.0 - 1.0 * g_.k / g_.experts, batch));
    const double seen = 0.5 * static_cast<double>(context + std::min<int64_t>(context, g_.window));
    return g_.layers * (dense + hit * expert + batch * seen * 2.0 * kv) +
           2.0 * h * static_cast<double>(g_.vocab);
  }

  const Geometry& geometry() const { return g_; }

 private:
  struct Layer {
    TensorView qkv, out, router;
    const float *qkv_bias, *out_bias, *router_bias, *sinks;
    KvLayer kv;
  };

  static std::vector<float> Rope(const Geometry& g, int32_t positions) {
    std::vector<float> table;
    for (int32_t p = 0; p < positions; ++p) {
      for (int i = 0; i < g.head_dim / 2; ++i) {
        const double angle = p * std::pow(150'000.0, -2.0 * i / g.head_dim);
        table.push_back(static_cast<float>(std::cos(angle)));
        table.push_back(static_cast<float>(std::sin(angle)));
      }
    }
    return table;
  }

  void Repeat(const std::vector<Bf16>& block, void* to, int64_t bytes) {
    const auto size = static_cast<int64_t>(block.size() * sizeof(Bf16));
    for (int64_t done = 0; done < bytes; done += size) {
      const auto part = static_cast<size_t>(std::min(size, bytes - done));
      std::byte* const at = static_cast<std::byte*>(to) + done;
      if (done == 0 || copy_ == nullptr) {
        gpu_.Write(at, block.data(), part);
      } else {
        copy_(at, to, part);  // Later parts from the first.
      }
    }
  }

  TensorView Weight(uint64_t seed, int64_t rows, int64_t cols, double scale, bool repeats) {
    const int64_t count = rows * cols;
    void* const data = memory_.Allocate(static_cast<size_t>(count) * sizeof(Bf16));
    // Not a multiple of a row, so that rows differ.
    const int64_t block = repeats ? std::min<int64_t>(count, 1'000'003) : count;
    Repeat(RandomBf16(seed, block, scale), data, count * int64_t{sizeof(Bf16)});
    return MakeTensor(data, DType::kBf16, rows, cols);
  }

  // One random expert, repacked once and copied to all places; biases differ by expert.
  void MakeExperts() {
    const auto pack = [&](uint64_t seed, int64_t out, int64_t in) {
      std::vector<std::byte> codes(static_cast<size_t>(out * in / 2));
      std::vector<uint8_t> scales(static_cast<size_t>(out * in / 32));
      for (size_t i = 0; i < codes.size(); ++i) {
        codes[i] = static_cast<std::byte>(RandomBits(seed, static_cast<int64_t>(i)));
      }
      for (size_t i = 0; i < scales.size(); ++i) {
        scales[i] = static_cast<uint8_t>(118 + RandomBits(seed + 1, static_cast<int64_t>(i)) % 3);
      }
      const auto bytes = static_cast<size_t>(gpu_.PackedBytes(ExpertFormat::kMxfp4, out, in));
      auto* const packed = static_cast<std::byte*>(memory_.Allocate(bytes));
      gpu_.Repack({.format = ExpertFormat::kMxfp4,
                   .out = out,
                   .in = in,
                   .codes = codes.data(),
                   .scales = scales.data(),
                   .packed = packed});
      return std::pair(packed, bytes);
    };
    const auto [gate_up, gate_up_bytes] = pack(31, 2 * g_.intermediate, g_.hidden);
    const auto [down, down_bytes] = pack(33, g_.hidden, g_.intermediate);
    const auto copy = [&](const std::byte* from, size_t bytes) -> const std::byte* {
      if (copy_ == nullptr) return from;  // All share the one.
      void* const to = memory_.Allocate(bytes);
      copy_(to, from, bytes);
      return static_cast<const std::byte*>(to);
    };
    for (int e = 0; e < g_.experts; ++e) {
      const auto seed = static_cast<uint64_t>(1'000 + 2 * e);
      gate_up_bias_.push_back(memory_.Put(RandomFloats(seed, 2 * g_.intermediate, 0.3)));
      down_bias_.push_back(memory_.Put(RandomFloats(seed + 1, g_.hidden, 0.3)));
    }
    for (int layer = 0; layer < g_.layers; ++layer) {
      PackedMatrix w1{.format = ExpertFormat::kMxfp4,
                      .out = 2 * g_.intermediate,
                      .in = g_.hidden,
                      .experts = {}};
      PackedMatrix w2{
          .format = ExpertFormat::kMxfp4, .out = g_.hidden, .in = g_.intermediate, .experts = {}};
      for (int e = 0; e < g_.experts; ++e) {
        w1.experts.push_back(copy(gate_up, gate_up_bytes));
        w2.experts.push_back(copy(down, down_bytes));
      }
      gate_up_.push_back(std::move(w1));
      down_.push_back(std::move(w2));
    }
  }

  void MakeBuffers(int64_t rows, int64_t qkv, int64_t q) {
    const auto make = [&](DType dtype, int64_t r, int64_t c) {
      return MakeTensor(
          memory_.Allocate(static_cast<size_t>(r * c * DTypeBytes(dtype))), dtype, r, c);
    };
    const auto ints = [&](int64_t count) {
      return static_cast<int32_t*>(memory_.Allocate(static_cast<size_t>(count) * sizeof(int32_t)));
    };
    hidden_ = make(DType::kF32, rows, g_.hidden);
    normed_ = make(DType::kBf16, rows, g_.hidden);
    qkv_ = make(DType::kBf16, rows, qkv);
    attended_ = make(DType::kBf16, rows, q);
    projected_ = make(DType::kBf16, rows, g_.hidden);
    scores_ = make(DType::kF32, rows, g_.experts);
    expert_ids_ = make(DType::kI32, rows, g_.k);
    shares_ = make(DType::kF32, rows, g_.k);
    returned_ = make(DType::kBf16, rows * g_.k, g_.hidden);
    picked_ = make(DType::kF32, std::min<int64_t>(rows, 512), g_.hidden);
    logits_ = make(DType::kF32, std::min<int64_t>(rows, 512), g_.vocab);
    ids_ = ints(rows);
    positions_ = ints(rows);
    slots_ = ints(rows);
    sample_rows_ = ints(rows);
    offsets_ = ints(g_.experts + 1);
    pair_row_ = ints(rows * g_.k);
    pair_out_ = ints(rows * g_.k);
    std::vector<int32_t> local(static_cast<size_t>(g_.experts));
    for (size_t e = 0; e < local.size(); ++e) local[e] = static_cast<int32_t>(e);
    local_index_ = {memory_.Put(local), g_.experts};
    entries_ = static_cast<AttentionEntry*>(
        memory_.Allocate(static_cast<size_t>(rows) * sizeof(AttentionEntry)));
    std::vector<int32_t> tables(static_cast<size_t>(layers_[0].kv.num_blocks));
    for (size_t b = 0; b < tables.size(); ++b) {  // Scattered, as they would be.
      tables[b] = static_cast<int32_t>(b * 7'919 % tables.size());
    }
    if (tables.size() % 7'919 == 0) std::abort();  // Then the places would not be distinct.
    host_tables_ = tables;
    tables_ = {memory_.Put(tables), static_cast<int64_t>(tables.size())};
  }

  TensorView Rows(const TensorView& all) const { return all.Slice(0, rows_); }

  void Prepare(const std::vector<Part>& parts) {
    std::vector<int32_t> ids, positions, slots, sample_rows;
    std::vector<AttentionEntry> entries;
    max_entry_rows_ = 0;
    max_positions_ = 0;
    for (const Part& part : parts) {
      const auto count = static_cast<int32_t>(part.tokens.size());
      const int32_t table = part.sequence * blocks_per_sequence_;
      entries.push_back({.first_row = static_cast<int32_t>(ids.size()),
                         .num_rows = count,
                         .first_position = part.first,
                         .table_offset = table});
      max_entry_rows_ = std::max(max_entry_rows_, count);
      max_positions_ = std::max(max_positions_, part.first + count);
      for (int32_t i = 0; i < count; ++i) {
        const int32_t position = part.first + i;
        ids.push_back(part.tokens[static_cast<size_t>(i)]);
        positions.push_back(position);
        const auto block = static_cast<size_t>(table + position / kBlockTokens);
        slots.push_back(host_tables_[block] * kBlockTokens + position % kBlockTokens);
      }
      sample_rows.push_back(static_cast<int32_t>(ids.size()) - 1);
    }
    rows_ = static_cast<int64_t>(ids.size());
    const auto write = [&](auto* to, const auto& values) {
      gpu_.Write(to, values.data(), values.size() * sizeof(values[0]));
    };
    write(ids_, ids);
    write(positions_, positions);
    write(slots_, slots);
    write(sample_rows_, sample_rows);
    write(entries_, entries);
    num_entries_ = entries.size();
    replay_key_ = 0;
    if (max_entry_rows_ == 1 && rows_ <= 64) {  // As worker/step_shape.h
      max_positions_ = static_cast<int32_t>(
          std::bit_ceil(static_cast<uint32_t>(std::max(max_positions_, int32_t{256}))));
      replay_key_ = static_cast<uint64_t>(rows_) << 32 | static_cast<uint32_t>(max_positions_);
    }
  }

  void RunLayer(int index) {
    const auto i = static_cast<size_t>(index);
    const Layer& l = layers_[i];
    gpu_.RmsNorm(
        {.x = Rows(hidden_), .add = {}, .gain = gain_, .out = Rows(normed_), .eps = 1e-5f});
    gpu_.Linear({.x = Rows(normed_), .weight = l.qkv, .bias = l.qkv_bias, .out = Rows(qkv_)});
    gpu_.RopeAndAppend({.qkv = Rows(qkv_),
                        .rope = rope_,
                        .positions = {positions_, rows_},
                        .slots = {slots_, rows_},
                        .num_heads = g_.heads,
                        .kv = l.kv});
    gpu_.Attention({.entries = {entries_, num_entries_},
                    .tables = tables_,
                    .q = Rows(qkv_),
                    .kv = l.kv,
                    .num_heads = g_.heads,
                    .window = index % 2 == 0 ? g_.window : 0,
                    .sinks = l.sinks,
                    .out = Rows(attended_),
                    .max_entry_rows = max_entry_rows_,
                    .max_positions = max_positions_});
    gpu_.Linear(
        {.x = Rows(attended_), .weight = l.out, .bias = l.out_bias, .out = Rows(projected_)});
    gpu_.RmsNorm({.x = Rows(hidden_),
                  .add = Rows(projected_),
                  .gain = gain_,
                  .out = Rows(normed_),
                  .eps = 1e-5f});
    gpu_.Linear(
        {.x = Rows(normed_), .weight = l.router, .bias = l.router_bias, .out = Rows(scores_)});
    gpu_.SelectExperts(
        {.scores = Rows(scores_), .ids = Rows(expert_ids_), .shares = Rows(shares_)});
    gpu_.GroupByExpert({.ids = Rows(expert_ids_),
                        .local_index = local_index_,
                        .num_local = g_.experts,
                        .expert_offsets = offsets_,
                        .pair_row = pair_row_,
                        .pair_out = pair_out_});
    const TensorView returned = returned_.Slice(0, rows_ * g_.k);
    gpu_.ExpertMlp({.x = Rows(normed_),
                    .expert_offsets = {offsets_, static_cast<size_t>(g_.experts) + 1},
                    .pair_row = {pair_row_, rows_ * g_.k},
                    .pair_out = {pair_out_, rows_ * g_.k},
                    .gate_up = &gate_up_[i],
                    .gate_up_bias = gate_up_bias_,
                    .down = &down_[i],
                    .down_bias = down_bias_,
                    .out = returned});
    gpu_.SumSlots({.rows = returned, .shares = Rows(shares_), .x = Rows(hidden_)});
  }

  Backend& gpu_;
  const DeviceCopy copy_;
  const Geometry g_;
  DeviceArrays memory_;
  const int32_t blocks_per_sequence_;
  TensorView embedding_, unembedding_;
  const float* gain_ = nullptr;
  const float* rope_ = nullptr;
  std::vector<PackedMatrix> gate_up_, down_;  // [layers]
  std::vector<const float*> gate_up_bias_, down_bias_;
  std::vector<Layer> layers_;

  TensorView hidden_, normed_, qkv_, attended_, projected_, scores_, expert_ids_, shares_,
      returned_;
  TensorView picked_, logits_;
  int32_t *ids_ = nullptr, *positions_ = nullptr, *slots_ = nullptr, *sample_rows_ = nullptr;
  int32_t *offsets_ = nullptr, *pair_row_ = nullptr, *pair_out_ = nullptr;
  IndexView local_index_, tables_;
  AttentionEntry* entries_ = nullptr;
  std::vector<int32_t> host_tables_;

  // Of the current step.
  int64_t rows_ = 0;
  size_t num_entries_ = 0;
  int32_t max_entry_rows_ = 0, max_positions_ = 0;
  uint64_t replay_key_ = 0;
};

}  // namespace shoal::gpu
