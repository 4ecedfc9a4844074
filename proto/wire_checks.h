// What the conversions of proto/wire.cc and its neighbours share: lists of ids, and refusals that
// name field, value and rule.
#pragma once

#include <cmath>
#include <cstdint>
#include <limits>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/string_view.h"

#include "base/status_macros.h"
#include "proto/wire.h"

namespace shoal {

inline std::string Cut(absl::string_view text) {
  return std::string(text.substr(0, kMaxTextBytes));
}

// Protobuf's `string` must be UTF-8, or the receiver cannot parse the message at all; names come
// from flags and the operating system, so they are made to fit here.
inline std::string Printable(absl::string_view text) {
  std::string out = Cut(text);
  for (char& c : out) {
    if (static_cast<unsigned char>(c) >= 0x80) c = '?';
  }
  return out;
}

template <typename Ids, typename Repeated>
void SetIds(const Ids& ids, Repeated* out) {
  out->Reserve(static_cast<int>(ids.size()));
  for (const auto id : ids) out->Add(id.value);
}

template <typename T>
absl::Status Refused(absl::string_view field, const T& value, absl::string_view rule) {
  return absl::InvalidArgumentError(absl::StrCat(field, " must be ", rule, ": ", value));
}

template <typename T>
absl::Status CheckCount(absl::string_view field, T value) {
  if (value < 0) return Refused(field, value, "at least 0");
  return absl::OkStatus();
}

inline absl::Status CheckFinite(absl::string_view field, float value) {
  if (std::isfinite(value)) return absl::OkStatus();
  return Refused(field, value, "a number");
}

// Ids of at least `lowest`.
template <typename IdType, typename Repeated>
absl::Status GetIds(absl::string_view field,
                    const Repeated& ids,
                    typename IdType::Value lowest,
                    std::vector<IdType>* out) {
  out->reserve(static_cast<size_t>(ids.size()));
  for (const auto id : ids) {
    if (id < lowest) return Refused(field, id, absl::StrCat("at least ", lowest));
    out->push_back(IdType{id});
  }
  return absl::OkStatus();
}

template <typename IdType, typename Repeated>
absl::Status GetRisingIds(absl::string_view field, const Repeated& ids, std::vector<IdType>* out) {
  RETURN_IF_ERROR(GetIds(field, ids, 0, out));
  for (size_t i = 1; i < out->size(); ++i) {
    if ((*out)[i] <= (*out)[i - 1]) {
      return Refused(field, (*out)[i].value, absl::StrCat("above ", (*out)[i - 1].value));
    }
  }
  return absl::OkStatus();
}

inline absl::Status CheckText(absl::string_view field, const std::string& text) {
  if (text.size() <= kMaxTextBytes) return absl::OkStatus();
  return Refused(
      absl::StrCat(field, ".size"), text.size(), absl::StrCat("at most ", kMaxTextBytes));
}

inline absl::Status CheckSpan(absl::string_view field, int32_t first, int32_t count) {
  RETURN_IF_ERROR(CheckCount(absl::StrCat(field, ".first_position"), first));
  if (count <= 0) return Refused(absl::StrCat(field, ".num_positions"), count, "at least 1");
  if (count > std::numeric_limits<int32_t>::max() - first) {
    return Refused(absl::StrCat(field, ".num_positions"), count, "inside the positions");
  }
  return absl::OkStatus();
}

}  // namespace shoal
