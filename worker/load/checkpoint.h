// A checkpoint folder, opened and checked: which file holds which bytes of which tensor.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "absl/status/statusor.h"

#include "model/safetensors.h"
#include "model/tensors.h"
#include "worker/load/file_reader.h"
#include "worker/load/loader.h"

namespace shoal {

// One safetensors file and its table.
struct CheckpointFile {
  FileReader reader;
  int64_t data_begin = 0;  // Of the file; tensors' offsets count from here.
  std::vector<StoredTensor> tensors;
};

// See OpenCheckpoint in loader.h. Immutable after Open; thread-safe.
class Checkpoint final : public WeightSource {
 public:
  static absl::StatusOr<std::unique_ptr<Checkpoint>> Open(
      const std::string& dir, Bf16Experts bf16_experts = Bf16Experts::kPackIfExact);

  const ModelConfig& config() const override { return config_; }

  ExpertStorage stored() const override { return stored_; }

  std::string digest() const override { return digest_; }

  absl::Status Read(absl::string_view tensor,
                    int64_t offset,
                    std::span<std::byte> out) const override;

  // The folder that was used: DIR or DIR/original.
  const std::string& dir() const { return dir_; }

  CheckpointLayout layout() const { return layout_; }

  std::span<const CheckpointFile> files() const { return files_; }

  int64_t num_tensors() const;
  int64_t tensor_bytes() const;

  // What Open() read: config files, index, headers and the samples of the digest.
  int64_t bytes_read_by_open() const { return bytes_read_by_open_; }

 private:
  // A canonical tensor's place.
  struct Place {
    size_t file = 0;
    int64_t offset = 0;  // In the file
    int64_t bytes = 0;
  };

  explicit Checkpoint(std::string dir) : dir_(std::move(dir)) {}

  absl::StatusOr<std::string> ReadText(const std::string& name, bool is_optional);
  absl::Status ReadConfig();
  absl::Status OpenFiles();
  absl::Status CheckTables();
  absl::StatusOr<bool> HasMxfp4Values();

  const std::string dir_;
  ModelConfig config_;
  ExpertStorage stored_ = ExpertStorage::kMxfp4;
  CheckpointLayout layout_ = CheckpointLayout::kHuggingFace;
  std::vector<CheckpointFile> files_;
  absl::flat_hash_map<std::string, Place> places_;  // By canonical name
  std::string digest_;
  int64_t bytes_read_by_open_ = 0;
};

}  // namespace shoal
