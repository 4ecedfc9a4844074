#include "cli/synthetic_checkpoint.h"

#include <fcntl.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstddef>
#include <filesystem>
#include <map>
#include <span>
#include <system_error>
#include <utility>
#include <vector>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/string_view.h"
#include "cli/synthetic_tokenizer.h"

#include "base/status_macros.h"
#include "model/config_writer.h"
#include "model/safetensors.h"
#include "model/synthetic.h"

namespace shoal {
namespace {

namespace fs = std::filesystem;

constexpr int64_t kChunkBytes = int64_t{8} << 20;

// A new file; nothing is replaced.
class FileWriter {
 public:
  static absl::StatusOr<FileWriter> Create(const std::string& path) {
    const int fd = open(path.c_str(), O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0644);
    if (fd < 0) return absl::ErrnoToStatus(errno, path);
    return FileWriter(path, fd);
  }

  FileWriter(FileWriter&& other) noexcept
      : path_(std::move(other.path_)), fd_(std::exchange(other.fd_, -1)) {}

  ~FileWriter() {
    if (fd_ >= 0) close(fd_);
  }

  absl::Status Write(std::span<const std::byte> bytes) {
    while (!bytes.empty()) {
      const ssize_t written = write(fd_, bytes.data(), bytes.size());
      if (written < 0 && errno == EINTR) continue;
      if (written < 0) return absl::ErrnoToStatus(errno, path_);
      bytes = bytes.subspan(static_cast<size_t>(written));
    }
    return absl::OkStatus();
  }

  absl::Status Write(absl::string_view text) {
    return Write(std::as_bytes(std::span(text.data(), text.size())));
  }

  // Makes the file `bytes` long; what was not written is a hole.
  absl::Status Extend(int64_t bytes) {
    return ftruncate(fd_, bytes) == 0 ? absl::OkStatus() : absl::ErrnoToStatus(errno, path_);
  }

  absl::Status Close() {
    return close(std::exchange(fd_, -1)) == 0 ? absl::OkStatus()
                                              : absl::ErrnoToStatus(errno, path_);
  }

 private:
  FileWriter(std::string path, int fd) : path_(std::move(path)), fd_(fd) {}

