// Each operation, then whole steps, beside the ceiling measured in the same run.
//
//   bench [--json FILE] [--matmul TFLOPS]
//
// Bandwidth ceiling: a device-to-device copy of 2 GB, read plus written. Matrix ceiling: --matmul,
// measured by run.sh with the library that is there; without it the column is empty. An operation's
// bytes or FLOP come from the formula in its header comment. Times: CUDA events around a batch of
// calls, median of several; steps by the host's clock, since they end with a token on the host.
// Inputs rotate where they would fit a cache. Exit code 77: no device.
#include <cuda_runtime.h>

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <functional>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "kernels/cuda/backend.h"
#include "tests/gpu/step_model.h"

namespace shoal::gpu {
namespace {

struct Line {
  std::string name;
  double microseconds;
  double rate;     // In unit
  double ceiling;  // Same unit; 0: unknown
  std::string unit;
};

double Median(std::vector<double> values) {
  std::sort(values.begin(), values.end());
  return values[values.size() / 2];
}

class Bench {
 public:
  Bench(CudaBackend* gpu, double matmul) : gpu_(*gpu), matmul_(matmul) {}

  // Seconds of one call: the median over groups of calls, warm.
  double Time(int calls, const std::function<void(int)>& call) {
    cudaEvent_t begin, end;
    cudaEventCreate(&begin);
    cudaEventCreate(&end);
    for (int i = 0; i < 3; ++i) call(i);
    std::vector<double> seconds;
    for (int group = 0; group < 5; ++group) {
      cudaEventRecord(begin, gpu_.stream());
      for (int i = 0; i < calls; ++i) call(i);
      cudaEventRecord(end, gpu_.stream());
      gpu_.Synchronize();
      float ms = 0.0f;
      cudaEventElapsedTime(&ms, begin, end);
      seconds.push_back(static_cast<double>(ms) / 1e3 / calls);
    }
    cudaEventDestroy(begin);
    cudaEventDestroy(end);
    return Median(seconds);
  }

  void Bytes(const std::string& name, double seconds, double bytes) {
    Add({name, seconds * 1e6, bytes / seconds / 1e9, bandwidth_, "GB/s"});
  }

  void Flop(const std::string& name, double seconds, double flop) {
    Add({name, seconds * 1e6, flop / seconds / 1e12, matmul_, "TFLOP/s"});
  }

  void Add(const Line& line) {
    lines_.push_back(line);
    std::printf("%-44s %10.1f us %10.1f %-8s",
                line.name.c_str(),
                line.microseconds,
                line.rate,
                line.unit.c_str());
    if (line.ceiling > 0)
      std::printf(" %5.1f %% of %.1f", 100 * line.rate / line.ceiling, line.ceiling);
    std::printf("\n");
    std::fflush(stdout);
  }

  void Ceiling() {
    DeviceArrays memory(&gpu_);
    constexpr size_t kBytes = size_t{2} << 30;
    void* const from = memory.Allocate(kBytes);
    void* const to = memory.Allocate(kBytes);
    const double seconds = Time(5, [&](int) {
      cudaMemcpyAsync(to, from, kBytes, cudaMemcpyDeviceToDevice, gpu_.stream());
    });
    bandwidth_ = 2.0 * kBytes / seconds / 1e9;
    std::printf(
        "copy: %.0f GB/s read and written; matrix product: %.0f TFLOP/s\n", bandwidth_, matmul_);
  }

