// The header of a safetensors file: bytes to a checked tensor table, and back. Pure.
//
// A file is 8 bytes of little-endian header length N, N bytes of JSON
// {name: {"dtype", "shape", "data_offsets": [begin, end)}, "__metadata__"?}, then the data, to
// which the offsets are relative. The data is covered without holes or overlaps.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"

namespace shoal {

// Bytes before the JSON.
inline constexpr int64_t kSafetensorsPrefixBytes = 8;
// The format's own limit; the largest released header has 19 KB.
inline constexpr int64_t kMaxSafetensorsHeaderBytes = 100'000'000;

struct StoredTensor {
  std::string name;
  std::string dtype;  // As spelled in the file: "BF16", "U8", "F32", ...
  std::vector<int64_t> shape;
  int64_t begin = 0;  // Bytes from the start of the data
  int64_t end = 0;

  friend bool operator==(const StoredTensor&, const StoredTensor&) = default;
};

// The length of the JSON, from the first bytes of a file that has `file_bytes`. kDataLoss if it
// cannot be, with the value and the limit.
absl::StatusOr<int64_t> ReadSafetensorsHeaderBytes(std::span<const std::byte> prefix,
                                                   int64_t file_bytes);

// The table, sorted by `begin`. `data_bytes` is what the file has behind the header. kDataLoss
// names the tensor and the value: bad JSON, duplicate names, unknown dtype, negative, overlapping,
// misaligned or out-of-range offsets, holes, sizes that disagree with the shape, and data that is
// shorter (a truncated file) or longer than the table says.
absl::StatusOr<std::vector<StoredTensor>> ParseSafetensorsHeader(absl::string_view json,
                                                                 int64_t data_bytes);

// Prefix and JSON, padded with spaces to a multiple of 8 bytes. Offsets are written as given.
std::string WriteSafetensorsHeader(std::span<const StoredTensor> tensors);

}  // namespace shoal
