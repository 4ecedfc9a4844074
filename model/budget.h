// Sizes that follow from the geometry alone: what files hold, what a token touches. What a backend
// keeps in memory is asked where it is kept: worker/load/loader.h, worker/kv_cache.h.
#pragma once

#include <cstdint>

#include "model/config.h"

namespace shoal {

struct ModelBudget {
  int64_t dense_bytes = 0;   // As stored: everything but the experts
  int64_t expert_bytes = 0;  // As stored: one expert in all layers
  int64_t total_bytes = 0;
  int64_t parameters = 0;
  // Per token: the chosen experts, everything dense but the embedding, of which it is one row.
  int64_t active_parameters = 0;        // Without that row, as the releases count
  int64_t bytes_touched_per_token = 0;  // At batch 1, without K/V
};

ModelBudget MeasureModel(const ModelConfig& config);

}  // namespace shoal