  void Linears() {
    struct Shape {
      const char* name;
      int64_t out, in;
    };

    for (const Shape& s :
         {Shape{"qkv", 5'120, 2'880}, {"out", 2'880, 4'096}, {"unembedding", 201'088, 2'880}}) {
      DeviceArrays memory(&gpu_);
      const int copies = s.out > 100'000 ? 1 : 8;  // More than the L2 holds
      const auto weight = static_cast<size_t>(s.out * s.in);
      std::vector<void*> weights;
      const std::vector<Bf16> block = RandomBf16(1, 1 << 20, 0.05);
      for (int i = 0; i < copies; ++i) {
        weights.push_back(memory.Allocate(weight * 2));
        for (size_t at = 0; at < weight; at += block.size()) {
          gpu_.Write(static_cast<Bf16*>(weights.back()) + at,
                     block.data(),
                     std::min(block.size(), weight - at) * 2);
        }
      }
      for (const int64_t rows : {1, 8, 32, 64, 128, 512, 4'096}) {
        if (s.out > 100'000 && rows > 512) continue;
        Bf16* const x = memory.Put(RandomBf16(2, rows * s.in, 1.0));
        void* const out = memory.Allocate(static_cast<size_t>(rows * s.out) * 4);
        const double seconds = Time(rows > 128 ? 4 : 16, [&](int i) {
          gpu_.Linear({.x = MakeTensor(x, DType::kBf16, rows, s.in),
                       .weight = MakeTensor(
                           weights[static_cast<size_t>(i % copies)], DType::kBf16, s.out, s.in),
                       .bias = nullptr,
                       .out = MakeTensor(out, DType::kF32, rows, s.out)});
        });
        const std::string name = std::string("linear ") + s.name + ", rows " + std::to_string(rows);
        if (rows <= 64) {
          Bytes(name, seconds, 2.0 * static_cast<double>(weight));
        } else {
          Flop(name, seconds, 2.0 * static_cast<double>(rows * s.out * s.in));
        }
      }
    }
  }

  // 128 experts of one layer of 120b; each row chooses four, spread evenly as a hash would.
  void Experts() {
    constexpr int kExperts = 128;
    constexpr int64_t kSize = 2'880;
    DeviceArrays memory(&gpu_);
    PackedMatrix gate_up{
        .format = ExpertFormat::kMxfp4, .out = 2 * kSize, .in = kSize, .experts = {}};
    PackedMatrix down{.format = ExpertFormat::kMxfp4, .out = kSize, .in = kSize, .experts = {}};
    std::vector<std::byte> codes(static_cast<size_t>(kSize * kSize));
    for (size_t i = 0; i < codes.size(); ++i)
      codes[i] = static_cast<std::byte>(RandomBits(3, static_cast<int64_t>(i)));
    std::vector<uint8_t> scales(static_cast<size_t>(2 * kSize * kSize / 32), 120);
    float* const bias = memory.Put(RandomFloats(4, 2 * kSize, 0.3));
    const auto pack = [&](PackedMatrix* m) {
      auto* const packed = static_cast<std::byte*>(
          memory.Allocate(static_cast<size_t>(gpu_.PackedBytes(m->format, m->out, m->in))));
      gpu_.Repack({.format = m->format,
                   .out = m->out,
                   .in = m->in,
                   .codes = codes.data(),
                   .scales = scales.data(),
                   .packed = packed});
      m->experts.push_back(packed);
    };
    for (int e = 0; e < kExperts; ++e) {
      pack(&gate_up);
      pack(&down);
    }
    const std::vector<const float*> biases(kExperts, bias);
    for (const int64_t rows : {1, 4, 8, 32, 128, 512, 2'048, 8'192}) {
      const int64_t pairs = rows * 4;
      std::vector<std::vector<int32_t>> chosen(kExperts);
      for (int64_t p = 0; p < pairs; ++p) {
        chosen[(static_cast<uint64_t>(p % 4) * 32 + RandomBits(5, p) % 32)].push_back(
            static_cast<int32_t>(p));
      }
      std::vector<int32_t> offsets = {0}, pair_row, pair_out;
      int hit = 0;
      for (const auto& list : chosen) {
        for (const int32_t p : list) {
          pair_row.push_back(p / 4);
          pair_out.push_back(p);
        }
        hit += list.empty() ? 0 : 1;
        offsets.push_back(static_cast<int32_t>(pair_row.size()));
      }
      const ExpertMlpArgs args{
          .x = MakeTensor(memory.Put(RandomBf16(6, rows * kSize, 1.0)), DType::kBf16, rows, kSize),
          .expert_offsets = {memory.Put(offsets), offsets.size()},
          .pair_row = {memory.Put(pair_row), pairs},
          .pair_out = {memory.Put(pair_out), pairs},
          .gate_up = &gate_up,
          .gate_up_bias = biases,
          .down = &down,
          .down_bias = biases,
          .out = MakeTensor(
              memory.Allocate(static_cast<size_t>(pairs * kSize) * 2), DType::kBf16, pairs, kSize)};
      // With few experts the weights stay in the L2 from call to call: what is read is then a copy
      // of 2 x 60 MB between the calls, whose own time is taken off.
      const bool fits_cache = hit < 16;
      std::byte* const spill =
          fits_cache ? static_cast<std::byte*>(memory.Allocate(size_t{240} << 20)) : nullptr;
      const auto flush = [&] {
        cudaMemcpyAsync(spill,
                        spill + (size_t{120} << 20),
                        size_t{120} << 20,
                        cudaMemcpyDeviceToDevice,
                        gpu_.stream());
      };
      double seconds = Time(8, [&](int) {
        if (fits_cache) flush();
        gpu_.ExpertMlp(args);
      });
      if (fits_cache) seconds -= Time(8, [&](int) { flush(); });
      const std::string name =
          "experts of 120b, rows " + std::to_string(rows) + ", hit " + std::to_string(hit);
      if (rows <= 1'024) {
        Bytes(name, seconds, hit * 3.0 * kSize * kSize * 4.25 / 8);
      } else {
        Flop(name, seconds, 6.0 * static_cast<double>(pairs) * kSize * kSize);
      }
    }
  }

  void Attentions() {
    struct Shape {
      int sequences;
      int32_t context;
      int32_t rows;  // Of each sequence
      int32_t window;
    };

    for (const Shape& s : {Shape{1, 1'024, 1, 0},
                           {1, 8'192, 1, 0},
                           {1, 32'768, 1, 0},
                           {1, 131'072, 1, 0},
                           {32, 1'024, 1, 0},
                           {32, 8'192, 1, 0},
                           {256, 1'024, 1, 0},
                           {256, 1'024, 1, 128},
                           {1, 8'192, 8'192, 0},
                           {1, 8'192, 8'192, 128}}) {
      DeviceArrays memory(&gpu_);
      const int64_t rows = int64_t{s.sequences} * s.rows;
      const int32_t blocks = s.context / kBlockTokens;
      KvLayer kv{.data = nullptr,
                 .num_blocks = int64_t{blocks} * s.sequences,
                 .num_kv_heads = 8,
                 .head_dim = 64};
      kv.data = memory.Allocate(static_cast<size_t>(kv.num_blocks * kv.block_bytes()));
      const std::vector<Bf16> block = RandomBf16(7, kv.block_bytes() / 2, 1.0);
      for (int64_t b = 0; b < kv.num_blocks; ++b) {
        gpu_.Write(static_cast<std::byte*>(kv.data) + b * kv.block_bytes(),
                   block.data(),
                   block.size() * 2);
      }
      std::vector<int32_t> tables;
      std::vector<AttentionEntry> entries;
      for (int i = 0; i < s.sequences; ++i) {
        entries.push_back({.first_row = i * s.rows,
                           .num_rows = s.rows,
                           .first_position = s.context - s.rows,
                           .table_offset = i * blocks});
        for (int32_t b = 0; b < blocks; ++b) tables.push_back(b * s.sequences + i);
      }
      const AttentionArgs args{
          .entries = {memory.Put(entries), entries.size()},
          .tables = {memory.Put(tables), kv.num_blocks},
          .q = MakeTensor(memory.Put(RandomBf16(8, rows * 5'120, 1.0)), DType::kBf16, rows, 5'120),
          .kv = kv,
          .num_heads = 64,
          .window = s.window,
          .sinks = memory.Put(RandomFloats(9, 64, 1.0)),
          .out = MakeTensor(
              memory.Allocate(static_cast<size_t>(rows) * 8'192), DType::kBf16, rows, 4'096),
          .max_entry_rows = s.rows,
          .max_positions = s.context};
      const double seconds = Time(8, [&](int) { gpu_.Attention(args); });
      const std::string name = "attention " + std::to_string(s.sequences) + " x " +
                               std::to_string(s.rows) + " at " + std::to_string(s.context) +
                               (s.window > 0 ? ", window" : "");
      const double seen = s.window > 0 ? s.window : s.context;
      if (s.rows == 1) {
        Bytes(name, seconds, s.sequences * seen * 2'048);  // K and V, 8 heads of 64
      } else {
        const double visible = s.window > 0 ? seen : seen / 2;
        Flop(name, seconds, 4.0 * 64 * 64 * static_cast<double>(rows) * visible);
      }
    }
  }

  void Small() {
    DeviceArrays memory(&gpu_);
    for (const int64_t rows : {1, 64, 4'096}) {
      float* const x = memory.Put(RandomFloats(10, rows * 2'880, 1.0));
      Bf16* const y = memory.Put(RandomBf16(11, rows * 2'880, 1.0));
      float* const gain = memory.Put(RandomFloats(12, 2'880, 1.0));
      Bytes("rmsnorm, rows " + std::to_string(rows),
            Time(32,
                 [&](int) {
                   gpu_.RmsNorm({.x = MakeTensor(x, DType::kF32, rows, 2'880),
                                 .add = {},
                                 .gain = gain,
                                 .out = MakeTensor(y, DType::kBf16, rows, 2'880),
                                 .eps = 1e-5f});
                 }),
            6.0 * static_cast<double>(rows) * 2'880);
      float* const scores = memory.Put(RandomFloats(13, rows * 128, 1.0));
      auto* const ids = static_cast<int32_t*>(memory.Allocate(static_cast<size_t>(rows) * 16));
      auto* const shares = memory.Allocate(static_cast<size_t>(rows) * 16);
      std::vector<int32_t> local(128);
      for (int e = 0; e < 128; ++e) local[static_cast<size_t>(e)] = e;
      const int32_t* const gpu_local = memory.Put(local);
      auto* const places =
          static_cast<int32_t*>(memory.Allocate(static_cast<size_t>(rows) * 32 + 1'024));
      const auto select = [&](int) {
        gpu_.SelectExperts({.scores = MakeTensor(scores, DType::kF32, rows, 128),
                            .ids = MakeTensor(ids, DType::kI32, rows, 4),
                            .shares = MakeTensor(shares, DType::kF32, rows, 4)});
      };
      Bytes("select experts, rows " + std::to_string(rows),
            Time(32, select),
            544.0 * static_cast<double>(rows));
      const auto group = [&](int) {
        gpu_.GroupByExpert({.ids = MakeTensor(ids, DType::kI32, rows, 4),
                            .local_index = {gpu_local, 128},
                            .num_local = 128,
                            .expert_offsets = places,
                            .pair_row = places + 256,
                            .pair_out = places + 256 + rows * 4});
      };
      Bytes("group by expert, rows " + std::to_string(rows),
            Time(32, group),
            48.0 * static_cast<double>(rows));
    }
  }

  void Steps(const Geometry& g) {
    const int64_t need =
        static_cast<int64_t>(g.layers) * g.experts * 13'300'000 + (int64_t{14} << 30);
    if (gpu_.FreeBytes() < need) {
      std::printf("%s: %.1f GB free, %.1f wanted: left out\n",
                  g.name,
                  static_cast<double>(gpu_.FreeBytes()) / 1e9,
                  static_cast<double>(need) / 1e9);
      return;
    }
    constexpr int kSequences = 64;
    constexpr int32_t kContext = 1'024;
    // One sequence alone may take all the room: the tables of the others are not used then.
    const DeviceCopy copy = [this](void* to, const void* from, size_t bytes) {
      cudaMemcpyAsync(to, from, bytes, cudaMemcpyDeviceToDevice, gpu_.stream());
    };
    StepModel model(&gpu_, copy, g, kSequences, 1'280, 8'192, /*repeats=*/true);
    model.FillCache();
    for (const int batch : {1, 8, 32, 64}) {
      std::vector<Part> parts;
      for (int s = 0; s < batch; ++s) parts.push_back({s, kContext, {s * 997 % 200'000}});
      const double seconds = WallTime(40, [&](int i) {
        for (Part& part : parts) part.first = kContext + i % 64;
        const std::vector<int32_t> sampled = model.Step(parts, nullptr);
        for (size_t s = 0; s < parts.size(); ++s) parts[s].tokens[0] = sampled[s];
      });
      const std::string name =
          std::string("decode ") + g.name + ", batch " + std::to_string(batch) + " at 1k";
      Add({name,
           seconds * 1e6,
           batch / seconds,
           batch * bandwidth_ * 1e9 / model.DecodeBytes(batch, kContext),
           "tok/s"});
    }
    std::vector<Part> prompts;
    for (int s = 0; s < 8; ++s) {
      std::vector<int32_t> tokens;
      for (int32_t i = 0; i < 1'024; ++i)
        tokens.push_back(static_cast<int32_t>(RandomBits(static_cast<uint64_t>(s), i) % 200'000));
      prompts.push_back({s, 0, std::move(tokens)});
    }
    const double seconds = WallTime(3, [&](int) { model.Step(prompts, nullptr); });
    const double active =
        g.layers * (2.0 * 2'880 * (5'120 + 4'096 + g.experts) + 6.0 * g.k * 2'880 * 2'880);
    Add({std::string("prefill ") + g.name + ", 8 prompts of 1k",
         seconds * 1e6,
         8'192 / seconds,
         matmul_ * 1e12 / active,
         "tok/s"});
  }

  // Sampling's own time, at the model's vocabulary.
  void Samples() {
    DeviceArrays memory(&gpu_);
    constexpr int64_t kVocab = 201'088;
    float* const logits = memory.Put(RandomFloats(14, kVocab, 3.0));
    for (const float temperature : {0.0f, 1.0f}) {
      SampleRow row;
      row.temperature = temperature;
      row.top_p = temperature == 0.0f ? 1.0f : 0.9f;
      SampleResult result;
      const double seconds = WallTime(20, [&](int i) {
        row.position = i;
        gpu_.Sample({.logits = MakeTensor(logits, DType::kF32, 1, kVocab),
                     .rows = {&row, 1},
                     .results = {&result, 1}});
      });
      Bytes(
          temperature == 0.0f ? "sample greedily" : "sample with top_p 0.9", seconds, 4.0 * kVocab);
    }
  }

  void WriteJson(const char* path) const {
    std::FILE* const file = std::fopen(path, "w");
    if (file == nullptr) {
      std::fprintf(stderr, "cannot write %s\n", path);
      return;
    }
    std::fprintf(
        file,
        "{\"device\": \"%s\", \"copy_gb_s\": %.1f, \"matmul_tflop_s\": %.1f, \"lines\": [\n",
        gpu_.device().name.c_str(),
        bandwidth_,
        matmul_);
    for (size_t i = 0; i < lines_.size(); ++i) {
      const Line& l = lines_[i];
      std::fprintf(file,
                   "  {\"name\": \"%s\", \"us\": %.2f, \"rate\": %.2f, \"ceiling\": %.2f, "
                   "\"unit\": \"%s\"}%s\n",
                   l.name.c_str(),
                   l.microseconds,
                   l.rate,
                   l.ceiling,
                   l.unit.c_str(),
                   i + 1 < lines_.size() ? "," : "");
    }
    std::fprintf(file, "]}\n");
    std::fclose(file);
  }

 private:
  // Of calls that wait for the device themselves.
  double WallTime(int calls, const std::function<void(int)>& call) {
    for (int i = 0; i < 3; ++i) call(i);
    std::vector<double> seconds;
    for (int i = 0; i < calls; ++i) {
      const auto begin = std::chrono::steady_clock::now();
      call(i);
      seconds.push_back(
          std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count());
    }
    return Median(seconds);
  }

  CudaBackend& gpu_;
  const double matmul_;
  double bandwidth_ = 0.0;
  std::vector<Line> lines_;
};

int Run(int argc, char** argv) {
  const char* json = nullptr;
  double matmul = 0.0;
  for (int i = 1; i + 1 < argc; i += 2) {
    const std::string_view flag = argv[i];
    if (flag == "--json") json = argv[i + 1];
    if (flag == "--matmul") matmul = std::atof(argv[i + 1]);
  }
  std::string error;
  const auto gpu = CudaBackend::Open({.device = 0}, &error);
  if (gpu == nullptr) {
    std::printf("SKIPPED: no CUDA device: %s\n", error.c_str());
    return kNoDevice;
  }
  Bench bench(gpu.get(), matmul);
  bench.Ceiling();
  bench.Linears();
  bench.Experts();
  bench.Attentions();
  bench.Small();
  bench.Samples();
  if (json != nullptr) bench.WriteJson(json);  // Should a step not fit, the rest is there.
  bench.Steps(k20b);
  bench.Steps(k120b);
  if (json != nullptr) bench.WriteJson(json);
  return 0;
}

}  // namespace
}  // namespace shoal::gpu

int main(int argc, char** argv) {
  try {
    return shoal::gpu::Run(argc, argv);
  } catch (const shoal::DeviceFault& fault) {
    std::printf("FAILED: %s\n", fault.what());
    return 1;
  }
}
