// The formula of spec 8.6 and the MXFP4 values of 8.1.
#include "model/synthetic.h"

#include <algorithm>
#include <bit>
#include <chrono>
#include <cmath>
#include <cstdio>
#include <cstring>
#include <string>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace shoal {
namespace {

using ::testing::ElementsAre;

ModelTensor Find(const ModelConfig& config, TensorKind kind, int layer) {
  for (const ModelTensor& tensor : ModelTensors(config)) {
    if (tensor.kind == kind && tensor.layer == layer) return tensor;
  }
  ADD_FAILURE() << TensorName(kind, layer);
  return {};
}

std::vector<std::byte> Bytes(const ModelTensor& tensor) {
  std::vector<std::byte> bytes(static_cast<size_t>(tensor.bytes()));
  FillSynthetic(tensor, 0, bytes);
  return bytes;
}

std::vector<float> Values(const ModelTensor& tensor) {
  const std::vector<std::byte> bytes = Bytes(tensor);
  std::vector<float> values;
  for (size_t i = 0; i < bytes.size(); i += 2) {
    const uint32_t bits =
        static_cast<uint32_t>(bytes[i]) << 16 | static_cast<uint32_t>(bytes[i + 1]) << 24;
    values.push_back(std::bit_cast<float>(bits));
  }
  return values;
}

std::vector<float> First(const ModelTensor& tensor, size_t count) {
  std::vector<float> values = Values(tensor);
  values.resize(count);
  return values;
}

TEST(SyntheticTest, FirstBytesOfTheSpec) {
  const ModelConfig config = ModelConfig::Tiny();
  const auto embedding = First(Find(config, TensorKind::kEmbedding, -1), 8);
  const auto query = First(Find(config, TensorKind::kQueryWeight, 0), 8);

  // Bytes 228 182 169 229 212 207 88 242 and 85 11 81 164 204 44 74 146.
  EXPECT_THAT(embedding,
              ElementsAre(100 / 64.f,
                          54 / 64.f,
                          41 / 64.f,
                          101 / 64.f,
                          84 / 64.f,
                          79 / 64.f,
                          -40 / 64.f,
                          114 / 64.f));
  EXPECT_THAT(query,
              ElementsAre(-43 / 512.f,
                          -117 / 512.f,
                          -47 / 512.f,
                          36 / 512.f,
                          76 / 512.f,
                          -84 / 512.f,
                          -54 / 512.f,
                          18 / 512.f));
}

TEST(SyntheticTest, EveryKindStaysInItsRange) {
  struct Case {
    TensorKind kind;
    int layer;
    float low, high;
  };

  const Case cases[] = {
      {TensorKind::kSinks, 1, -2.0f, 127 / 64.f},
      {TensorKind::kUnembedding, -1, -0.25f, 127 / 512.f},
      {TensorKind::kRouterWeight, 2, -0.25f, 127 / 512.f},
      {TensorKind::kDownBias, 2, -1.0f, 127 / 128.f},
      {TensorKind::kOutWeight, 3, -0.125f, 127 / 1024.f},
      {TensorKind::kOutBias, 3, -0.5f, 127 / 256.f},
      {TensorKind::kGateUpBias, 3, -4.0f, 127 / 32.f},
      {TensorKind::kFinalNorm, -1, 0.75f, 255 / 256.f},
      {TensorKind::kMlpNorm, 0, 0.75f, 255 / 256.f},
  };
  for (const Case& c : cases) {
    const ModelTensor tensor = Find(ModelConfig::Tiny(), c.kind, c.layer);
    const std::vector<float> values = Values(tensor);
    const auto [low, high] = std::minmax_element(values.begin(), values.end());
    EXPECT_GE(*low, c.low) << tensor.name;
    EXPECT_LE(*high, c.high) << tensor.name;
    if (values.size() > 1000) {
      EXPECT_EQ(*low, c.low) << tensor.name;
      EXPECT_EQ(*high, c.high) << tensor.name;
    }
  }
}

TEST(SyntheticTest, AnyPartIsAPartOfTheWhole) {
  ModelConfig bf16 = ModelConfig::Tiny();
  bf16.storage = ExpertStorage::kBf16;
  std::vector<ModelTensor> tensors = ModelTensors(ModelConfig::Tiny());
  tensors.push_back(Find(bf16, TensorKind::kDownWeight, 1));
  for (const ModelTensor& tensor : tensors) {
    const std::vector<std::byte> whole = Bytes(tensor);
    const size_t begin = whole.size() / 3 / 2 * 2, count = (whole.size() - begin) / 2 / 2 * 2;
    std::vector<std::byte> part(count);
    FillSynthetic(tensor, static_cast<int64_t>(begin), part);
    EXPECT_EQ(std::memcmp(part.data(), whole.data() + begin, count), 0) << tensor.name;
  }
}

// What a device makes, element by element, is what the host's loops make.
TEST(SyntheticTest, TheFormulaAlonePerElementGivesTheSameBits) {
  for (const ModelTensor& tensor : ModelTensors(ModelConfig::Tiny())) {
    const SyntheticFormula formula = FormulaOf(tensor);
    const std::vector<std::byte> whole = Bytes(tensor);
    for (int64_t i = 0; i < tensor.num_elements(); ++i) {
      const uint8_t b = SyntheticByte(formula.seed, i);
      if (tensor.type == StoredType::kU8) {
        ASSERT_EQ(std::byte{SyntheticU8(formula, b)}, whole[static_cast<size_t>(i)]) << tensor.name;
      } else {
        Bf16 stored;
        std::memcpy(&stored, whole.data() + 2 * i, sizeof(stored));
        ASSERT_EQ(SyntheticFloat(formula, b), ToFloat(stored)) << tensor.name << " " << i;
      }
    }
  }
}

// Independent of the fill loops: dequantises by the definition of spec 3.1, in double.
TEST(SyntheticTest, Bf16ExpertsAreTheDequantisedTranspose) {
  constexpr double kE2m1[16] = {0, .5, 1, 1.5, 2, 3, 4, 6, -0., -.5, -1, -1.5, -2, -3, -4, -6};
  const ModelConfig mxfp4 = ModelConfig::Tiny();
  ModelConfig bf16 = mxfp4;
  bf16.storage = ExpertStorage::kBf16;

  struct Case {
    TensorKind codes, scales, weight;
  };

  for (const Case& c :
       {Case{TensorKind::kGateUpCodes, TensorKind::kGateUpScales, TensorKind::kGateUpWeight},
        Case{TensorKind::kDownCodes, TensorKind::kDownScales, TensorKind::kDownWeight}}) {
    const ModelTensor codes = Find(mxfp4, c.codes, 2);
    const std::vector<std::byte> code_bytes = Bytes(codes),
                                 scales = Bytes(Find(mxfp4, c.scales, 2));
    const std::vector<float> weight = Values(Find(bf16, c.weight, 2));
    const int64_t rows = codes.shape[1], in = codes.shape[2] * 32;
    for (int64_t e = 0; e < codes.shape[0]; ++e) {
      for (int64_t r = 0; r < rows; ++r) {
        for (int64_t k = 0; k < in; ++k) {
          const int64_t group = (e * rows + r) * (in / 32) + k / 32;
          const int pair =
              static_cast<int>(code_bytes[static_cast<size_t>(group * 16 + k % 32 / 2)]);
          const double value =
              std::ldexp(kE2m1[k % 2 == 0 ? pair & 15 : pair >> 4],
                         static_cast<int>(scales[static_cast<size_t>(group)]) - 127);
          const float stored = weight[static_cast<size_t>((e * in + k) * rows + r)];
          ASSERT_EQ(stored, value) << e << " " << r << " " << k;
          ASSERT_EQ(std::signbit(stored), std::signbit(value));
        }
      }
    }
  }
}

// A 20b is made in memory by `--load-format dummy`: 12 GB of codes must take seconds.
TEST(SyntheticTest, PrintsItsSpeed) {
  const ModelTensor codes = Find(ModelConfig::GptOss20b(), TensorKind::kGateUpCodes, 0);
  std::vector<std::byte> bytes(size_t{32} << 20);
  const auto start = std::chrono::steady_clock::now();
  FillSynthetic(codes, 0, bytes);
  const std::chrono::duration<double> took = std::chrono::steady_clock::now() - start;
  std::printf("FillSynthetic: %.2f GB/s of MXFP4 codes\n",
              static_cast<double>(bytes.size()) / took.count() / 1e9);
  EXPECT_NE(bytes.back(), std::byte{0xAB});
}

}  // namespace
}  // namespace shoal
