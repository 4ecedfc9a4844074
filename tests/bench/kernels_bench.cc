// The matrix products at the shapes of gpt-oss-20b, beside what the machine can do.
//
//   bytes_per_second  the weights' bytes, each once for a call
//   ops               multiply-adds of 8-bit integers: one for hi, one for lo of each weight and
//   row of_read, of_dots  the same as fractions of MeasureReadBandwidth and MeasureIntDotRate
//
// of_dots counts bf16 weights like MXFP4 ones, so that a whole model has one figure.
#include <benchmark/benchmark.h>

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <thread>
#include <vector>

#include "base/prng.h"
#include "kernels/cpu/backend.h"
#include "kernels/cpu/ceiling.h"
#include "kernels/cpu/dot.h"

namespace shoal {
namespace {

constexpr int64_t kHidden = 2'880;
constexpr int64_t kIntermediate = 2'880;
constexpr int64_t kExperts = 32;
constexpr int64_t kExpertsPerToken = 4;

struct Machine {
  int num_threads = static_cast<int>(std::max(1u, std::thread::hardware_concurrency()));
  double read_bandwidth = MeasureReadBandwidth(num_threads, {}).best;
  double int_dot_rate = MeasureIntDotRate(num_threads, {}, BestCpuIsa()).best;
  CpuBackend backend{{.num_threads = num_threads, .cpus = {}, .isa = BestCpuIsa()}};
};

Machine& TheMachine() {
  static Machine machine;
  return machine;
}

void SetCounters(benchmark::State& state, double bytes, double ops) {
  using benchmark::Counter;
  const Machine& machine = TheMachine();
  const auto total = static_cast<double>(state.iterations());
  state.SetBytesProcessed(static_cast<int64_t>(bytes * total));
  state.counters["ops"] = Counter(ops * total, Counter::kIsRate);
  state.counters["of_read"] = Counter(bytes * total / machine.read_bandwidth, Counter::kIsRate);
  state.counters["of_dots"] = Counter(ops * total / machine.int_dot_rate, Counter::kIsRate);
}

// Memory of the backend filled with bf16 around 1, of either sign.
class Bf16Matrix {
 public:
  Bf16Matrix(int64_t rows, int64_t cols) : bytes_(static_cast<size_t>(rows * cols) * 2) {
    data_ = TheMachine().backend.Allocate(bytes_);
    auto* values = static_cast<uint16_t*>(data_);
    Prng prng(1);
    for (int64_t i = 0; i < rows * cols; ++i) {
      values[i] = static_cast<uint16_t>(0x3f00 | (prng.Next() & 0x80ff));
    }
    view_ = MakeTensor(data_, DType::kBf16, rows, cols);
  }

  ~Bf16Matrix() { TheMachine().backend.Free(data_, bytes_); }

  Bf16Matrix(const Bf16Matrix&) = delete;
  Bf16Matrix& operator=(const Bf16Matrix&) = delete;

  const TensorView& view() const { return view_; }

