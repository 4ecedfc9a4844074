#include "model/safetensors.h"

#include <algorithm>
#include <cstring>
#include <iterator>
#include <limits>
#include <optional>
#include <tuple>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "nlohmann/json.hpp"

#include "base/status_macros.h"
#include "model/strict_json.h"

namespace shoal {
namespace {

using Json = nlohmann::json;

struct ElementSize {
  const char* dtype;
  int64_t bytes;
};

constexpr ElementSize kElementSizes[] = {{"BOOL", 1},
                                         {"U8", 1},
                                         {"I8", 1},
                                         {"F8_E5M2", 1},
                                         {"F8_E4M3", 1},
                                         {"I16", 2},
                                         {"U16", 2},
                                         {"F16", 2},
                                         {"BF16", 2},
                                         {"I32", 4},
                                         {"U32", 4},
                                         {"F32", 4},
                                         {"I64", 8},
                                         {"U64", 8},
                                         {"F64", 8}};

template <typename... Parts>
absl::Status Bad(const Parts&... parts) {
  return absl::DataLossError(absl::StrCat(parts...));
}

// A JSON number that is a whole, non-negative int64.
std::optional<int64_t> ToSize(const Json& value) {
  if (!value.is_number_unsigned()) return std::nullopt;
  const uint64_t number = value.get<uint64_t>();
  if (number > static_cast<uint64_t>(std::numeric_limits<int64_t>::max())) return std::nullopt;
  return static_cast<int64_t>(number);
}

absl::StatusOr<int64_t> ElementBytes(absl::string_view name, const Json& dtype) {
  for (const ElementSize& size : kElementSizes) {
    if (dtype == size.dtype) return size.bytes;
  }
  return Bad("tensor ", name, ": unknown dtype ", dtype.dump(), "; BF16 and U8 are used here");
}

// The bytes that a tensor of this shape takes; also fills `out`.
absl::StatusOr<int64_t> ReadShape(absl::string_view name,
                                  const Json& shape,
                                  int64_t element_bytes,
                                  std::vector<int64_t>* out) {
  if (!shape.is_array()) return Bad("tensor ", name, ": shape is ", shape.dump(), ", not a list");
  int64_t bytes = element_bytes;
  for (const Json& extent : shape) {
    const std::optional<int64_t> value = ToSize(extent);
    if (!value || __builtin_mul_overflow(bytes, *value, &bytes)) {
      return Bad("tensor ", name, ": shape ", shape.dump(), " is not a list of sizes that fit");
    }
    out->push_back(*value);
  }
  return bytes;
}

absl::StatusOr<StoredTensor> ReadEntry(const std::string& name, const Json& entry) {
  static const Json kAbsent;
  if (!entry.is_object()) return Bad("tensor ", name, ": its entry is not an object");
  const auto field = [&](const char* key) -> const Json& {
    const auto it = entry.find(key);
    return it == entry.end() ? kAbsent : *it;
  };
  StoredTensor tensor{.name = name};
  ASSIGN_OR_RETURN(const int64_t element_bytes, ElementBytes(name, field("dtype")));
  tensor.dtype = field("dtype").get<std::string>();
  ASSIGN_OR_RETURN(const int64_t bytes,
                   ReadShape(name, field("shape"), element_bytes, &tensor.shape));
  const Json& offsets = field("data_offsets");
  const bool is_pair = offsets.is_array() && offsets.size() == 2;
  const std::optional<int64_t> begin = is_pair ? ToSize(offsets[0]) : std::nullopt;
  const std::optional<int64_t> end = is_pair ? ToSize(offsets[1]) : std::nullopt;
  if (!begin || !end || *begin > *end) {
    return Bad("tensor ",
               name,
               ": data_offsets ",
               offsets.dump(),
               "; [begin, end] with 0 <= begin <= end is needed");
  }
  if (*end - *begin != bytes) {
    return Bad("tensor ",
               name,
               ": data_offsets ",
               offsets.dump(),
               " span ",
               *end - *begin,
               " bytes; dtype ",
               tensor.dtype,
               " and shape ",
               field("shape").dump(),
               " need ",
               bytes);
  }
  if (*begin % element_bytes != 0) {
    return Bad("tensor ",
               name,
               ": begins at ",
               *begin,
               "; a multiple of its element's ",
               element_bytes,
               " bytes is needed");
  }
  tensor.begin = *begin;
  tensor.end = *end;
  return tensor;
}

// `tensors` sorted by begin: each begins where the one before ends, the last ends with the data.
absl::Status CheckCoverage(const std::vector<StoredTensor>& tensors, int64_t data_bytes) {
  int64_t covered = 0;
  const StoredTensor* before = nullptr;
  for (const StoredTensor& tensor : tensors) {
    if (tensor.end > data_bytes) {
      return Bad("tensor ",
                 tensor.name,
                 ": ends at byte ",
                 tensor.end,
                 " of the data, but the file has only ",
                 data_bytes,
                 ": it is truncated");
    }
    if (tensor.begin < covered) {
      return Bad("tensor ",
                 tensor.name,
                 ": begins at ",
                 tensor.begin,
                 " and overlaps ",
                 before->name,
                 ", which ends at ",
                 covered);
    }
    if (tensor.begin > covered) {
      return Bad("tensor ",
                 tensor.name,
                 ": begins at ",
                 tensor.begin,
                 ", which leaves a hole behind byte ",
                 covered);
    }
    covered = tensor.end;
    before = &tensor;
  }
  if (covered < data_bytes) {
    return Bad("the file has ", data_bytes, " bytes of data, but its tensors end at ", covered);
  }
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<int64_t> ReadSafetensorsHeaderBytes(std::span<const std::byte> prefix,
                                                   int64_t file_bytes) {
  if (prefix.size() < kSafetensorsPrefixBytes || file_bytes < kSafetensorsPrefixBytes) {
    return Bad("the file has ", file_bytes, " bytes; a safetensors file has at least 8");
  }
  uint64_t length = 0;
  for (size_t i = kSafetensorsPrefixBytes; i-- > 0;) {
    length = length << 8 | static_cast<uint64_t>(prefix[i]);
  }
  if (length > static_cast<uint64_t>(kMaxSafetensorsHeaderBytes)) {
    return Bad("the header claims ",
               length,
               " bytes; at most ",
               kMaxSafetensorsHeaderBytes,
               " are allowed");
  }
  if (length > static_cast<uint64_t>(file_bytes - kSafetensorsPrefixBytes)) {
    return Bad("the header claims ",
               length,
               " bytes, but the file has only ",
               file_bytes - kSafetensorsPrefixBytes,
               " behind its length: it is truncated or no safetensors file");
  }
  return static_cast<int64_t>(length);
}

absl::StatusOr<std::vector<StoredTensor>> ParseSafetensorsHeader(absl::string_view json,
                                                                 int64_t data_bytes) {
  absl::StatusOr<Json> header = ParseStrictJson(json, "the header");
  if (!header.ok()) return absl::DataLossError(header.status().message());
  std::vector<StoredTensor> tensors;
  for (const auto& [name, entry] : header->items()) {
    if (name == "__metadata__") continue;
    ASSIGN_OR_RETURN(StoredTensor tensor, ReadEntry(name, entry));
    tensors.push_back(std::move(tensor));
  }
  std::sort(tensors.begin(), tensors.end(), [](const StoredTensor& a, const StoredTensor& b) {
    return std::tie(a.begin, a.end, a.name) < std::tie(b.begin, b.end, b.name);
  });
  RETURN_IF_ERROR(CheckCoverage(tensors, data_bytes));
  return tensors;
}

std::string WriteSafetensorsHeader(std::span<const StoredTensor> tensors) {
  std::string json = "{";
  for (const StoredTensor& tensor : tensors) {
    absl::StrAppend(&json,
                    json.size() > 1 ? "," : "",
                    Json(tensor.name).dump(),
                    ":{\"dtype\":\"",
                    tensor.dtype,
                    "\",\"shape\":[",
                    absl::StrJoin(tensor.shape, ","),
                    "],\"data_offsets\":[",
                    tensor.begin,
                    ",",
                    tensor.end,
                    "]}");
  }
  json += "}";
  json.append((8 - json.size() % 8) % 8, ' ');
  std::string prefix(kSafetensorsPrefixBytes, '\0');
  for (size_t i = 0; i < prefix.size(); ++i) {
    prefix[i] = static_cast<char>(json.size() >> (8 * i) & 0xFF);
  }
  return prefix + json;
}

}  // namespace shoal
