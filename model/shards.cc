#include "model/shards.h"

#include <algorithm>
#include <tuple>
#include <utility>

#include "absl/status/status.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "nlohmann/json.hpp"

#include "base/check.h"
#include "base/status_macros.h"
#include "model/strict_json.h"

namespace shoal {
namespace {

constexpr char kIndexFile[] = "model.safetensors.index.json";

std::string FileName(size_t index, size_t count, CheckpointLayout layout) {
  if (count == 1) return "model.safetensors";
  return layout == CheckpointLayout::kOriginal
             ? absl::StrFormat("model--%05d-of-%05d.safetensors", index + 1, count)
             : absl::StrFormat("model-%05d-of-%05d.safetensors", index, count - 1);
}

// Sorts and fills in the offsets.
void LayOut(std::vector<StoredTensor>* tensors) {
  std::sort(tensors->begin(), tensors->end(), [](const StoredTensor& a, const StoredTensor& b) {
    return std::tuple(a.dtype != "BF16", a.name) < std::tuple(b.dtype != "BF16", b.name);
  });
  int64_t offset = 0;
  for (StoredTensor& tensor : *tensors) {
    tensor.begin = offset;
    tensor.end += offset;  // Was the size.
    offset = tensor.end;
  }
}

}  // namespace

std::vector<Shard> PlanShards(std::span<const FileTensor> tensors,
                              CheckpointLayout layout,
                              int64_t max_bytes) {
  CHECK_GT(max_bytes, 0);
  std::vector<Shard> shards(1);
  int64_t used = 0;
  for (const FileTensor& tensor : tensors) {
    if (used > 0 && used + tensor.bytes() > max_bytes) {
      shards.emplace_back();
      used = 0;
    }
    used += tensor.bytes();
    shards.back().tensors.push_back({.name = tensor.name,
                                     .dtype = std::string(StoredTypeName(tensor.type)),
                                     .shape = tensor.shape,
                                     .begin = 0,
                                     .end = tensor.bytes()});
  }
  for (size_t i = 0; i < shards.size(); ++i) {
    shards[i].file = FileName(i, shards.size(), layout);
    LayOut(&shards[i].tensors);
  }
  return shards;
}

std::string WriteShardIndex(std::span<const FileTensor> tensors, std::span<const Shard> shards) {
  std::map<absl::string_view, absl::string_view> file_of;
  int64_t bytes = 0;
  for (const Shard& shard : shards) {
    for (const StoredTensor& tensor : shard.tensors) {
      file_of[tensor.name] = shard.file;
      bytes += tensor.end - tensor.begin;
    }
  }
  // By hand, because the released file has its own spacing; no name needs escaping.
  std::string json =
      absl::StrCat("{\"metadata\": {\"total_size\": ", bytes, "}, \"weight_map\": {");
  absl::string_view separator = "";
  for (const FileTensor& tensor : tensors) {
    absl::StrAppend(&json, separator, "\"", tensor.name, "\": \"", file_of.at(tensor.name), "\"");
    separator = ", ";
  }
  return json + "}}";
}

absl::StatusOr<std::map<std::string, std::string>> ParseShardIndex(absl::string_view text) {
  ASSIGN_OR_RETURN(const nlohmann::json json, ParseStrictJson(text, kIndexFile));
  const auto map = json.find("weight_map");
  if (map == json.end() || !map->is_object() || map->empty()) {
    return absl::InvalidArgumentError(
        absl::StrCat(kIndexFile, ": weight_map, from tensors to file names, is missing or empty"));
  }
  std::map<std::string, std::string> files;
  for (const auto& [tensor, file] : map->items()) {
    const std::string name = file.is_string() ? file.get<std::string>() : "";
    if (!absl::EndsWith(name, ".safetensors") || absl::StrContains(name, '/')) {
      return absl::InvalidArgumentError(
          absl::StrCat(kIndexFile,
                       ": tensor ",
                       tensor,
                       " is said to be in ",
                       file.dump(-1, ' ', false, nlohmann::json::error_handler_t::replace),
                       "; the plain name of a .safetensors file in this folder is needed"));
    }
    files[tensor] = name;
  }
  return files;
}

}  // namespace shoal