  std::string path_;
  int fd_;
};

absl::Status WriteText(const std::string& path, absl::string_view text) {
  ASSIGN_OR_RETURN(FileWriter file, FileWriter::Create(path));
  RETURN_IF_ERROR(file.Write(text));
  return file.Close();
}

absl::Status CheckExpressible(const SyntheticCheckpoint& checkpoint) {
  const ModelConfig& config = checkpoint.config;
  RETURN_IF_ERROR(config.Validate());
  if (config.hidden % 32 != 0 || config.intermediate % 32 != 0) {
    return absl::InvalidArgumentError(absl::StrCat(
        "hidden = ",
        config.hidden,
        ", intermediate = ",
        config.intermediate,
        ": the formula makes MXFP4 codes first; multiples of 32 are needed in every layout"));
  }
  if (checkpoint.layout == CheckpointLayout::kHuggingFace) return absl::OkStatus();
  if (config.storage != ExpertStorage::kMxfp4) {
    return absl::InvalidArgumentError("the original layout has MXFP4 experts only");
  }
  const auto read_back = ParseModelConfig(WriteConfigJson(config, checkpoint.layout),
                                          WriteGenerationConfigJson(config));
  if (!read_back.ok() || !(*read_back == config)) {
    return absl::InvalidArgumentError(
        "the original layout's config.json cannot say all of this geometry: it has no layer types, "
        "no context limit (4096 * 32 follows) and no epsilon");
  }
  return absl::OkStatus();
}

// Makes the folder and sees that the files will neither replace others nor fill the disk.
absl::Status PrepareFolder(const SyntheticCheckpoint& checkpoint, int64_t bytes) {
  std::error_code error;
  fs::create_directories(checkpoint.dir, error);
  if (error) return absl::InvalidArgumentError(absl::StrCat(checkpoint.dir, ": ", error.message()));
  for (const fs::directory_entry& entry : fs::directory_iterator(checkpoint.dir, error)) {
    const std::string name = entry.path().filename().string();
    if (absl::EndsWith(name, ".safetensors") || absl::EndsWith(name, ".json")) {
      return absl::FailedPreconditionError(
          absl::StrCat(checkpoint.dir, ": holds ", name, " already; an empty folder is needed"));
    }
  }
  if (error) return absl::InvalidArgumentError(absl::StrCat(checkpoint.dir, ": ", error.message()));
  const fs::space_info space = fs::space(checkpoint.dir, error);
  if (!error && !checkpoint.is_plan_only && space.available < static_cast<uintmax_t>(bytes)) {
    return absl::ResourceExhaustedError(absl::StrCat(checkpoint.dir,
                                                     ": ",
                                                     bytes,
                                                     " bytes are needed, but the disk has ",
                                                     space.available,
                                                     " left"));
  }
  return absl::OkStatus();
}

// Which model tensors make up each stored one, in its row order (three for a fused qkv).
using Sources = std::map<std::string, std::vector<ModelTensor>>;

Sources FindSources(const ModelConfig& config, CheckpointLayout layout) {
  Sources sources;
  for (ModelTensor& tensor : ModelTensors(config)) {
    const std::string name =
        layout == CheckpointLayout::kOriginal ? tensor.original_name : tensor.name;
    sources[name].push_back(std::move(tensor));
  }
  for (auto& [name, parts] : sources) {
    std::sort(parts.begin(), parts.end(), [](const ModelTensor& a, const ModelTensor& b) {
      return a.original_row < b.original_row;
    });
  }
  return sources;
}

}  // namespace

absl::Status WriteSyntheticCheckpoint(const SyntheticCheckpoint& checkpoint,
                                      const std::function<void(int64_t, int64_t)>& progress) {
  RETURN_IF_ERROR(CheckExpressible(checkpoint));
  const std::vector<FileTensor> tensors = FileTensors(checkpoint.config, checkpoint.layout);
  const std::vector<Shard> shards = PlanShards(tensors, checkpoint.layout, checkpoint.shard_bytes);
  int64_t total = 0;
  for (const Shard& shard : shards) total += shard.tensors.back().end;
  RETURN_IF_ERROR(PrepareFolder(checkpoint, total));

  const auto path = [&](absl::string_view name) { return absl::StrCat(checkpoint.dir, "/", name); };
  const Sources sources = FindSources(checkpoint.config, checkpoint.layout);
  std::vector<std::byte> chunk(static_cast<size_t>(kChunkBytes));
  int64_t done = 0;
  for (const Shard& shard : shards) {
    ASSIGN_OR_RETURN(FileWriter file, FileWriter::Create(path(shard.file)));
    const std::string header = WriteSafetensorsHeader(shard.tensors);
    RETURN_IF_ERROR(file.Write(header));
    if (checkpoint.is_plan_only) {
      RETURN_IF_ERROR(file.Extend(static_cast<int64_t>(header.size()) + shard.tensors.back().end));
      RETURN_IF_ERROR(file.Close());
      continue;
    }
    for (const StoredTensor& stored : shard.tensors) {
      for (const ModelTensor& part : sources.at(stored.name)) {
        for (int64_t offset = 0; offset < part.bytes();) {
          const int64_t count = std::min(kChunkBytes, part.bytes() - offset);
          const std::span<std::byte> bytes = std::span(chunk).first(static_cast<size_t>(count));
          FillSynthetic(part, offset, bytes);
          RETURN_IF_ERROR(file.Write(bytes));
          offset += count;
          done += count;
          if (progress) progress(done, total);
        }
      }
    }
    RETURN_IF_ERROR(file.Close());
  }

  if (shards.size() > 1 && checkpoint.layout == CheckpointLayout::kHuggingFace) {
    RETURN_IF_ERROR(
        WriteText(path("model.safetensors.index.json"), WriteShardIndex(tensors, shards)));
  }
  const std::string tokenizer = SyntheticTokenizerJson(checkpoint.config.vocab);
  if (!tokenizer.empty()) RETURN_IF_ERROR(WriteText(path("tokenizer.json"), tokenizer));
  RETURN_IF_ERROR(
      WriteText(path("generation_config.json"), WriteGenerationConfigJson(checkpoint.config)));
  return WriteText(path("config.json"), WriteConfigJson(checkpoint.config, checkpoint.layout));
}

}  // namespace shoal
