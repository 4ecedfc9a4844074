// CpuBackend::ExpertMlp: against double arithmetic from the checkpoint's own bytes over awkward
// shapes and routes, every backend against the scalar one bit for bit, pairs against themselves
// alone.
#include <algorithm>
#include <cmath>
#include <limits>
#include <string>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"

#include "kernels/cpu/backend.h"
#include "tests/kernels/arrays.h"

namespace shoal {
namespace {

constexpr double kE2m1[16] = {0, 0.5, 1, 1.5, 2, 3, 4, 6, -0.0, -0.5, -1, -1.5, -2, -3, -4, -6};

// One expert's projection as the checkpoint has it.
struct Projection {
  int64_t out;
  int64_t in;
  std::vector<std::byte> codes;
  std::vector<uint8_t> scales;  // Empty: `codes` is bf16, [in, out].

  double Weight(int64_t o, int64_t i) const {
    if (scales.empty()) {
      const auto* values = reinterpret_cast<const Bf16*>(codes.data());
      return static_cast<double>(ToFloat(values[i * out + o]));
    }
    const auto byte = std::to_integer<uint32_t>(codes[static_cast<size_t>((o * in + i) / 2)]);
    const uint32_t code = i % 2 == 0 ? byte & 15u : byte >> 4;
    return std::ldexp(kE2m1[code], scales[static_cast<size_t>((o * in + i) / 32)] - 127);
  }
};

Projection RandomProjection(ExpertFormat format, uint64_t seed, int64_t out, int64_t in) {
  Projection projection = {.out = out, .in = in, .codes = {}, .scales = {}};
  if (format == ExpertFormat::kBf16) {
    const std::vector<Bf16> values = RandomBf16(seed, in * out, 0.2);
    const auto* bytes = reinterpret_cast<const std::byte*>(values.data());
    projection.codes.assign(bytes, bytes + values.size() * sizeof(Bf16));
    return projection;
  }
  for (int64_t i = 0; i < out * in / 2; ++i) {
    projection.codes.push_back(static_cast<std::byte>(RandomBits(seed, i)));
  }
  for (int64_t i = 0; i < out * in / 32; ++i) {
    projection.scales.push_back(static_cast<uint8_t>(121 + RandomBits(seed + 1, i) % 5));
  }
  return projection;
}

// Experts of a layer and the bytes that one backend packed them into.
struct Layer {
  ExpertFormat format;
  int64_t hidden;
  int64_t intermediate;
  std::vector<Projection> gate_up;
  std::vector<Projection> down;
  std::vector<std::vector<float>> gate_up_bias;
  std::vector<std::vector<float>> down_bias;

