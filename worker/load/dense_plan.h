// Where the dense weights of a model lie in one piece of memory, of a host or of a device.
//
// Every part begins at a multiple of 64 bytes, in the order in which a step reads them: layer by
// layer, then final norm, unembedding, embedding. Matrices are bf16 as in the checkpoint, with q, k
// and v rows in one; vectors are fp32. A page is left free in front.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "model/config.h"
#include "model/tensors.h"
#include "worker/weights.h"

namespace shoal {

// One tensor's place.
struct DensePart {
  ModelTensor tensor;
  int64_t offset = 0;

  bool is_vector() const { return tensor.shape.size() == 1; }

  int64_t bytes() const { return tensor.num_elements() * (is_vector() ? 4 : 2); }
};

struct DensePlan {
  static constexpr int64_t kFrontBytes = 4096;

  std::vector<DensePart> parts;
  int64_t bytes = kFrontBytes;

  // What a checkpoint holds of it.
  int64_t StoredBytes() const;
};

DensePlan PlanDense(const ModelConfig& config);

// Which tensor lies where, as a number: equal for equal layouts.
uint64_t GeometryHash(const DensePlan& plan);

// The weights at `base`, which has plan.bytes.
DenseWeights MakeViews(const DensePlan& plan, const ModelConfig& config, std::byte* base);

}  // namespace shoal
