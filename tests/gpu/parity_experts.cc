// Parity of the experts: their packed layout and the grouped products.
#include <algorithm>
#include <string>
#include <type_traits>
#include <utility>
#include <vector>

#include "kernels/cuda/mx_layout.h"
#include "kernels/synthetic.h"
#include "tests/gpu/checks.h"
#include "tests/gpu/device_arrays.h"
#include "tests/kernels/arrays.h"

namespace shoal::gpu {
namespace {

class ExpertChecks : public Checks {
 public:
  using Checks::Checks;

  void Run() {
    if (gpu_.numerics_class() != "cpu") Section("repack", [&] { Repacks(); });
    if (gpu_.Synthesize({})) Section("synthesize", [&] { Synthesizes(); });
    Section("expert mlp", [&] { Experts(); });
  }

 private:
  struct Matrix {
    int64_t out, in;
    std::vector<std::byte> codes;
    std::vector<uint8_t> scales;
  };

  static Matrix RandomMatrix(ExpertFormat format, uint64_t seed, int64_t out, int64_t in) {
    Matrix m{.out = out, .in = in, .codes = {}, .scales = {}};
    if (format == ExpertFormat::kBf16) {
      const std::vector<Bf16> values = RandomBf16(seed, out * in, 0.1);
      const auto* bytes = reinterpret_cast<const std::byte*>(values.data());
      m.codes.assign(bytes, bytes + values.size() * sizeof(Bf16));
      return m;
    }
    for (int64_t i = 0; i < out * in / 2; ++i) {
      m.codes.push_back(static_cast<std::byte>(RandomBits(seed, i)));
    }
    for (int64_t i = 0; i < out * in / 32; ++i) {
      m.scales.push_back(static_cast<uint8_t>(119 + RandomBits(seed + 1, i) % 5));
    }
    return m;
  }

  std::byte* PackOn(Backend& backend, DeviceArrays* device, ExpertFormat format, const Matrix& m) {
    const auto bytes = static_cast<size_t>(backend.PackedBytes(format, m.out, m.in));
    auto* const packed = static_cast<std::byte*>(device->Allocate(bytes));
    backend.Repack({.format = format,
                    .out = m.out,
                    .in = m.in,
                    .codes = m.codes.data(),
                    .scales = m.scales.empty() ? nullptr : m.scales.data(),
                    .packed = packed});
    return packed;
  }

  void Repacks() {
    for (const auto& [out, in] : {std::pair<int64_t, int64_t>{1, 32}, {65, 96}, {192, 160}}) {
      const Matrix m = RandomMatrix(ExpertFormat::kMxfp4, 18, out, in);
      DeviceArrays device(&gpu_);
      const std::byte* packed = PackOn(gpu_, &device, ExpertFormat::kMxfp4, m);
      std::vector<uint32_t> expected;
      const int64_t words = cuda::MxPackedBytes(out, in) / 4;
      for (int64_t w = 0; w < words; ++w) {
        constexpr int64_t kWords = cuda::kMxTileBytes / 4;
        expected.push_back(cuda::PackedWord(
            m.codes.data(), m.scales.data(), out, in, w / kWords, static_cast<int>(w % kWords)));
      }
      Check(EqualBits(device.Get(reinterpret_cast<const uint32_t*>(packed), expected.size()),
                      expected),
            "repack " + std::to_string(out) + " x " + std::to_string(in));
    }
  }

  template <typename T>
  void CheckSynthetic(DType dtype, const SyntheticFormula& formula, int64_t first, int64_t count) {
    DeviceArrays device(&gpu_);
    std::vector<T> expected;
    for (int64_t i = 0; i < count; ++i) {
      const uint8_t b = SyntheticByte(formula.seed, first + i);
      if constexpr (std::is_same_v<T, uint8_t>) {
        expected.push_back(SyntheticU8(formula, b));
      } else if constexpr (std::is_same_v<T, float>) {
        expected.push_back(SyntheticFloat(formula, b));
      } else {
        expected.push_back(ToBf16(SyntheticFloat(formula, b)));
      }
    }
    auto* const out = device.Put(std::vector<T>(static_cast<size_t>(count)));
    gpu_.Synthesize(
        {.formula = formula, .first = first, .count = count, .dtype = dtype, .out = out});
    Check(EqualBits(device.Get(out, expected.size()), expected),
          "synthesize " + std::to_string(count) + " from " + std::to_string(first) + ", kind " +
              std::to_string(static_cast<int>(formula.kind)));
  }

