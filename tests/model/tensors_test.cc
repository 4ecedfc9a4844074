// The inventories and byte counts of spec 2 (item 2 of its acceptance list).
#include "model/tensors.h"

#include <map>
#include <set>
#include <string>

#include "gtest/gtest.h"

namespace shoal {
namespace {

int64_t TotalBytes(const std::vector<FileTensor>& tensors) {
  int64_t bytes = 0;
  for (const FileTensor& tensor : tensors) bytes += tensor.bytes();
  return bytes;
}

TEST(TensorsTest, CountsAndBytesOfTheReleases) {
  struct Case {
    ModelConfig config;
    size_t hugging_face, original;
    int64_t bytes, bf16_bytes;
  };

  const Case cases[] = {{ModelConfig::GptOss20b(), 459, 363, 13'761'264'768, 41'829'514'368},
                        {ModelConfig::GptOss120b(), 687, 543, 65'248'815'744, 233'658'313'344}};
  for (const Case& c : cases) {
    const auto hugging_face = FileTensors(c.config, CheckpointLayout::kHuggingFace);
    const auto original = FileTensors(c.config, CheckpointLayout::kOriginal);
    ModelConfig bf16 = c.config;
    bf16.storage = ExpertStorage::kBf16;

    EXPECT_EQ(hugging_face.size(), c.hugging_face);
    EXPECT_EQ(TotalBytes(hugging_face), c.bytes);
    EXPECT_EQ(original.size(), c.original);
    EXPECT_EQ(TotalBytes(original), c.bytes);
    EXPECT_EQ(TotalBytes(FileTensors(bf16, CheckpointLayout::kHuggingFace)), c.bf16_bytes);
  }
}

TEST(TensorsTest, ShapesOfALayerOfThe120b) {
  std::map<std::string, std::string> shapes;
  for (const ModelTensor& tensor : ModelTensors(ModelConfig::GptOss120b())) {
    if (tensor.layer == 35)
      shapes[tensor.name.substr(std::string("model.layers.35.").size())] =
          ShapeToString(tensor.shape);
  }
  const std::map<std::string, std::string> expected = {
      {"input_layernorm.weight", "[2880]"},
      {"self_attn.q_proj.weight", "[4096, 2880]"},
      {"self_attn.q_proj.bias", "[4096]"},
      {"self_attn.k_proj.weight", "[512, 2880]"},
      {"self_attn.k_proj.bias", "[512]"},
      {"self_attn.v_proj.weight", "[512, 2880]"},
      {"self_attn.v_proj.bias", "[512]"},
      {"self_attn.o_proj.weight", "[2880, 4096]"},
      {"self_attn.o_proj.bias", "[2880]"},
      {"self_attn.sinks", "[64]"},
      {"post_attention_layernorm.weight", "[2880]"},
      {"mlp.router.weight", "[128, 2880]"},
      {"mlp.router.bias", "[128]"},
      {"mlp.experts.gate_up_proj_blocks", "[128, 5760, 90, 16]"},
      {"mlp.experts.gate_up_proj_scales", "[128, 5760, 90]"},
      {"mlp.experts.gate_up_proj_bias", "[128, 5760]"},
      {"mlp.experts.down_proj_blocks", "[128, 2880, 90, 16]"},
      {"mlp.experts.down_proj_scales", "[128, 2880, 90]"},
      {"mlp.experts.down_proj_bias", "[128, 2880]"}};
  EXPECT_EQ(shapes, expected);
}

TEST(TensorsTest, OneExpertOfTheReleasesHas13236480Bytes) {
  int64_t bytes = 0;
  for (const ModelTensor& tensor : ModelTensors(ModelConfig::GptOss20b())) {
    if (tensor.layer == 7 && ClassOf(tensor.kind) == TensorClass::kExpert) {
      bytes += tensor.bytes_per_expert();
    }
  }
  EXPECT_EQ(bytes, 13'236'480);
}

TEST(TensorsTest, OriginalLayoutFusesQueryKeyAndValue) {
  std::map<std::string, std::string> shapes;
  for (const FileTensor& tensor :
       FileTensors(ModelConfig::GptOss20b(), CheckpointLayout::kOriginal)) {
    EXPECT_TRUE(shapes.emplace(tensor.name, ShapeToString(tensor.shape)).second) << tensor.name;
  }
  EXPECT_EQ(shapes["block.23.attn.qkv.weight"], "[5120, 2880]");
  EXPECT_EQ(shapes["block.23.attn.qkv.bias"], "[5120]");
  EXPECT_EQ(shapes["block.0.mlp.mlp1_weight.blocks"], "[32, 5760, 90, 16]");
  EXPECT_EQ(shapes["unembedding.weight"], "[201088, 2880]");
  for (const ModelTensor& tensor : ModelTensors(ModelConfig::GptOss20b())) {
    if (tensor.kind == TensorKind::kKeyWeight) {
      EXPECT_EQ(tensor.original_row, 4096);
    }
    if (tensor.kind == TensorKind::kValueBias) {
      EXPECT_EQ(tensor.original_row, 4608);
    }
  }
}

TEST(TensorsTest, Bf16ExpertsAreTransposed) {
  ModelConfig config = ModelConfig::Tiny();
  config.storage = ExpertStorage::kBf16;
  std::set<std::string> seen;
  for (const ModelTensor& tensor : ModelTensors(config)) {
    if (tensor.kind == TensorKind::kGateUpWeight || tensor.kind == TensorKind::kDownWeight) {
      seen.insert(tensor.name + " " + ShapeToString(tensor.shape));
    }
    EXPECT_EQ(tensor.type, StoredType::kBf16);
  }
  EXPECT_EQ(seen.count("model.layers.3.mlp.experts.gate_up_proj [8, 64, 192]"), 1u);
  EXPECT_EQ(seen.count("model.layers.3.mlp.experts.down_proj [8, 96, 64]"), 1u);
}

}  // namespace
}  // namespace shoal
