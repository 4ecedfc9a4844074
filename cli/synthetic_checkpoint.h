// Writes a checkpoint whose weights follow from a formula (spec 8.6), in any layout. The files are
// what Hugging Face or OpenAI would have written for such a model.
#pragma once

#include <cstdint>
#include <functional>
#include <string>

#include "absl/status/status.h"

#include "model/config.h"
#include "model/shards.h"
#include "model/tensors.h"

namespace shoal {

struct SyntheticCheckpoint {
  std::string dir;     // Made if it is not there; must hold no checkpoint yet
  ModelConfig config;  // Its storage chooses MXFP4 or BF16 experts
  CheckpointLayout layout = CheckpointLayout::kHuggingFace;
  int64_t shard_bytes = kReleasedShardBytes;
  // Headers, config, index and tokenizer are real; the data is left a hole of zeros.
  bool is_plan_only = false;
};

// Writes config.json last, so that a half-written folder is not taken for a checkpoint. `progress`
// may be empty. Errors name what stands in the way: a folder in use, a full disk (with the bytes
// needed), a geometry that the layout cannot express.
absl::Status WriteSyntheticCheckpoint(
    const SyntheticCheckpoint& checkpoint,
    const std::function<void(int64_t done, int64_t total)>& progress);

}  // namespace shoal