  Layer(ExpertFormat f, int64_t num_experts, int64_t h, int64_t i)
      : format(f), hidden(h), intermediate(i) {
    for (int64_t e = 0; e < num_experts; ++e) {
      const auto seed = static_cast<uint64_t>(100 * e + 1);
      gate_up.push_back(RandomProjection(format, seed, 2 * intermediate, hidden));
      down.push_back(RandomProjection(format, seed + 10, hidden, intermediate));
      gate_up_bias.push_back(RandomFloats(seed + 20, 2 * intermediate, 0.5));
      down_bias.push_back(RandomFloats(seed + 30, hidden, 0.5));
    }
  }
};

// Pairs in the order that ExpertMlp wants.
struct Route {
  std::vector<int32_t> offsets;
  std::vector<int32_t> rows;
  std::vector<int32_t> outs;
};

std::vector<Bf16> RunMlp(
    Backend& backend, const Layer& layer, std::vector<Bf16>& x, int64_t rows, const Route& route) {
  std::vector<std::vector<std::byte>> memory;
  const auto pack = [&](const std::vector<Projection>& projections) {
    PackedMatrix matrix = {
        .format = layer.format, .out = projections[0].out, .in = projections[0].in, .experts = {}};
    for (const Projection& p : projections) {
      memory.emplace_back(static_cast<size_t>(backend.PackedBytes(layer.format, p.out, p.in)));
      backend.Repack({.format = layer.format,
                      .out = p.out,
                      .in = p.in,
                      .codes = p.codes.data(),
                      .scales = p.scales.data(),
                      .packed = memory.back().data()});
      matrix.experts.push_back(memory.back().data());
    }
    return matrix;
  };
  const PackedMatrix gate_up = pack(layer.gate_up);
  const PackedMatrix down = pack(layer.down);
  std::vector<const float*> gate_up_bias;
  std::vector<const float*> down_bias;
  for (const std::vector<float>& bias : layer.gate_up_bias) gate_up_bias.push_back(bias.data());
  for (const std::vector<float>& bias : layer.down_bias) down_bias.push_back(bias.data());

  const auto pairs = static_cast<int64_t>(route.rows.size());
  std::vector<Bf16> out(static_cast<size_t>(pairs * layer.hidden), Bf16{0x7fc1});
  backend.ExpertMlp({.x = View(x, rows, layer.hidden),
                     .expert_offsets = route.offsets,
                     .pair_row = Index(route.rows),
                     .pair_out = Index(route.outs),
                     .gate_up = &gate_up,
                     .gate_up_bias = gate_up_bias,
                     .down = &down,
                     .down_bias = down_bias,
                     .out = View(out, pairs, layer.hidden)});
  return out;
}

// counts[e] pairs for expert e; rows and places at random.
Route RandomRoute(const std::vector<int32_t>& counts, int64_t rows) {
  Route route;
  route.offsets.push_back(0);
  for (const int32_t count : counts) route.offsets.push_back(route.offsets.back() + count);
  const int32_t pairs = route.offsets.back();
  for (int32_t i = 0; i < pairs; ++i) {
    route.rows.push_back(static_cast<int32_t>(RandomBits(5, i) % static_cast<uint64_t>(rows)));
    route.outs.push_back(i);
  }
  for (int32_t i = pairs - 1; i > 0; --i) {
    std::swap(route.outs[static_cast<size_t>(i)],
              route.outs[RandomBits(6, i) % static_cast<uint64_t>(i + 1)]);
  }
  return route;
}

std::vector<double> ExpertInDouble(const Layer& layer, size_t expert, const Bf16* x) {
  std::vector<double> u(static_cast<size_t>(2 * layer.intermediate));
  for (size_t o = 0; o < u.size(); ++o) {
    u[o] = static_cast<double>(layer.gate_up_bias[expert][o]);
    for (int64_t k = 0; k < layer.hidden; ++k) {
      u[o] += layer.gate_up[expert].Weight(static_cast<int64_t>(o), k) *
              static_cast<double>(ToFloat(x[k]));
    }
  }
  std::vector<double> h(u.size() / 2);
  for (size_t j = 0; j < h.size(); ++j) {
    const double a = std::min(u[2 * j], 7.0);
    const double b = std::clamp(u[2 * j + 1], -7.0, 7.0);
    h[j] = a / (1.0 + std::exp(-1.702 * a)) * (b + 1.0);
  }
  std::vector<double> y(static_cast<size_t>(layer.hidden));
  for (size_t o = 0; o < y.size(); ++o) {
    y[o] = static_cast<double>(layer.down_bias[expert][o]);
    for (size_t k = 0; k < h.size(); ++k) {
      y[o] += layer.down[expert].Weight(static_cast<int64_t>(o), static_cast<int64_t>(k)) * h[k];
    }
  }
  return y;
}

struct Case {
  std::string name;
  ExpertFormat format;
  int64_t hidden;
  int64_t intermediate;
  int64_t rows;
  std::vector<int32_t> counts;
};

const std::vector<Case>& Cases() {
  constexpr ExpertFormat kMx = ExpertFormat::kMxfp4;
  constexpr ExpertFormat kBf = ExpertFormat::kBf16;
  static const std::vector<Case> cases = {
      {"no pairs", kMx, 96, 32, 3, {0, 0}},
      {"one pair, odd numbers of blocks", kMx, 96, 160, 1, {0, 1, 0}},
      {"experts without pairs", kMx, 64, 96, 7, {0, 3, 0, 4, 0}},
      {"all pairs with one expert", kMx, 160, 64, 65, {0, 65, 0}},
      {"more than a panel", kMx, 32, 32, 17, {130}},
      {"sixteen and seventeen", kMx, 224, 96, 16, {16, 17, 64}},
      {"bf16, one pair", kBf, 96, 160, 1, {0, 1}},
      {"bf16, narrow widths", kBf, 40, 23, 7, {0, 7, 1}},
      {"bf16, more than a panel", kBf, 64, 48, 16, {65, 2}},
  };
  return cases;
}

TEST(ExpertMlpTest, AgreesWithDoubleArithmeticAndAcrossInstructionSets) {
  for (const Case& c : Cases()) {
    const Layer layer(c.format, static_cast<int64_t>(c.counts.size()), c.hidden, c.intermediate);
    std::vector<Bf16> x = RandomBf16(9, c.rows * c.hidden, 1.0);
    const Route route = RandomRoute(c.counts, c.rows);
    std::vector<Bf16> first;
    for (const NamedBackend& b : AllBackends()) {
      const std::vector<Bf16> out = RunMlp(*b.backend, layer, x, c.rows, route);
      if (first.empty()) first = out;
      EXPECT_EQ(out, first) << c.name << ": " << b.name;
    }
    for (size_t e = 0; e < c.counts.size(); ++e) {
      for (int32_t i = route.offsets[e]; i < route.offsets[e + 1]; ++i) {
        const auto pair = static_cast<size_t>(i);
        const std::vector<double> exact =
            ExpertInDouble(layer, e, x.data() + route.rows[pair] * c.hidden);
        const Bf16* got = first.data() + route.outs[pair] * c.hidden;
        double error = 0;
        double norm = 0;
        for (size_t o = 0; o < exact.size(); ++o) {
          error += std::pow(static_cast<double>(ToFloat(got[o])) - exact[o], 2);
          norm += exact[o] * exact[o];
        }
        // h and the output are bf16: relative errors of 2^-9 and a little, at random.
        ASSERT_LT(std::sqrt(error / norm), 0x1p-8) << c.name << ", pair " << i;
      }
    }
  }
}

TEST(ExpertMlpTest, APairHasTheBitsItHasAlone) {
  for (const ExpertFormat format : {ExpertFormat::kMxfp4, ExpertFormat::kBf16}) {
    const Layer layer(format, 2, 96, 64);
    std::vector<Bf16> x = RandomBf16(10, 20 * 96, 1.0);
    const Route route = RandomRoute({9, 70}, 20);
    for (const NamedBackend& b : AllBackends()) {
      const std::vector<Bf16> together = RunMlp(*b.backend, layer, x, 20, route);
      for (size_t i = 0; i < route.rows.size(); i += 13) {
        const bool is_second = static_cast<int32_t>(i) >= route.offsets[1];
        const Route one = {
            .offsets = {0, is_second ? 0 : 1, 1}, .rows = {route.rows[i]}, .outs = {0}};
        const std::vector<Bf16> alone = RunMlp(*b.backend, layer, x, 20, one);
        const auto begin = together.begin() + route.outs[i] * 96;
        EXPECT_EQ(alone, std::vector<Bf16>(begin, begin + 96)) << b.name << ", pair " << i;
      }
    }
  }
}

TEST(ExpertMlpTest, ARowThatNoPairNamesMayHoldAnything) {
  const Layer layer(ExpertFormat::kMxfp4, 1, 64, 32);
  std::vector<Bf16> x = RandomBf16(11, 3 * 64, 1.0);
  const Route route = {.offsets = {0, 2}, .rows = {0, 2}, .outs = {1, 0}};
  for (const NamedBackend& b : AllBackends()) {
    const std::vector<Bf16> expected = RunMlp(*b.backend, layer, x, 3, route);
    std::vector<Bf16> with_nan = x;
    std::fill(with_nan.begin() + 64, with_nan.begin() + 128, Bf16{0x7fc0});
    EXPECT_EQ(RunMlp(*b.backend, layer, with_nan, 3, route), expected) << b.name;
  }
}

TEST(ExpertMlpTest, ANonFiniteActivationMakesItsPairNanAndNoOther) {
  for (const ExpertFormat format : {ExpertFormat::kMxfp4, ExpertFormat::kBf16}) {
    const Layer layer(format, 1, 64, 32);
    std::vector<Bf16> x = RandomBf16(12, 2 * 64, 1.0);
    x[70] = {0x7fc0};
    const Route route = {.offsets = {0, 2}, .rows = {0, 1}, .outs = {0, 1}};
    for (const NamedBackend& b : AllBackends()) {
      const std::vector<Bf16> out = RunMlp(*b.backend, layer, x, 2, route);
      for (size_t i = 0; i < out.size(); ++i) {
        EXPECT_EQ(std::isnan(ToFloat(out[i])), i >= 64) << b.name << ", element " << i;
      }
    }
  }
}

}  // namespace
}  // namespace shoal
