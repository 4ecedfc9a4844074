#include "model/tensors.h"

#include <algorithm>
#include <cstddef>
#include <functional>
#include <iterator>
#include <numeric>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"

#include "base/check.h"

namespace shoal {
namespace {

struct Names {
  TensorKind kind;
  const char* canonical;  // Behind "model.layers.N." for tensors of a layer
  const char* original;   // Behind "block.N." for tensors of a layer
};

// In the order in which the release stores a layer; the last three belong to no layer.
constexpr Names kNames[] = {
    {TensorKind::kAttentionNorm, "input_layernorm.weight", "attn.norm.scale"},
    {TensorKind::kOutBias, "self_attn.o_proj.bias", "attn.out.bias"},
    {TensorKind::kOutWeight, "self_attn.o_proj.weight", "attn.out.weight"},
    {TensorKind::kQueryBias, "self_attn.q_proj.bias", "attn.qkv.bias"},
    {TensorKind::kKeyBias, "self_attn.k_proj.bias", "attn.qkv.bias"},
    {TensorKind::kValueBias, "self_attn.v_proj.bias", "attn.qkv.bias"},
    {TensorKind::kQueryWeight, "self_attn.q_proj.weight", "attn.qkv.weight"},
    {TensorKind::kKeyWeight, "self_attn.k_proj.weight", "attn.qkv.weight"},
    {TensorKind::kValueWeight, "self_attn.v_proj.weight", "attn.qkv.weight"},
    {TensorKind::kSinks, "self_attn.sinks", "attn.sinks"},
    {TensorKind::kRouterBias, "mlp.router.bias", "mlp.gate.bias"},
    {TensorKind::kRouterWeight, "mlp.router.weight", "mlp.gate.weight"},
    {TensorKind::kGateUpBias, "mlp.experts.gate_up_proj_bias", "mlp.mlp1_bias"},
    {TensorKind::kGateUpCodes, "mlp.experts.gate_up_proj_blocks", "mlp.mlp1_weight.blocks"},
    {TensorKind::kGateUpScales, "mlp.experts.gate_up_proj_scales", "mlp.mlp1_weight.scales"},
    {TensorKind::kGateUpWeight, "mlp.experts.gate_up_proj", ""},
    {TensorKind::kDownBias, "mlp.experts.down_proj_bias", "mlp.mlp2_bias"},
    {TensorKind::kDownCodes, "mlp.experts.down_proj_blocks", "mlp.mlp2_weight.blocks"},
    {TensorKind::kDownScales, "mlp.experts.down_proj_scales", "mlp.mlp2_weight.scales"},
    {TensorKind::kDownWeight, "mlp.experts.down_proj", ""},
    {TensorKind::kMlpNorm, "post_attention_layernorm.weight", "mlp.norm.scale"},
    {TensorKind::kEmbedding, "model.embed_tokens.weight", "embedding.weight"},
    {TensorKind::kFinalNorm, "model.norm.weight", "norm.scale"},
    {TensorKind::kUnembedding, "lm_head.weight", "unembedding.weight"},
};

constexpr bool TableIsInOrderOfKinds() {
  for (size_t i = 0; i < std::size(kNames); ++i) {
    if (static_cast<size_t>(kNames[i].kind) != i) return false;
  }
  return true;
}

static_assert(TableIsInOrderOfKinds(), "kNames is indexed by TensorKind");

bool IsOfLayer(TensorKind kind) {
  return kind < TensorKind::kEmbedding;
}

bool IsStoredAs(TensorKind kind, ExpertStorage storage) {
  switch (kind) {
    case TensorKind::kGateUpCodes:
    case TensorKind::kGateUpScales:
    case TensorKind::kDownCodes:
    case TensorKind::kDownScales:
      return storage == ExpertStorage::kMxfp4;
    case TensorKind::kGateUpWeight:
    case TensorKind::kDownWeight:
      return storage == ExpertStorage::kBf16;
    default:
      return true;
  }
}

std::vector<int64_t> ShapeOf(TensorKind kind, const ModelConfig& c) {
  const int64_t hidden = c.hidden, experts = c.num_experts, vocab = c.vocab;
  const int64_t gate_up = int64_t{2} * c.intermediate, intermediate = c.intermediate;
  const int64_t q = int64_t{c.num_heads} * c.head_dim, kv = int64_t{c.num_kv_heads} * c.head_dim;
  switch (kind) {
    case TensorKind::kAttentionNorm:
    case TensorKind::kMlpNorm:
    case TensorKind::kFinalNorm:
    case TensorKind::kOutBias:
      return {hidden};
    case TensorKind::kOutWeight:
      return {hidden, q};
    case TensorKind::kQueryBias:
      return {q};
    case TensorKind::kKeyBias:
    case TensorKind::kValueBias:
      return {kv};
    case TensorKind::kQueryWeight:
      return {q, hidden};
    case TensorKind::kKeyWeight:
    case TensorKind::kValueWeight:
      return {kv, hidden};
    case TensorKind::kSinks:
      return {c.num_heads};
    case TensorKind::kRouterBias:
      return {experts};
    case TensorKind::kRouterWeight:
      return {experts, hidden};
    case TensorKind::kGateUpBias:
      return {experts, gate_up};
    case TensorKind::kGateUpCodes:
      return {experts, gate_up, hidden / 32, 16};
    case TensorKind::kGateUpScales:
      return {experts, gate_up, hidden / 32};
    case TensorKind::kGateUpWeight:
      return {experts, hidden, gate_up};
    case TensorKind::kDownBias:
      return {experts, hidden};
    case TensorKind::kDownCodes:
      return {experts, hidden, intermediate / 32, 16};
    case TensorKind::kDownScales:
      return {experts, hidden, intermediate / 32};
    case TensorKind::kDownWeight:
      return {experts, intermediate, hidden};
    case TensorKind::kEmbedding:
    case TensorKind::kUnembedding:
      return {vocab, hidden};
  }
  return {};
}

StoredType TypeOf(TensorKind kind) {
  switch (kind) {
    case TensorKind::kGateUpCodes:
    case TensorKind::kGateUpScales:
    case TensorKind::kDownCodes:
    case TensorKind::kDownScales:
      return StoredType::kU8;
    default:
      return StoredType::kBf16;
  }
}

// The first row of q, k or v in the original layout's qkv.
int64_t OriginalRow(TensorKind kind, const ModelConfig& c) {
  switch (kind) {
    case TensorKind::kKeyWeight:
    case TensorKind::kKeyBias:
      return int64_t{c.num_heads} * c.head_dim;
    case TensorKind::kValueWeight:
    case TensorKind::kValueBias:
      return int64_t{c.num_heads + c.num_kv_heads} * c.head_dim;
    default:
      return 0;
  }
}

ModelTensor Describe(TensorKind kind, int layer, const ModelConfig& config) {
  const Names& names = kNames[static_cast<size_t>(kind)];
  return {.kind = kind,
          .layer = layer,
          .name = TensorName(kind, layer),
          .type = TypeOf(kind),
          .shape = ShapeOf(kind, config),
          .original_name = layer < 0 ? std::string(names.original)
                                     : absl::StrCat("block.", layer, ".", names.original),
          .original_row = OriginalRow(kind, config)};
}

// Layer numbers in the order of their decimal spellings, as the released files have them.
std::vector<int> LayersInStringOrder(int num_layers) {
  std::vector<int> layers(static_cast<size_t>(num_layers));
  std::iota(layers.begin(), layers.end(), 0);
  std::sort(layers.begin(), layers.end(), [](int a, int b) {
    return std::to_string(a) < std::to_string(b);
  });
  return layers;
}

}  // namespace

absl::string_view StoredTypeName(StoredType type) {
  return type == StoredType::kBf16 ? "BF16" : "U8";
}

TensorClass ClassOf(TensorKind kind) {
  return kind >= TensorKind::kGateUpBias && kind <= TensorKind::kDownWeight ? TensorClass::kExpert
                                                                            : TensorClass::kDense;
}

int64_t NumElements(const std::vector<int64_t>& shape) {
  return std::accumulate(shape.begin(), shape.end(), int64_t{1}, std::multiplies<>());
}

std::string ShapeToString(const std::vector<int64_t>& shape) {
  return absl::StrCat("[", absl::StrJoin(shape, ", "), "]");
}

int64_t ModelTensor::num_elements() const {
  return NumElements(shape);
}

int64_t FileTensor::bytes() const {
  return NumElements(shape) * StoredTypeBytes(type);
}

std::string TensorName(TensorKind kind, int layer) {
  const char* name = kNames[static_cast<size_t>(kind)].canonical;
  return IsOfLayer(kind) ? absl::StrCat("model.layers.", layer, ".", name) : std::string(name);
}

std::vector<ModelTensor> ModelTensors(const ModelConfig& config) {
  std::vector<ModelTensor> tensors;
  const auto add = [&](bool of_layer, int layer) {
    for (const Names& names : kNames) {
      if (IsOfLayer(names.kind) == of_layer && IsStoredAs(names.kind, config.storage)) {
        tensors.push_back(Describe(names.kind, layer, config));
      }
    }
  };
  for (const int layer : LayersInStringOrder(config.num_layers)) add(true, layer);
  add(false, -1);
  return tensors;
}

absl::string_view LayoutName(CheckpointLayout layout, ExpertStorage storage) {
  if (layout == CheckpointLayout::kOriginal) return "OpenAI original";
  return storage == ExpertStorage::kMxfp4 ? "Hugging Face MXFP4" : "Hugging Face BF16";
}

std::vector<FileTensor> FileTensors(const ModelConfig& config, CheckpointLayout layout) {
  CHECK(layout == CheckpointLayout::kHuggingFace || config.storage == ExpertStorage::kMxfp4);
  std::vector<FileTensor> files;
  for (ModelTensor& tensor : ModelTensors(config)) {
    if (layout == CheckpointLayout::kHuggingFace) {
      files.push_back({std::move(tensor.name), tensor.type, std::move(tensor.shape)});
    } else if (tensor.original_row == 0) {
      files.push_back({std::move(tensor.original_name), tensor.type, std::move(tensor.shape)});
      // q stands for all three.
      if (tensor.kind == TensorKind::kQueryWeight || tensor.kind == TensorKind::kQueryBias) {
        files.back().shape[0] = config.qkv_rows();
      }
    }
  }
  return files;
}

}  // namespace shoal
