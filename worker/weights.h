// Views of the loaded tensors, in the form forward.cc uses. Memory belongs to DenseSegment and
// ExpertSet (worker/load/loader.h), which outlive every Weights that points into them.
#pragma once

#include <vector>

#include "base/ids.h"
#include "kernels/backend.h"
#include "kernels/tensor.h"

namespace shoal {

// Dense weights of one layer: every rank holds them.
struct DenseLayer {
  const float* attention_norm = nullptr;  // [hidden]
  TensorView qkv;  // [(num_heads + 2 num_kv_heads) * head_dim, hidden] bf16, q k v
  const float* qkv_bias = nullptr;
  const float* sinks = nullptr;        // [num_heads]
  TensorView out;                      // [hidden, num_heads * head_dim] bf16
  const float* out_bias = nullptr;     // [hidden]
  const float* mlp_norm = nullptr;     // [hidden]
  TensorView router;                   // [num_experts, hidden] bf16
  const float* router_bias = nullptr;  // [num_experts]
};

struct DenseWeights {
  TensorView embedding;               // [vocab, hidden] bf16
  TensorView unembedding;             // [vocab, hidden] bf16
  const float* final_norm = nullptr;  // [hidden]
  std::vector<DenseLayer> layers;
};

// The experts of one layer that this rank holds; local index i is global expert
// ExpertSet::experts()[i].
struct ExpertLayer {
  PackedMatrix gate_up;  // out = 2 * intermediate (gate, up alternating), in = hidden
  std::vector<const float*> gate_up_bias;  // [local experts] -> [2 * intermediate]
  PackedMatrix down;                       // out = hidden, in = intermediate
  std::vector<const float*> down_bias;     // [local experts] -> [hidden]
};

}  // namespace shoal