  // Every meaning of a byte, also beyond 2^32 elements; then an expert made and packed there.
  void Synthesizes() {
    using Kind = SyntheticFormula::Kind;
    for (const int64_t first : {int64_t{0}, int64_t{3}, int64_t{5'000'000'011}}) {
      for (const int64_t count : {1, 255, 4'099}) {
        CheckSynthetic<uint8_t>(DType::kU8, {.seed = 1, .kind = Kind::kCode}, first, count);
        for (const uint8_t base : {uint8_t{118}, uint8_t{122}}) {
          CheckSynthetic<uint8_t>(
              DType::kU8, {.seed = 2, .kind = Kind::kScale, .base = base}, first, count);
        }
        CheckSynthetic<Bf16>(DType::kBf16, {.seed = 3, .kind = Kind::kGain}, first, count);
        CheckSynthetic<float>(DType::kF32, {.seed = 3, .kind = Kind::kGain}, first, count);
        for (int8_t shift = 5; shift <= 10; ++shift) {
          const SyntheticFormula number{.seed = 4, .kind = Kind::kNumber, .shift = shift};
          CheckSynthetic<Bf16>(DType::kBf16, number, first, count);
          CheckSynthetic<float>(DType::kF32, number, first, count);
        }
      }
    }
    const Matrix m = RandomMatrix(ExpertFormat::kMxfp4, 19, 65, 96);
    DeviceArrays device(&gpu_);
    const std::byte* from_host = PackOn(gpu_, &device, ExpertFormat::kMxfp4, m);
    const auto bytes = static_cast<size_t>(gpu_.PackedBytes(ExpertFormat::kMxfp4, m.out, m.in));
    auto* const packed = static_cast<std::byte*>(device.Allocate(bytes));
    gpu_.Repack({.format = ExpertFormat::kMxfp4,
                 .out = m.out,
                 .in = m.in,
                 .codes = device.Put(m.codes),
                 .scales = device.Put(m.scales),
                 .packed = packed,
                 .source = RepackArgs::Source::kDevice});
    Check(EqualBits(device.Get(packed, bytes), device.Get(from_host, bytes)),
          "repack from the device's memory");
  }

  // A layer of experts on both sides.
  struct Layer {
    PackedMatrix gate_up[2], down[2];  // [cpu, gpu]
    std::vector<const float*> gate_up_bias[2], down_bias[2];
    std::vector<std::vector<float>> host;
  };

  Layer MakeLayer(DeviceArrays* cpu_memory,
                  DeviceArrays* gpu_memory,
                  ExpertFormat format,
                  int64_t experts,
                  int64_t hidden,
                  int64_t intermediate) {
    Layer layer;
    for (int side = 0; side < 2; ++side) {
      layer.gate_up[side] = {
          .format = format, .out = 2 * intermediate, .in = hidden, .experts = {}};
      layer.down[side] = {.format = format, .out = hidden, .in = intermediate, .experts = {}};
    }
    for (int64_t e = 0; e < experts; ++e) {
      const auto seed = static_cast<uint64_t>(1'000 + 10 * e);
      const Matrix gate_up = RandomMatrix(format, seed, 2 * intermediate, hidden);
      const Matrix down = RandomMatrix(format, seed + 2, hidden, intermediate);
      layer.host.push_back(RandomFloats(seed + 4, 2 * intermediate, 0.5));
      layer.host.push_back(RandomFloats(seed + 5, hidden, 0.5));
      for (int side = 0; side < 2; ++side) {
        Backend& backend = side == 0 ? cpu_ : gpu_;
        DeviceArrays* const memory = side == 0 ? cpu_memory : gpu_memory;
        layer.gate_up[side].experts.push_back(PackOn(backend, memory, format, gate_up));
        layer.down[side].experts.push_back(PackOn(backend, memory, format, down));
        layer.gate_up_bias[side].push_back(memory->Put(layer.host[layer.host.size() - 2]));
        layer.down_bias[side].push_back(memory->Put(layer.host.back()));
      }
    }
    return layer;
  }

  void Experts() {
    for (const ExpertFormat format : {ExpertFormat::kMxfp4, ExpertFormat::kBf16}) {
      RunExperts(format, 96, 64, {3, 0, 9, 1});
      RunExperts(format, 64, 96, {0, 70, 0, 2, 130, 1});
      if (quick_) continue;
      RunExperts(format, 2'880, 2'880, {1, 1, 0, 2, 12, 40, 300});
    }
  }

  void RunExperts(ExpertFormat format,
                  int64_t hidden,
                  int64_t intermediate,
                  const std::vector<int32_t>& counts) {
    DeviceArrays cpu_memory(&cpu_);
    DeviceArrays device(&gpu_);
    const auto experts = static_cast<int64_t>(counts.size());
    const Layer layer = MakeLayer(&cpu_memory, &device, format, experts, hidden, intermediate);
    std::vector<int32_t> offsets = {0};
    for (const int32_t count : counts) offsets.push_back(offsets.back() + count);
    const int64_t pairs = offsets.back(), rows = 23;
    std::vector<int32_t> pair_row, pair_out;
    for (int64_t p = 0; p < pairs; ++p) {
      pair_row.push_back(static_cast<int32_t>(RandomBits(19, p) % static_cast<uint64_t>(rows)));
      pair_out.push_back(static_cast<int32_t>(pairs - 1 - p));
    }
    std::vector<Bf16> x = RandomBf16(20, rows * hidden, 1.0);
    std::vector<Bf16> out(static_cast<size_t>(pairs * hidden), kPoison);
    Bf16* const gpu_out = device.Put(out);
    ExpertMlpArgs args{.x = MakeTensor(device.Put(x), DType::kBf16, rows, hidden),
                       .expert_offsets = {device.Put(offsets), offsets.size()},
                       .pair_row = {device.Put(pair_row), pairs},
                       .pair_out = {device.Put(pair_out), pairs},
                       .gate_up = &layer.gate_up[1],
                       .gate_up_bias = layer.gate_up_bias[1],
                       .down = &layer.down[1],
                       .down_bias = layer.down_bias[1],
                       .out = MakeTensor(gpu_out, DType::kBf16, pairs, hidden)};
    gpu_.ExpertMlp(args);
    cpu_.ExpertMlp({.x = View(x, rows, hidden),
                    .expert_offsets = offsets,
                    .pair_row = Index(pair_row),
                    .pair_out = Index(pair_out),
                    .gate_up = &layer.gate_up[0],
                    .gate_up_bias = layer.gate_up_bias[0],
                    .down = &layer.down[0],
                    .down_bias = layer.down_bias[0],
                    .out = View(out, pairs, hidden)});
    const std::string what = std::string(format == ExpertFormat::kMxfp4 ? "mxfp4" : "bf16") +
                             " experts " + std::to_string(hidden) + ", " + std::to_string(pairs) +
                             " pairs";
    const std::vector<Bf16> got = device.Get(gpu_out, out.size());
    CheckNear(got, out, kBf16Near, what);

    // Some pairs alone.
    for (int64_t e = 0; e < experts; ++e) {
      const auto at = static_cast<size_t>(e);
      if (counts[at] == 0) continue;
      for (const int32_t p : {offsets[at], offsets[at + 1] - 1}) {
        std::vector<int32_t> one(offsets.size(), 0);
        for (size_t i = at + 1; i < one.size(); ++i) one[i] = 1;
        Bf16* const alone = device.Put(std::vector<Bf16>(static_cast<size_t>(hidden), kPoison));
        args.expert_offsets = {device.Put(one), one.size()};
        args.pair_row = {device.Put(std::vector<int32_t>{pair_row[static_cast<size_t>(p)]}), 1};
        args.pair_out = {device.Put(std::vector<int32_t>{0}), 1};
        args.out = MakeTensor(alone, DType::kBf16, 1, hidden);
        gpu_.ExpertMlp(args);
        const auto* begin = got.data() + (pairs - 1 - p) * hidden;
        Check(EqualBits(device.Get(alone, static_cast<size_t>(hidden)),
                        std::vector<Bf16>(begin, begin + hidden)),
              what + ": pair " + std::to_string(p) + " has other bits than alone");
      }
    }
  }
};

}  // namespace

int CheckExperts(Backend* cpu, Backend* gpu, bool is_quick) {
  ExpertChecks checks(cpu, gpu, is_quick);
  checks.Run();
  return checks.num_failed();
}

}  // namespace shoal::gpu
