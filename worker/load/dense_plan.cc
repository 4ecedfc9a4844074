#include "worker/load/dense_plan.h"

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"

#include "base/check.h"
#include "base/prng.h"

namespace shoal {
namespace {

constexpr int64_t kAlignment = 64;

// Where `kind` stands in a step. k and v follow q at once, so that the three are one matrix.
int OrderInLayer(TensorKind kind) {
  constexpr TensorKind kOrder[] = {TensorKind::kAttentionNorm,
                                   TensorKind::kQueryWeight,
                                   TensorKind::kKeyWeight,
                                   TensorKind::kValueWeight,
                                   TensorKind::kQueryBias,
                                   TensorKind::kKeyBias,
                                   TensorKind::kValueBias,
                                   TensorKind::kSinks,
                                   TensorKind::kOutWeight,
                                   TensorKind::kOutBias,
                                   TensorKind::kMlpNorm,
                                   TensorKind::kRouterWeight,
                                   TensorKind::kRouterBias,
                                   TensorKind::kFinalNorm,
                                   TensorKind::kUnembedding,
                                   TensorKind::kEmbedding};
  const auto* at = std::find(std::begin(kOrder), std::end(kOrder), kind);
  CHECK(at != std::end(kOrder));
  return static_cast<int>(at - kOrder);
}

bool ContinuesBefore(TensorKind kind) {
  return kind == TensorKind::kKeyWeight || kind == TensorKind::kValueWeight ||
         kind == TensorKind::kKeyBias || kind == TensorKind::kValueBias;
}

}  // namespace

int64_t DensePlan::StoredBytes() const {
  int64_t total = 0;
  for (const DensePart& part : parts) total += part.tensor.bytes();
  return total;
}

DensePlan PlanDense(const ModelConfig& config) {
  DensePlan plan;
  for (ModelTensor& tensor : ModelTensors(config)) {
    if (ClassOf(tensor.kind) == TensorClass::kDense) plan.parts.push_back({std::move(tensor)});
  }
  const auto key = [&](const DensePart& part) {
    const int layer = part.tensor.layer < 0 ? config.num_layers : part.tensor.layer;
    return std::pair(layer, OrderInLayer(part.tensor.kind));
  };
  std::sort(plan.parts.begin(), plan.parts.end(), [&](const DensePart& a, const DensePart& b) {
    return key(a) < key(b);
  });
  for (DensePart& part : plan.parts) {
    if (!ContinuesBefore(part.tensor.kind)) {
      plan.bytes = (plan.bytes + kAlignment - 1) / kAlignment * kAlignment;
    }
    part.offset = plan.bytes;
    plan.bytes += part.bytes();
  }
  return plan;
}

uint64_t GeometryHash(const DensePlan& plan) {
  uint64_t hash = kFnvOffset;
  for (const DensePart& part : plan.parts) {
    hash = Fnv1a64(
        absl::StrCat(part.tensor.name, ShapeToString(part.tensor.shape), "@", part.offset, ";"),
        hash);
  }
  return hash;
}

DenseWeights MakeViews(const DensePlan& plan, const ModelConfig& config, std::byte* base) {
  DenseWeights weights;
  weights.layers.resize(static_cast<size_t>(config.num_layers));
  for (const DensePart& part : plan.parts) {
    const ModelTensor& tensor = part.tensor;
    std::byte* data = base + part.offset;
    const auto* vector = reinterpret_cast<const float*>(data);
    const int64_t cols = part.is_vector() ? 0 : tensor.shape[1];
    const TensorView matrix = MakeTensor(data, DType::kBf16, tensor.shape[0], cols);
    DenseLayer* layer =
        tensor.layer < 0 ? nullptr : &weights.layers[static_cast<size_t>(tensor.layer)];
    switch (tensor.kind) {
      case TensorKind::kAttentionNorm:
        layer->attention_norm = vector;
        break;
      case TensorKind::kQueryWeight:
        layer->qkv = MakeTensor(data, DType::kBf16, config.qkv_rows(), cols);
        break;
      case TensorKind::kQueryBias:
        layer->qkv_bias = vector;
        break;
      case TensorKind::kSinks:
        layer->sinks = vector;
        break;
      case TensorKind::kOutWeight:
        layer->out = matrix;
        break;
      case TensorKind::kOutBias:
        layer->out_bias = vector;
        break;
      case TensorKind::kMlpNorm:
        layer->mlp_norm = vector;
        break;
      case TensorKind::kRouterWeight:
        layer->router = matrix;
        break;
      case TensorKind::kRouterBias:
        layer->router_bias = vector;
        break;
      case TensorKind::kEmbedding:
        weights.embedding = matrix;
        break;
      case TensorKind::kUnembedding:
        weights.unembedding = matrix;
        break;
      case TensorKind::kFinalNorm:
        weights.final_norm = vector;
        break;
      default:
        break;  // k and v lie behind q.
    }
  }
  return weights;
}

}  // namespace shoal
