#include "worker/load/digest.h"

#include <algorithm>
#include <array>
#include <cstddef>
#include <string_view>

#include "absl/strings/str_cat.h"

#include "base/prng.h"
#include "base/status_macros.h"
#include "model/config_writer.h"

namespace shoal {
namespace {

class Hash {
 public:
  void Add(std::string_view bytes) {
    // With its length in front, "ab" + "c" is not "a" + "bc".
    const std::string length = absl::StrCat(bytes.size(), ":");
    value_ = Fnv1a64(bytes, Fnv1a64(length, value_));
  }

  void Add(int64_t number) { Add(absl::StrCat(number)); }

  // FNV mixes its last bytes little, so the digest is its finalised form.
  std::string Digest() const { return absl::StrCat(absl::Hex(Mix64(value_), absl::kZeroPad16)); }

 private:
  uint64_t value_ = kFnvOffset;
};

}  // namespace

absl::StatusOr<std::string> CheckpointDigest(const ModelConfig& config,
                                             std::span<const CheckpointFile> files,
                                             int64_t* bytes_read) {
  Hash hash;
  hash.Add(WriteConfigJson(config, CheckpointLayout::kHuggingFace));
  for (const int32_t id : config.eos_token_ids) hash.Add(id);
  std::array<std::byte, kDigestSampleBytes> sample;
  for (const CheckpointFile& file : files) {
    hash.Add(file.reader.bytes());
    for (const StoredTensor& tensor : file.tensors) {
      hash.Add(tensor.name);
      hash.Add(tensor.dtype);
      for (const int64_t extent : tensor.shape) hash.Add(extent);
      hash.Add(tensor.begin);
      const int64_t bytes = tensor.end - tensor.begin;
      const int64_t count = std::min(bytes, kDigestSampleBytes);
      const std::span<std::byte> part = std::span(sample).first(static_cast<size_t>(count));
      RETURN_IF_ERROR(
          file.reader.ReadAt(file.data_begin + tensor.begin + (bytes - count) / 2, part));
      *bytes_read += count;
      hash.Add(std::string_view(reinterpret_cast<const char*>(part.data()), part.size()));
    }
  }
  return hash.Digest();
}

std::string SyntheticDigest(const ModelConfig& config) {
  Hash hash;
  hash.Add("synthetic");
  hash.Add(WriteConfigJson(config, CheckpointLayout::kHuggingFace));
  for (const int32_t id : config.eos_token_ids) hash.Add(id);
  return hash.Digest();
}

}  // namespace shoal
