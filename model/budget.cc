#include "model/budget.h"

#include "model/tensors.h"

namespace shoal {
namespace {

// Numbers of the model in a tensor: an MXFP4 code byte is two, a scale none.
int64_t Parameters(const ModelTensor& tensor) {
  switch (tensor.kind) {
    case TensorKind::kGateUpCodes:
    case TensorKind::kDownCodes:
      return 2 * tensor.num_elements();
    case TensorKind::kGateUpScales:
    case TensorKind::kDownScales:
      return 0;
    default:
      return tensor.num_elements();
  }
}

}  // namespace

ModelBudget MeasureModel(const ModelConfig& config) {
  ModelBudget budget;
  int64_t dense_parameters = 0, expert_parameters = 0;
  for (const ModelTensor& tensor : ModelTensors(config)) {
    budget.total_bytes += tensor.bytes();
    if (ClassOf(tensor.kind) == TensorClass::kDense) {
      budget.dense_bytes += tensor.bytes();
      dense_parameters += Parameters(tensor);
    } else {
      budget.expert_bytes += tensor.bytes_per_expert();
      expert_parameters += Parameters(tensor) / config.num_experts;
    }
  }
  const int64_t embedding = int64_t{config.vocab} * config.hidden;
  budget.parameters = dense_parameters + config.num_experts * expert_parameters;
  budget.active_parameters =
      dense_parameters - embedding + config.experts_per_token * expert_parameters;
  budget.bytes_touched_per_token = budget.dense_bytes - 2 * embedding + 2 * config.hidden +
                                   config.experts_per_token * budget.expert_bytes;
  return budget;
}

}  // namespace shoal
