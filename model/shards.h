// How a checkpoint's tensors are cut into files: the released rule, and
// model.safetensors.index.json.
#pragma once

#include <cstdint>
#include <map>
#include <span>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"

#include "model/safetensors.h"
#include "model/tensors.h"

namespace shoal {

// Of the released 20b: with it the plan is the released one byte for byte.
inline constexpr int64_t kReleasedShardBytes = 4'800'000'000;

struct Shard {
  std::string file;                   // Name without folder
  std::vector<StoredTensor> tensors;  // In the order of the data, offsets filled in
};

// Tensors go to shards in the order given; a new shard begins before `max_bytes` of data would be
// passed. Inside a shard wider types come first, then names in order, as safetensors writes them.
// Numbering is as released: from 0 with "of" the last number (Hugging Face), from 1 with "of" the
// count (original); a single shard is model.safetensors.
std::vector<Shard> PlanShards(std::span<const FileTensor> tensors,
                              CheckpointLayout layout,
                              int64_t max_bytes);

// The text of model.safetensors.index.json, in the order of `tensors`.
std::string WriteShardIndex(std::span<const FileTensor> tensors, std::span<const Shard> shards);

// Tensor -> file. kInvalidArgument if the text is not an index, or a file's name is not a plain
// name (it would lead out of the folder).
absl::StatusOr<std::map<std::string, std::string>> ParseShardIndex(absl::string_view json);

}  // namespace shoal
