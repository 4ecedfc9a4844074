// `shoal inspect`: what a checkpoint folder holds, whether it is sound, and what each worker of a
// cell would read and keep.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/statusor.h"

#include "model/config.h"
#include "worker/load/loader.h"

namespace shoal {

struct RankLoad {
  int32_t num_experts = 0;     // Per layer
  int64_t bytes_read = 0;      // By the worker's process
  int64_t bytes_resident = 0;  // Weights in its own memory
};

struct Inspection {
  std::string dir;
  ModelConfig config;
  std::string layout;
  std::string experts;  // As they are kept in memory: "MXFP4", "BF16"
  std::string digest;
  int64_t num_files = 0;
  int64_t num_tensors = 0;
  int64_t tensor_bytes = 0;
  int64_t file_bytes = 0;
  int64_t num_parameters = 0;
  int64_t num_active_parameters = 0;  // Per token: unembedding counted, embedding not
  std::vector<RankLoad> ranks;
  // With shared dense weights: what the parent process reads and keeps for all of them.
  int64_t parent_bytes_read = 0;
  int64_t parent_bytes_resident = 0;
};

struct InspectArgs {
  std::string dir;
  int workers = 1;
  int copies = 1;                 // Of every expert
  bool has_shared_dense = false;  // As `shoal serve` does on one host
  Bf16Experts bf16_experts = Bf16Experts::kPackIfExact;
};

// Opens and checks the checkpoint; the errors are OpenCheckpoint's.
absl::StatusOr<Inspection> Inspect(const InspectArgs& args);

std::string InspectionToJson(const Inspection& inspection);

// argv[0] is the subcommand's name. Returns 0, 2 (usage) or 4 (no sound checkpoint).
int RunInspect(int argc, char** argv);

}  // namespace shoal
