// ModelConfig back to the text of config.json. For `shoal synth` and for the digest.
#pragma once

#include <string>

#include "model/config.h"
#include "model/tensors.h"

namespace shoal {

// The released models give the released files byte for byte (Hugging Face spelling).
// REQUIRES: no truncate and no attention factor for kOriginal, whose spelling has neither.
std::string WriteConfigJson(const ModelConfig& config, CheckpointLayout layout);
std::string WriteGenerationConfigJson(const ModelConfig& config);

}  // namespace shoal
