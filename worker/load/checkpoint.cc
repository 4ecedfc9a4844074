#include "worker/load/checkpoint.h"

#include <algorithm>
#include <array>
#include <filesystem>
#include <map>
#include <system_error>
#include <utility>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"

#include "base/check.h"
#include "base/status_macros.h"
#include "model/shards.h"
#include "worker/load/digest.h"
#include "worker/load/mxfp4.h"

namespace shoal {
namespace {

namespace fs = std::filesystem;

// The largest released text file that is read here, the index of the 120b, has 55 KB.
constexpr int64_t kMaxTextBytes = 16 << 20;
// Faults of one kind that a message lists.
constexpr size_t kMaxListed = 3;

absl::Status Prefixed(const std::string& path, const absl::Status& status) {
  return absl::Status(status.code(), absl::StrCat(path, ": ", status.message()));
}

// All *.safetensors of a folder itself (not of folders in it), sorted.
std::vector<std::string> SafetensorsIn(const std::string& dir) {
  std::vector<std::string> names;
  std::error_code error;
  for (const fs::directory_entry& entry : fs::directory_iterator(dir, error)) {
    const std::string name = entry.path().filename().string();
    if (absl::EndsWith(name, ".safetensors")) names.push_back(name);
  }
  std::sort(names.begin(), names.end());
  return names;
}

bool IsFile(const std::string& path) {
  std::error_code error;
  return fs::is_regular_file(path, error);
}

// DIR, or DIR/original where only that one is a checkpoint.
absl::StatusOr<std::string> FindFolder(const std::string& dir) {
  std::error_code error;
  if (!fs::is_directory(dir, error)) {
    return absl::NotFoundError(
        absl::StrCat(dir, ": no such folder; the folder of a gpt-oss checkpoint is needed"));
  }
  const std::string original = absl::StrCat(dir, "/original");
  for (const std::string& candidate : {dir, original}) {
    if (IsFile(candidate + "/config.json") && !SafetensorsIn(candidate).empty()) return candidate;
  }
  if (!IsFile(dir + "/config.json") && !IsFile(original + "/config.json")) {
    return absl::NotFoundError(absl::StrCat(
        dir,
        ": neither config.json nor original/config.json is there; the folder of a gpt-oss "
        "checkpoint is needed"));
  }
  return absl::NotFoundError(absl::StrCat(
      dir, ": no *.safetensors file beside config.json; download the weights as well"));
}

absl::StatusOr<CheckpointFile> OpenFile(const std::string& path, int64_t* bytes_read) {
  ASSIGN_OR_RETURN(FileReader reader, FileReader::Open(path));
  std::array<std::byte, kSafetensorsPrefixBytes> prefix{};
  if (reader.bytes() >= kSafetensorsPrefixBytes) RETURN_IF_ERROR(reader.ReadAt(0, prefix));
  const auto header_bytes = ReadSafetensorsHeaderBytes(prefix, reader.bytes());
  if (!header_bytes.ok()) return Prefixed(path, header_bytes.status());
  std::string header(static_cast<size_t>(*header_bytes), '\0');
  RETURN_IF_ERROR(
      reader.ReadAt(kSafetensorsPrefixBytes, std::as_writable_bytes(std::span(header))));
  const int64_t data_begin = kSafetensorsPrefixBytes + *header_bytes;
  auto tensors = ParseSafetensorsHeader(header, reader.bytes() - data_begin);
  if (!tensors.ok()) return Prefixed(path, tensors.status());
  *bytes_read += data_begin;
  return CheckpointFile{
      .reader = std::move(reader), .data_begin = data_begin, .tensors = *std::move(tensors)};
}

// A tensor of the files, by name.
struct Entry {
  size_t file;
  const StoredTensor* tensor;
};

using Table = std::map<absl::string_view, Entry>;

absl::StatusOr<Table> BuildTable(std::span<const CheckpointFile> files) {
  Table table;
  for (size_t i = 0; i < files.size(); ++i) {
    for (const StoredTensor& tensor : files[i].tensors) {
      const auto [it, is_new] = table.emplace(tensor.name, Entry{i, &tensor});
      if (!is_new) {
        return absl::DataLossError(absl::StrCat("tensor ",
                                                tensor.name,
                                                " is in ",
                                                files[it->second.file].reader.path(),
                                                " and in ",
                                                files[i].reader.path(),
                                                "; once is needed"));
      }
    }
  }
  return table;
}

// "a (BF16 [1, 2]), b (...) and 12 more".
std::string List(const std::vector<std::string>& items) {
  const size_t shown = std::min(items.size(), kMaxListed);
  std::string text =
      absl::StrJoin(items.begin(), items.begin() + static_cast<ptrdiff_t>(shown), ", ");
  if (shown < items.size()) absl::StrAppend(&text, " and ", items.size() - shown, " more");
  return text;
}

std::string Describe(const FileTensor& tensor) {
  return absl::StrCat(
      tensor.name, " (", StoredTypeName(tensor.type), " ", ShapeToString(tensor.shape), ")");
}

// The files hold exactly the tensors of the config: names, types, shapes.
absl::Status CheckInventory(const Table& table,
                            std::span<const CheckpointFile> files,
                            const std::vector<FileTensor>& expected) {
  std::vector<std::string> missing, extra;
  Table left = table;
  for (const FileTensor& want : expected) {
    const auto it = left.find(want.name);
    if (it == left.end()) {
      missing.push_back(Describe(want));
      continue;
    }
    const StoredTensor& have = *it->second.tensor;
    if (have.dtype != StoredTypeName(want.type) || have.shape != want.shape) {
      return absl::DataLossError(absl::StrCat(files[it->second.file].reader.path(),
                                              ": tensor ",
                                              want.name,
                                              " is ",
                                              have.dtype,
                                              " ",
                                              ShapeToString(have.shape),
                                              "; by config.json ",
                                              StoredTypeName(want.type),
                                              " ",
                                              ShapeToString(want.shape),
                                              " is needed"));
    }
    left.erase(it);
  }
  for (const auto& [name, entry] : left) {
    extra.push_back(absl::StrCat(
        name, " (", entry.tensor->dtype, " ", ShapeToString(entry.tensor->shape), ")"));
  }
  if (missing.empty() && extra.empty()) return absl::OkStatus();
  std::string message = "the files do not hold the tensors of config.json;";
  if (!missing.empty()) absl::StrAppend(&message, " missing: ", List(missing));
  if (!extra.empty())
    absl::StrAppend(&message, missing.empty() ? "" : ";", " not expected: ", List(extra));
  return absl::DataLossError(message);
}

CheckpointLayout DetectLayout(const Table& table) {
  const auto it = table.lower_bound("block.");
  const bool is_original = table.contains("embedding.weight") ||
                           (it != table.end() && absl::StartsWith(it->first, "block."));
  return is_original ? CheckpointLayout::kOriginal : CheckpointLayout::kHuggingFace;
}

}  // namespace

absl::StatusOr<std::unique_ptr<WeightSource>> OpenCheckpoint(const std::string& dir,
                                                             Bf16Experts bf16_experts) {
  ASSIGN_OR_RETURN(std::unique_ptr<Checkpoint> checkpoint, Checkpoint::Open(dir, bf16_experts));
  return std::unique_ptr<WeightSource>(std::move(checkpoint));
}

absl::StatusOr<std::unique_ptr<Checkpoint>> Checkpoint::Open(const std::string& dir,
                                                             Bf16Experts bf16_experts) {
  ASSIGN_OR_RETURN(std::string folder, FindFolder(dir));
  std::unique_ptr<Checkpoint> checkpoint(new Checkpoint(std::move(folder)));
  RETURN_IF_ERROR(checkpoint->ReadConfig());
  RETURN_IF_ERROR(checkpoint->OpenFiles());
  RETURN_IF_ERROR(checkpoint->CheckTables());
  checkpoint->stored_ = checkpoint->config_.storage;
  if (bf16_experts == Bf16Experts::kPackIfExact) {
    ASSIGN_OR_RETURN(const bool has_mxfp4_values, checkpoint->HasMxfp4Values());
    if (has_mxfp4_values) checkpoint->config_.storage = ExpertStorage::kMxfp4;
  }
  ASSIGN_OR_RETURN(
      checkpoint->digest_,
      CheckpointDigest(checkpoint->config_, checkpoint->files_, &checkpoint->bytes_read_by_open_));
  return checkpoint;
}

absl::StatusOr<std::string> Checkpoint::ReadText(const std::string& name, bool is_optional) {
  const std::string path = absl::StrCat(dir_, "/", name);
  if (is_optional && !IsFile(path)) return std::string();
  ASSIGN_OR_RETURN(std::string text, ReadSmallFile(path, kMaxTextBytes));
  bytes_read_by_open_ += static_cast<int64_t>(text.size());
  return text;
}

absl::Status Checkpoint::ReadConfig() {
  ASSIGN_OR_RETURN(const std::string config, ReadText("config.json", false));
  ASSIGN_OR_RETURN(const std::string generation, ReadText("generation_config.json", true));
  auto parsed = ParseModelConfig(config, generation);
  if (!parsed.ok()) return Prefixed(dir_, parsed.status());
  config_ = *std::move(parsed);
  return absl::OkStatus();
}

absl::Status Checkpoint::OpenFiles() {
  std::vector<std::string> names;
  ASSIGN_OR_RETURN(const std::string text, ReadText("model.safetensors.index.json", true));
  std::map<std::string, std::string> index;
  if (text.empty()) {
    names = SafetensorsIn(dir_);
  } else {
    auto parsed = ParseShardIndex(text);
    if (!parsed.ok()) return Prefixed(dir_, parsed.status());
    index = *std::move(parsed);
    for (const auto& [tensor, file] : index) names.push_back(file);
    std::sort(names.begin(), names.end());
    names.erase(std::unique(names.begin(), names.end()), names.end());
  }
  for (const std::string& name : names) {
    ASSIGN_OR_RETURN(CheckpointFile file,
                     OpenFile(absl::StrCat(dir_, "/", name), &bytes_read_by_open_));
    files_.push_back(std::move(file));
    for (const StoredTensor& tensor : files_.back().tensors) {
      const auto it = index.find(tensor.name);
      if (it != index.end() && it->second != name) {
        return absl::DataLossError(absl::StrCat(
            dir_, ": tensor ", tensor.name, " is in ", name, ", but the index says ", it->second));
      }
    }
  }
  return absl::OkStatus();
}

absl::Status Checkpoint::CheckTables() {
  absl::StatusOr<Table> built = BuildTable(files_);
  if (!built.ok()) return Prefixed(dir_, built.status());
  const Table& table = *built;
  layout_ = DetectLayout(table);
  if (layout_ == CheckpointLayout::kOriginal && config_.storage != ExpertStorage::kMxfp4) {
    return absl::DataLossError(absl::StrCat(dir_,
                                            ": the tensors have OpenAI's names, whose experts are "
                                            "MXFP4, but config.json has no quantization_config"));
  }
  const absl::Status inventory = CheckInventory(table, files_, FileTensors(config_, layout_));
  if (!inventory.ok()) return Prefixed(dir_, inventory);
  for (const ModelTensor& tensor : ModelTensors(config_)) {
    const bool is_original = layout_ == CheckpointLayout::kOriginal;
    const Entry& entry = table.at(is_original ? tensor.original_name : tensor.name);
    const int64_t row_bytes = tensor.bytes() / tensor.shape[0];
    const int64_t skipped = is_original ? tensor.original_row * row_bytes : 0;
    places_[tensor.name] = {.file = entry.file,
                            .offset = files_[entry.file].data_begin + entry.tensor->begin + skipped,
                            .bytes = tensor.bytes()};
  }
  return absl::OkStatus();
}

// Asks a sample from the middle of every expert's matrices: after any further training their values
// have all their bits, in an adapter's layers at least.
absl::StatusOr<bool> Checkpoint::HasMxfp4Values() {
  ModelConfig packed = config_;
  packed.storage = ExpertStorage::kMxfp4;
  if (!packed.Validate().ok()) return false;  // Its sizes have no blocks.
  std::array<uint16_t, kDigestSampleBytes / 2> sample;
  const std::span<std::byte> bytes = std::as_writable_bytes(std::span(sample));
  for (const ModelTensor& tensor : ModelTensors(config_)) {
    if (tensor.kind != TensorKind::kGateUpWeight && tensor.kind != TensorKind::kDownWeight)
      continue;
    const int64_t expert_bytes = tensor.bytes_per_expert();
    const int64_t middle = expert_bytes / 4 * 2;
    for (int64_t expert = 0; expert < tensor.shape[0]; ++expert) {
      RETURN_IF_ERROR(Read(tensor.name, expert * expert_bytes + middle, bytes));
      bytes_read_by_open_ += std::ssize(bytes);
      if (!LooksLikeMxfp4(sample)) return false;
    }
  }
  return true;
}

absl::Status Checkpoint::Read(absl::string_view tensor,
                              int64_t offset,
                              std::span<std::byte> out) const {
  const auto it = places_.find(tensor);
  CHECK(it != places_.end());
  const Place& place = it->second;
  CHECK(offset >= 0 && offset + std::ssize(out) <= place.bytes);
  return files_[place.file].reader.ReadAt(place.offset + offset, out);
}

int64_t Checkpoint::num_tensors() const {
  int64_t count = 0;
  for (const CheckpointFile& file : files_) count += std::ssize(file.tensors);
  return count;
}

int64_t Checkpoint::tensor_bytes() const {
  int64_t bytes = 0;
  for (const CheckpointFile& file : files_) bytes += file.reader.bytes() - file.data_begin;
  return bytes;
}

}  // namespace shoal
