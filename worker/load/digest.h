// A short name for "the same weights": what every worker of a cell must agree on.
#pragma once

#include <cstdint>
#include <span>
#include <string>

#include "absl/status/statusor.h"

#include "model/config.h"
#include "worker/load/checkpoint.h"

namespace shoal {

// Bytes that the digest reads of each tensor.
inline constexpr int64_t kDigestSampleBytes = 64;

// 16 hexadecimal digits of the config, the tensor tables, the file sizes and a sample from the
// middle of every tensor: a fine-tune of the same geometry and file sizes has other samples. It
// tells mistakes apart; it does not authenticate. Adds what it read to *bytes_read.
absl::StatusOr<std::string> CheckpointDigest(const ModelConfig& config,
                                             std::span<const CheckpointFile> files,
                                             int64_t* bytes_read);

// Of `--load-format dummy`.
std::string SyntheticDigest(const ModelConfig& config);

}  // namespace shoal
