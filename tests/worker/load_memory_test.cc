// Dense segment and expert set, from the formula: no files. What is in memory is compared with
// FillSynthetic, tensor by tensor.
#include <fcntl.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#include <bit>
#include <cstring>
#include <numeric>
#include <string>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"

#include "model/synthetic.h"
#include "model/tensors.h"
#include "tests/worker/device_fake_backend.h"
#include "tests/worker/load_fake_backend.h"
#include "worker/load/device_dense.h"
#include "worker/load/loader.h"

namespace shoal {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;

ModelTensor Find(const ModelConfig& config, TensorKind kind, int layer) {
  for (const ModelTensor& tensor : ModelTensors(config)) {
    if (tensor.kind == kind && tensor.layer == layer) return tensor;
  }
  ADD_FAILURE() << TensorName(kind, layer);
  return {};
}

std::vector<std::byte> Stored(const ModelConfig& config, TensorKind kind, int layer) {
  const ModelTensor tensor = Find(config, kind, layer);
  std::vector<std::byte> bytes(static_cast<size_t>(tensor.bytes()));
  FillSynthetic(tensor, 0, bytes);
  return bytes;
}

std::vector<float> Widened(const ModelConfig& config, TensorKind kind, int layer) {
  const std::vector<std::byte> bytes = Stored(config, kind, layer);
  std::vector<float> values;
  for (size_t i = 0; i < bytes.size(); i += 2) {
    values.push_back(std::bit_cast<float>(static_cast<uint32_t>(bytes[i]) << 16 |
                                          static_cast<uint32_t>(bytes[i + 1]) << 24));
  }
  return values;
}

bool HasBytes(const TensorView& view, int64_t first_row, const std::vector<std::byte>& bytes) {
  return view.dtype == DType::kBf16 && view.stride == view.cols &&
         first_row * view.cols * 2 + std::ssize(bytes) <= view.rows * view.cols * 2 &&
         std::memcmp(view.row<uint16_t>(first_row), bytes.data(), bytes.size()) == 0;
}

bool HasValues(const float* data, const std::vector<float>& values) {
  return std::memcmp(data, values.data(), values.size() * sizeof(float)) == 0;
}

// The name of the first weight that is not what the formula says; empty: all are.
std::string FirstDifference(const DenseWeights& weights, const ModelConfig& c) {
  if (!HasBytes(weights.embedding, 0, Stored(c, TensorKind::kEmbedding, -1))) return "embedding";
  if (!HasBytes(weights.unembedding, 0, Stored(c, TensorKind::kUnembedding, -1)))
    return "unembedding";
  if (!HasValues(weights.final_norm, Widened(c, TensorKind::kFinalNorm, -1))) return "final_norm";
  const int q = c.num_heads * c.head_dim, kv = c.num_kv_heads * c.head_dim;
  for (int l = 0; l < c.num_layers; ++l) {
    const DenseLayer& layer = weights.layers[static_cast<size_t>(l)];
    if (!HasValues(layer.attention_norm, Widened(c, TensorKind::kAttentionNorm, l))) return "norm";
    if (layer.qkv.rows != c.qkv_rows() || layer.qkv.cols != c.hidden) return "qkv shape";
    if (!HasBytes(layer.qkv, 0, Stored(c, TensorKind::kQueryWeight, l))) return "q";
    if (!HasBytes(layer.qkv, q, Stored(c, TensorKind::kKeyWeight, l))) return "k";
    if (!HasBytes(layer.qkv, q + kv, Stored(c, TensorKind::kValueWeight, l))) return "v";
    if (!HasValues(layer.qkv_bias, Widened(c, TensorKind::kQueryBias, l))) return "q bias";
    if (!HasValues(layer.qkv_bias + q, Widened(c, TensorKind::kKeyBias, l))) return "k bias";
    if (!HasValues(layer.qkv_bias + q + kv, Widened(c, TensorKind::kValueBias, l))) return "v bias";
    if (!HasValues(layer.sinks, Widened(c, TensorKind::kSinks, l))) return "sinks";
    if (!HasBytes(layer.out, 0, Stored(c, TensorKind::kOutWeight, l))) return "out";
    if (!HasValues(layer.out_bias, Widened(c, TensorKind::kOutBias, l))) return "out bias";
    if (!HasValues(layer.mlp_norm, Widened(c, TensorKind::kMlpNorm, l))) return "mlp norm";
    if (!HasBytes(layer.router, 0, Stored(c, TensorKind::kRouterWeight, l))) return "router";
    if (!HasValues(layer.router_bias, Widened(c, TensorKind::kRouterBias, l))) return "router bias";
  }
  return "";
}

bool IsAligned(const void* data) {
  return reinterpret_cast<uintptr_t>(data) % 64 == 0;
}

TEST(DenseSegmentTest, HoldsEveryDenseTensorAligned) {
  const ModelConfig config = ModelConfig::Tiny();
  int64_t last_done = 0, total = 0;

  const auto segment =
      DenseSegment::Load(*MakeSyntheticSource(config), [&](int64_t done, int64_t all) {
        last_done = done;
        total = all;
        return true;
      });

  ASSERT_TRUE(segment.ok()) << segment.status();
  EXPECT_EQ(FirstDifference((*segment)->weights(), config), "");
  EXPECT_EQ((*segment)->bytes(), DenseSegmentBytes(config));
  EXPECT_EQ(last_done, total);
  EXPECT_GT(total, 0);
  for (const DenseLayer& layer : (*segment)->weights().layers) {
    EXPECT_TRUE(IsAligned(layer.qkv.data) && IsAligned(layer.out.data) &&
                IsAligned(layer.router.data) && IsAligned(layer.sinks));
  }
}

TEST(DenseSegmentTest, AnotherProcessMapsTheSameWeights) {
  const ModelConfig config = ModelConfig::Tiny();
  const auto segment = DenseSegment::Load(*MakeSyntheticSource(config), nullptr);
  ASSERT_TRUE(segment.ok()) << segment.status();

  const pid_t child = fork();
  if (child == 0) {
    const auto mapped = DenseSegment::Map((*segment)->fd(), config);
    const bool same = mapped.ok() && FirstDifference((*mapped)->weights(), config).empty() &&
                      (*mapped)->weights().embedding.data != (*segment)->weights().embedding.data;
    _exit(same ? 0 : 1);
  }
  int status = -1;
  ASSERT_EQ(waitpid(child, &status, 0), child);

  EXPECT_TRUE(WIFEXITED(status) && WEXITSTATUS(status) == 0);
}

TEST(DenseSegmentTest, NobodyCanWriteToIt) {
  const auto segment = DenseSegment::Load(*MakeSyntheticSource(ModelConfig::Tiny()), nullptr);
  ASSERT_TRUE(segment.ok()) << segment.status();

  EXPECT_EQ(mmap(nullptr, 4096, PROT_READ | PROT_WRITE, MAP_SHARED, (*segment)->fd(), 0),
            MAP_FAILED);
  EXPECT_EQ(pwrite((*segment)->fd(), "x", 1, 5000), -1);
  EXPECT_NE(ftruncate((*segment)->fd(), 0), 0);
}

TEST(DenseSegmentTest, RefusesTheSegmentOfAnotherModel) {
  const auto segment = DenseSegment::Load(*MakeSyntheticSource(ModelConfig::Tiny()), nullptr);
  ASSERT_TRUE(segment.ok()) << segment.status();
  ModelConfig larger = ModelConfig::Tiny();
  larger.vocab = 256;
  ModelConfig reshaped = ModelConfig::Tiny();  // As many bytes, other shapes
  std::swap(reshaped.num_heads, reshaped.head_dim);
  std::swap(reshaped.num_experts, reshaped.experts_per_token);

  const auto by_size = DenseSegment::Map((*segment)->fd(), larger);
  const auto by_header = DenseSegment::Map((*segment)->fd(), reshaped);

  EXPECT_EQ(by_size.status().code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_THAT(std::string(by_size.status().message()), HasSubstr("this model's have"));
  EXPECT_EQ(by_header.status().code(), absl::StatusCode::kFailedPrecondition);
}

TEST(DenseSegmentTest, RefusesWhatIsNotSealed) {
  const ModelConfig config = ModelConfig::Tiny();
  const int fd = memfd_create("unsealed", MFD_ALLOW_SEALING);
  ASSERT_EQ(ftruncate(fd, DenseSegmentBytes(config)), 0);

  const auto mapped = DenseSegment::Map(fd, config);

  EXPECT_THAT(std::string(mapped.status().message()), HasSubstr("not a sealed segment"));
  close(fd);
  EXPECT_FALSE(DenseSegment::Map(-1, config).ok());
}

TEST(DenseSegmentTest, ProgressCanCancel) {
  const auto segment = DenseSegment::Load(*MakeSyntheticSource(ModelConfig::Tiny()),
                                          [](int64_t, int64_t) { return false; });

  EXPECT_EQ(segment.status().code(), absl::StatusCode::kCancelled);
}

std::vector<ExpertId> Ids(std::initializer_list<int32_t> values) {
  std::vector<ExpertId> ids;
  for (const int32_t value : values) ids.push_back(ExpertId{value});
  return ids;
}

std::vector<std::byte> OfExpert(const ModelConfig& config, TensorKind kind, int layer, int expert) {
  const ModelTensor tensor = Find(config, kind, layer);
  std::vector<std::byte> bytes(static_cast<size_t>(tensor.bytes_per_expert()));
  FillSynthetic(tensor, expert * tensor.bytes_per_expert(), bytes);
  return bytes;
}

std::string FirstDifference(const ExpertSet& set, const ModelConfig& c) {
  const bool is_mxfp4 = c.storage == ExpertStorage::kMxfp4;
  for (int l = 0; l < c.num_layers; ++l) {
    const ExpertLayer& layer = set.layers()[static_cast<size_t>(l)];
    for (size_t i = 0; i < set.experts().size(); ++i) {
      const int e = set.experts()[i].value;
      for (const bool is_up : {true, false}) {
        const PackedMatrix& matrix = is_up ? layer.gate_up : layer.down;
        std::vector<std::byte> expected =
            OfExpert(c,
                     is_mxfp4 ? (is_up ? TensorKind::kGateUpCodes : TensorKind::kDownCodes)
                              : (is_up ? TensorKind::kGateUpWeight : TensorKind::kDownWeight),
                     l,
                     e);
        if (is_mxfp4) {
          const auto scales =
              OfExpert(c, is_up ? TensorKind::kGateUpScales : TensorKind::kDownScales, l, e);
          expected.insert(expected.end(), scales.begin(), scales.end());
        }
        if (!IsAligned(matrix.experts[i])) return "alignment";
        if (std::memcmp(matrix.experts[i], expected.data(), expected.size()) != 0)
          return "matrix " + std::to_string(l) + " " + std::to_string(e);
        const std::vector<float> all =
            Widened(c, is_up ? TensorKind::kGateUpBias : TensorKind::kDownBias, l);
        const float* bias = is_up ? layer.gate_up_bias[i] : layer.down_bias[i];
        if (std::memcmp(bias, all.data() + e * matrix.out, static_cast<size_t>(matrix.out) * 4) !=
            0)
          return "bias " + std::to_string(l) + " " + std::to_string(e);
      }
    }
  }
  return "";
}

TEST(ExpertSetTest, HoldsWhatItIsToldInBothFormats) {
  for (const ExpertStorage storage : {ExpertStorage::kMxfp4, ExpertStorage::kBf16}) {
    ModelConfig config = ModelConfig::Tiny();
    config.storage = storage;
    const auto source = MakeSyntheticSource(config);
    LoadFakeBackend backend;
    const auto set = ExpertSet::Create(source.get(), &backend);

    ASSERT_TRUE(set->Hold(Ids({1, 4, 7}), nullptr).ok());

    EXPECT_EQ(FirstDifference(*set, config), "");
    EXPECT_THAT(set->local_index(), ElementsAre(-1, 0, -1, -1, 1, -1, -1, 2));
    EXPECT_EQ(set->resident_bytes(), 3 * ExpertResidentBytes(config, backend));
    EXPECT_EQ(set->resident_bytes(), backend.allocated_bytes());
    EXPECT_EQ(set->layers()[0].gate_up.out, 192);
    EXPECT_EQ(set->layers()[0].down.in, 96);
    EXPECT_EQ(set->odd_scales(), 0);
  }
}

TEST(ExpertSetTest, LoadsOnlyWhatIsMissing) {
  const ModelConfig config = ModelConfig::Tiny();
  const auto source = MakeSyntheticSource(config);
  LoadFakeBackend backend;
  const auto set = ExpertSet::Create(source.get(), &backend);
  int64_t total = 0;
  const LoadProgress progress = [&](int64_t, int64_t all) {
    total = all;
    return true;
  };
  ASSERT_TRUE(set->Hold(Ids({0, 1, 2, 3}), progress).ok());
  const int64_t four = total;
  const std::byte* kept = set->layers()[0].gate_up.experts[2];

  ASSERT_TRUE(set->Hold(Ids({2, 3, 6}), progress).ok());

  EXPECT_EQ(total, four / 4);
  EXPECT_EQ(set->layers()[0].gate_up.experts[0], kept);
  EXPECT_EQ(FirstDifference(*set, config), "");
  EXPECT_EQ(backend.allocated_bytes(), 3 * ExpertResidentBytes(config, backend));

  ASSERT_TRUE(set->Hold({}, progress).ok());
  EXPECT_EQ(backend.allocated_bytes(), 0);
}

TEST(ExpertSetTest, ChangesNothingWhenMemoryEnds) {
  const ModelConfig config = ModelConfig::Tiny();
  const auto source = MakeSyntheticSource(config);
  const int64_t each = ExpertResidentBytes(config, LoadFakeBackend());
  LoadFakeBackend backend(3 * each + each / 2);
  const auto set = ExpertSet::Create(source.get(), &backend);
  ASSERT_TRUE(set->Hold(Ids({0, 5}), nullptr).ok());

  const absl::Status status = set->Hold(Ids({0, 1, 2, 5}), nullptr);

  EXPECT_EQ(status.code(), absl::StatusCode::kResourceExhausted);
  EXPECT_THAT(std::string(status.message()), HasSubstr(std::to_string(each) + " bytes"));
  EXPECT_THAT(set->experts(), ElementsAre(ExpertId{0}, ExpertId{5}));
  EXPECT_EQ(backend.allocated_bytes(), 2 * each);
  EXPECT_EQ(FirstDifference(*set, config), "");
}

TEST(ExpertSetTest, ProgressCanCancelAndChangesNothing) {
  const ModelConfig config = ModelConfig::Tiny();
  const auto source = MakeSyntheticSource(config);
  LoadFakeBackend backend;
  const auto set = ExpertSet::Create(source.get(), &backend);
  int calls = 0;

  const absl::Status status = set->Hold(Ids({0, 1}), [&](int64_t, int64_t) { return ++calls < 3; });

  EXPECT_EQ(status.code(), absl::StatusCode::kCancelled);
  EXPECT_TRUE(set->experts().empty());
  EXPECT_EQ(backend.allocated_bytes(), 0);
}

// A source that hides that it has a formula, as a checkpoint has none.
class FormulaLessSource final : public WeightSource {
 public:
  explicit FormulaLessSource(const ModelConfig& config) : inner_(MakeSyntheticSource(config)) {}

  const ModelConfig& config() const override { return inner_->config(); }

  std::string digest() const override { return inner_->digest(); }

  absl::Status Read(absl::string_view tensor,
                    int64_t offset,
                    std::span<std::byte> out) const override {
    return inner_->Read(tensor, offset, out);
  }

 private:
  const std::unique_ptr<WeightSource> inner_;
};

TEST(ExpertSetTest, ADeviceMakesSyntheticExpertsItself) {
  const ModelConfig config = ModelConfig::Tiny();
  const auto source = MakeSyntheticSource(config);
  DeviceFakeBackend backend;
  const auto set = ExpertSet::Create(source.get(), &backend);
  int64_t last_done = 0, total = 0;

  ASSERT_TRUE(set->Hold(Ids({1, 4, 7}),
                        [&](int64_t done, int64_t all) {
                          last_done = done;
                          total = all;
                          return true;
                        })
                  .ok());

  EXPECT_EQ(FirstDifference(*set, config), "");
  EXPECT_GT(backend.num_synthesized(), 0);
  EXPECT_EQ(backend.pinned_bytes_written(), 0);
  EXPECT_EQ(last_done, total);
  EXPECT_EQ(backend.allocated_bytes(), 3 * ExpertResidentBytes(config, backend));
}

TEST(ExpertSetTest, SeveralReadersFillPinnedMemory) {
  for (const ExpertStorage storage : {ExpertStorage::kMxfp4, ExpertStorage::kBf16}) {
    ModelConfig config = ModelConfig::Tiny();
    config.storage = storage;
    const FormulaLessSource source(config);
    DeviceFakeBackend backend;
    const auto set = ExpertSet::Create(&source, &backend);

    ASSERT_TRUE(set->Hold(Ids({0, 2, 3, 5, 6}), nullptr).ok());

    EXPECT_EQ(FirstDifference(*set, config), "");
    EXPECT_EQ(backend.num_synthesized(), 0);
    const int64_t weights = int64_t{2 + 1} * config.hidden * config.intermediate;
    const int64_t each = storage == ExpertStorage::kMxfp4 ? weights / 2 : 2 * weights;
    EXPECT_EQ(backend.pinned_bytes_written(), 5 * config.num_layers * each);
  }
}

TEST(DeviceDenseTest, HoldsEveryDenseTensorHoweverItCame) {
  const ModelConfig config = ModelConfig::Tiny();
  const auto synthetic = MakeSyntheticSource(config);
  const FormulaLessSource stored(config);
  for (const WeightSource* source : {static_cast<const WeightSource*>(synthetic.get()),
                                     static_cast<const WeightSource*>(&stored)}) {
    DeviceFakeBackend backend;
    int64_t last_done = 0, total = 0;
    const auto dense = DeviceDense::Load(
        *source,
        [&](int64_t done, int64_t all) {
          last_done = done;
          total = all;
          return true;
        },
        &backend);

    ASSERT_TRUE(dense.ok()) << dense.status();
    EXPECT_EQ(FirstDifference((*dense)->weights(), config), "");
    EXPECT_EQ((*dense)->bytes(), DenseSegmentBytes(config));
    EXPECT_EQ(last_done, total);
    EXPECT_GT(total, 0);
    EXPECT_EQ(backend.num_synthesized() > 0, source == synthetic.get());
    EXPECT_EQ(backend.pinned_bytes_written() > 0, source == &stored);
  }
}

TEST(DeviceDenseTest, TooLittleMemoryIsAnErrorWithTheBytes) {
  const ModelConfig config = ModelConfig::Tiny();
  DeviceFakeBackend backend(1000);

  const auto dense = DeviceDense::Load(*MakeSyntheticSource(config), nullptr, &backend);

  EXPECT_EQ(dense.status().code(), absl::StatusCode::kResourceExhausted);
  EXPECT_THAT(std::string(dense.status().message()),
              HasSubstr(std::to_string(DenseSegmentBytes(config)) + " bytes"));
}

// A source with some scale bytes replaced.
class PatchedSource final : public WeightSource {
 public:
  PatchedSource(std::string tensor, int64_t at, uint8_t value)
      : inner_(MakeSyntheticSource(ModelConfig::Tiny())),
        tensor_(std::move(tensor)),
        at_(at),
        value_(value) {}

  const ModelConfig& config() const override { return inner_->config(); }

  std::string digest() const override { return "patched"; }

  absl::Status Read(absl::string_view tensor,
                    int64_t offset,
                    std::span<std::byte> out) const override {
    const absl::Status status = inner_->Read(tensor, offset, out);
    if (tensor == tensor_ && at_ >= offset && at_ < offset + std::ssize(out)) {
      out[static_cast<size_t>(at_ - offset)] = std::byte{value_};
    }
    return status;
  }

 private:
  const std::unique_ptr<WeightSource> inner_;
  const std::string tensor_;
  const int64_t at_;
  const uint8_t value_;
};

TEST(ExpertSetTest, Scale255IsDataLossWithItsPlace) {
  // Scales of down_proj are [8, 64, 3]: expert 5, row 10, group 2.
  const std::string name = "model.layers.2.mlp.experts.down_proj_scales";
  const PatchedSource source(name, (5 * 64 + 10) * 3 + 2, 255);
  LoadFakeBackend backend;
  const auto set = ExpertSet::Create(&source, &backend);
  ASSERT_TRUE(set->Hold(Ids({0, 4}), nullptr).ok());

  const absl::Status status = set->Hold(Ids({0, 4, 5}), nullptr);

  EXPECT_EQ(status.code(), absl::StatusCode::kDataLoss);
  EXPECT_THAT(std::string(status.message()), HasSubstr(name + ": scale [5, 10, 2] is 255"));
  EXPECT_THAT(set->experts(), ElementsAre(ExpertId{0}, ExpertId{4}));
}

TEST(ExpertSetTest, OddScalesAreCounted) {
  for (const auto& [value, odd] : std::initializer_list<std::pair<int, int>>{
           {0, 1}, {1, 1}, {2, 0}, {252, 0}, {253, 1}, {254, 1}}) {
    const PatchedSource source(
        "model.layers.0.mlp.experts.gate_up_proj_scales", 7, static_cast<uint8_t>(value));
    LoadFakeBackend backend;
    const auto set = ExpertSet::Create(&source, &backend);
    ASSERT_TRUE(set->Hold(Ids({0}), nullptr).ok());
    EXPECT_EQ(set->odd_scales(), odd) << value;
  }
}

}  // namespace
}  // namespace shoal