 private:
  size_t bytes_;
  void* data_;
  TensorView view_;
};

// Several matrices in turn, more than the caches hold, as the layers of a model are.
void RunLinear(benchmark::State& state, int64_t outs, int64_t in, int64_t num_matrices) {
  const int64_t rows = state.range(0);
  CpuBackend& backend = TheMachine().backend;
  const Bf16Matrix x(rows, in);
  const Bf16Matrix weights(outs * num_matrices, in);
  const Bf16Matrix out(rows, outs);
  const std::vector<float> bias(static_cast<size_t>(outs), 0.5f);
  int64_t next = 0;
  for (auto _ : state) {
    backend.Linear({.x = x.view(),
                    .weight = weights.view().Slice(next * outs, outs),
                    .bias = bias.data(),
                    .out = out.view()});
    next = (next + 1) % num_matrices;
  }
  const auto weight = static_cast<double>(outs * in);
  SetCounters(state, 2.0 * weight, 2.0 * weight * static_cast<double>(rows));
}

void BM_Linear(benchmark::State& state) {
  RunLinear(state, 5'120, kHidden, 16);
}

void BM_LinearOut(benchmark::State& state) {
  RunLinear(state, kHidden, 4'096, 16);
}

void BM_LinearVocabulary(benchmark::State& state) {
  RunLinear(state, 201'088, kHidden, 1);
}

// One layer's experts; tokens pick four at random, or all the same four at one row.
void BM_ExpertMlp(benchmark::State& state) {
  const int64_t rows = state.range(0);
  CpuBackend& backend = TheMachine().backend;
  Prng prng(2);
  const auto make = [&](int64_t out, int64_t in) {
    PackedMatrix matrix = {.format = ExpertFormat::kMxfp4, .out = out, .in = in, .experts = {}};
    const auto bytes = static_cast<size_t>(backend.PackedBytes(matrix.format, out, in));
    auto* memory = static_cast<std::byte*>(backend.Allocate(bytes * kExperts));
    // Codes at random; the scales of one tile at a time around 2^-7.
    std::memset(memory, 0x5a, bytes * kExperts);
    const int64_t num_blocks = in / kMxBlock;
    for (int64_t tile = 0; tile < kExperts * out / kTileRows; ++tile) {
      std::byte* scales = memory + tile * MxTileBytes(num_blocks) + num_blocks * kTileCodeBytes;
      std::memset(scales, 120, static_cast<size_t>(num_blocks * kTileRows));
    }
    for (size_t e = 0; e < kExperts; ++e) matrix.experts.push_back(memory + e * bytes);
    return matrix;
  };
  const PackedMatrix gate_up = make(2 * kIntermediate, kHidden);
  const PackedMatrix down = make(kHidden, kIntermediate);
  const std::vector<float> bias(2 * kIntermediate, 0.25f);
  const std::vector<const float*> biases(kExperts, bias.data());

  // Pairs sorted by expert; eight choices in turn, so that few rows do not stay in the caches.
  struct Choice {
    std::vector<int32_t> offsets;
    std::vector<int32_t> rows;
  };

  std::vector<Choice> choices(8);
  double used_experts = 0;
  for (size_t c = 0; c < choices.size(); ++c) {
    std::vector<std::vector<int32_t>> of_expert(kExperts);
    for (int64_t r = 0; r < rows; ++r) {
      const uint64_t first = rows == 1 ? c * kExpertsPerToken : prng.Below(kExperts);
      for (uint64_t s = 0; s < kExpertsPerToken; ++s) {
        of_expert[(first + s * (rows == 1 ? 1 : 7)) % kExperts].push_back(static_cast<int32_t>(r));
      }
    }
    choices[c].offsets.push_back(0);
    for (const std::vector<int32_t>& list : of_expert) {
      choices[c].rows.insert(choices[c].rows.end(), list.begin(), list.end());
      choices[c].offsets.push_back(static_cast<int32_t>(choices[c].rows.size()));
      used_experts += list.empty() ? 0.0 : 1.0 / static_cast<double>(choices.size());
    }
  }
  const int64_t pairs = rows * kExpertsPerToken;
  std::vector<int32_t> identity;
  for (int32_t i = 0; i < pairs; ++i) identity.push_back(i);
  const Bf16Matrix x(rows, kHidden);
  const Bf16Matrix out(pairs, kHidden);

  size_t next = 0;
  for (auto _ : state) {
    const Choice& choice = choices[next];
    backend.ExpertMlp({.x = x.view(),
                       .expert_offsets = choice.offsets,
                       .pair_row = {choice.rows.data(), pairs},
                       .pair_out = {identity.data(), pairs},
                       .gate_up = &gate_up,
                       .gate_up_bias = biases,
                       .down = &down,
                       .down_bias = biases,
                       .out = out.view()});
    next = (next + 1) % choices.size();
  }
  const double expert_bytes =
      static_cast<double>(backend.PackedBytes(ExpertFormat::kMxfp4, 2 * kIntermediate, kHidden) +
                          backend.PackedBytes(ExpertFormat::kMxfp4, kHidden, kIntermediate));
  const double weights = 3.0 * static_cast<double>(kHidden * kIntermediate);
  SetCounters(state, used_experts * expert_bytes, 2.0 * weights * static_cast<double>(pairs));
  for (const PackedMatrix* matrix : {&gate_up, &down}) {
    backend.Free(const_cast<std::byte*>(matrix->experts[0]),
                 static_cast<size_t>(backend.PackedBytes(matrix->format, matrix->out, matrix->in) *
                                     kExperts));
  }
}

BENCHMARK(BM_Linear)
    ->ArgName("rows")
    ->Arg(1)
    ->Arg(4)
    ->Arg(16)
    ->Arg(64)
    ->Arg(512)
    ->MeasureProcessCPUTime()
    ->UseRealTime();
BENCHMARK(BM_LinearOut)
    ->ArgName("rows")
    ->Arg(1)
    ->Arg(16)
    ->Arg(512)
    ->MeasureProcessCPUTime()
    ->UseRealTime();
BENCHMARK(BM_LinearVocabulary)
    ->ArgName("rows")
    ->Arg(1)
    ->Arg(16)
    ->MeasureProcessCPUTime()
    ->UseRealTime();
BENCHMARK(BM_ExpertMlp)
    ->ArgName("rows")
    ->Arg(1)
    ->Arg(4)
    ->Arg(16)
    ->Arg(64)
    ->Arg(512)
    ->MeasureProcessCPUTime()
    ->UseRealTime();

}  // namespace
}  // namespace shoal

int main(int argc, char** argv) {
  benchmark::Initialize(&argc, argv);
  const shoal::Machine& machine = shoal::TheMachine();
  benchmark::AddCustomContext("threads", std::to_string(machine.num_threads));
  benchmark::AddCustomContext("read_GB_per_s", std::to_string(machine.read_bandwidth / 1e9));
  benchmark::AddCustomContext("int_dots_G_per_s", std::to_string(machine.int_dot_rate / 1e9));
  benchmark::RunSpecifiedBenchmarks();
  benchmark::Shutdown();
  return 0;
}
