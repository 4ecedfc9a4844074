// BF16 experts that hold MXFP4 values, packed again.
#include "worker/load/mxfp4.h"

#include <cmath>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"

#include "base/prng.h"
#include "kernels/numeric.h"
#include "model/config.h"
#include "model/synthetic.h"
#include "model/tensors.h"

namespace shoal {
namespace {

constexpr int64_t kIn = 96;
constexpr int64_t kOut = 64;

// What a code and a scale stand for, [in, out].
std::vector<uint16_t> Unpack(const Mxfp4Matrix& matrix, int64_t in, int64_t out) {
  std::vector<uint16_t> weight(static_cast<size_t>(in * out));
  for (int64_t o = 0; o < out; ++o) {
    for (int64_t i = 0; i < in; ++i) {
      const auto byte =
          std::to_integer<uint32_t>(matrix.codes[static_cast<size_t>((o * in + i) / 2)]);
      const uint32_t code = i % 2 == 0 ? byte & 15 : byte >> 4;
      const float scale = FromE8m0(matrix.scales[static_cast<size_t>((o * in + i) / 32)]);
      weight[static_cast<size_t>(i * out + o)] =
          ToBf16(0.5f * static_cast<float>(DoubledE2m1(code)) * scale).bits;
    }
  }
  return weight;
}

// Weights that differ at most in the sign of zeros, which no product shows.
void ExpectSameValues(const std::vector<uint16_t>& a, const std::vector<uint16_t>& b) {
  ASSERT_EQ(a.size(), b.size());
  for (size_t i = 0; i < a.size(); ++i) {
    ASSERT_EQ(ToFloat(Bf16{a[i]}), ToFloat(Bf16{b[i]})) << i;
  }
}

Mxfp4Matrix RandomMatrix(uint64_t seed, int first_scale, int num_scales) {
  Prng prng(seed);
  Mxfp4Matrix matrix;
  for (int64_t i = 0; i < kIn * kOut / 2; ++i) {
    matrix.codes.push_back(static_cast<std::byte>(prng.Below(256)));
  }
  for (int64_t i = 0; i < kIn * kOut / 32; ++i) {
    const auto above = static_cast<int>(prng.Below(static_cast<uint64_t>(num_scales)));
    matrix.scales.push_back(static_cast<uint8_t>(first_scale + above));
  }
  return matrix;
}

TEST(PackMxfp4Test, GivesBackEveryMatrix) {
  struct Case {
    int first_scale, num_scales;
  };

  // The released scales, the smallest without subnormal values, the largest without infinities.
  for (const Case c : {Case{110, 20}, Case{2, 4}, Case{249, 4}}) {
    const std::vector<uint16_t> weight =
        Unpack(RandomMatrix(7, c.first_scale, c.num_scales), kIn, kOut);
    Mxfp4Matrix packed;

    ASSERT_FALSE(PackMxfp4(weight, kIn, kOut, &packed).has_value()) << c.first_scale;

    EXPECT_TRUE(LooksLikeMxfp4(weight));
    ExpectSameValues(Unpack(packed, kIn, kOut), weight);
  }
}

TEST(PackMxfp4Test, GivesBackTheCodesOfASyntheticReSave) {
  ModelConfig mxfp4 = ModelConfig::Tiny(), bf16 = mxfp4;
  bf16.storage = ExpertStorage::kBf16;
  const auto read = [](const ModelConfig& config, TensorKind kind, auto* bytes) {
    for (const ModelTensor& tensor : ModelTensors(config)) {
      if (tensor.kind != kind || tensor.layer != 1) continue;
      bytes->resize(static_cast<size_t>(tensor.bytes_per_expert()) / sizeof((*bytes)[0]));
      FillSynthetic(
          tensor, 3 * tensor.bytes_per_expert(), std::as_writable_bytes(std::span(*bytes)));
    }
  };
  Mxfp4Matrix stored, packed;
  std::vector<uint16_t> weight;
  read(mxfp4, TensorKind::kDownCodes, &stored.codes);
  read(mxfp4, TensorKind::kDownScales, &stored.scales);
  read(bf16, TensorKind::kDownWeight, &weight);

  ASSERT_FALSE(PackMxfp4(weight, 96, 64, &packed).has_value());

  ExpectSameValues(Unpack(packed, 96, 64), Unpack(stored, 96, 64));
}

// A block of zeros with one or two values.
struct Oddity {
  const char* what;
  float first, second;
  bool fits;
};

class PackOddityTest : public testing::TestWithParam<Oddity> {};

TEST_P(PackOddityTest, IsPackedExactlyOrRefusedWithItsPlace) {
  std::vector<uint16_t> weight(static_cast<size_t>(kIn * kOut), 0);
  weight[static_cast<size_t>(70 * kOut + 41)] = ToBf16(GetParam().first).bits;
  weight[static_cast<size_t>(90 * kOut + 41)] = ToBf16(GetParam().second).bits;
  Mxfp4Matrix packed;

  const std::optional<MatrixPlace> bad = PackMxfp4(weight, kIn, kOut, &packed);

  EXPECT_EQ(!bad.has_value(), GetParam().fits);
  if (bad.has_value()) {
    EXPECT_EQ(bad->in, 64);
    EXPECT_EQ(bad->out, 41);
  } else {
    ExpectSameValues(Unpack(packed, kIn, kOut), weight);
  }
}

INSTANTIATE_TEST_SUITE_P(
    ,
    PackOddityTest,
    testing::Values(Oddity{"all zero", 0.0f, 0.0f, true},
                    Oddity{"minus zero", -0.0f, 1.0f, true},
                    Oddity{"the whole range", 6.0f, -0.5f, true},
                    Oddity{"four octaves", 4.0f, 0.5f, true},
                    Oddity{"a step more", 8.0f, 0.5f, false},
                    Oddity{"0.75 under 6 is between codes", 6.0f, 0.75f, false},
                    Oddity{"0.75 alone is a 3 of its scale", 1.5f, 0.75f, true},
                    Oddity{"a third bit", 1.25f, 0.0f, false},
                    Oddity{"smallest normal number", 0x1p-126f, 0x1.8p-126f, true},
                    Oddity{"subnormal", 0x1p-127f, 0.0f, false},
                    Oddity{"largest", 0x1.8p127f, 0x1p127f, true},
                    Oddity{"infinite", std::numeric_limits<float>::infinity(), 0.0f, false},
                    Oddity{"not a number", std::nanf(""), 0.0f, false}));

TEST(LooksLikeMxfp4Test, TrainedWeightsDoNot) {
  Prng prng(3);
  std::vector<uint16_t> weight;
  for (int i = 0; i < 32; ++i) {
    const double value = (prng.Chance(50) ? 1.0 : -1.0) * static_cast<double>(prng.Below(1 << 20));
    weight.push_back(ToBf16(static_cast<float>(value * 0x1p-26)).bits);
  }

  EXPECT_FALSE(LooksLikeMxfp4(weight));
  EXPECT_TRUE(LooksLikeMxfp4(std::vector<uint16_t>(32, 0)));
}

}  // namespace
}  // namespace shoal
