// One object of a client's JSON, read field by field; refusals name the field by its whole path, as
// in messages[2].content[0].type. Included by .cc files only (see coordinator/text/json_text.h).
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <utility>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/string_view.h"
#include "nlohmann/json.hpp"

#include "base/status_macros.h"
#include "coordinator/api/errors.h"

namespace shoal {

class JsonFields {
 public:
  using Json = nlohmann::ordered_json;

  // `path` is empty for the body itself. `value` outlives this and its copies.
  static absl::StatusOr<JsonFields> Of(const Json& value, std::string path);

  const std::string& path() const { return path_; }

  std::string PathOf(absl::string_view key) const;

  const Json& json() const { return *value_; }

  // A missing field and null are the same: nullptr, nullopt, an empty object.
  const Json* Find(absl::string_view key) const;
  absl::StatusOr<std::optional<std::string>> Text(absl::string_view key) const;
  absl::StatusOr<std::string> NeededText(absl::string_view key) const;
  absl::StatusOr<std::optional<bool>> Flag(absl::string_view key) const;
  absl::StatusOr<std::optional<double>> Number(absl::string_view key) const;
  absl::StatusOr<std::optional<int64_t>> Integer(absl::string_view key) const;
  absl::StatusOr<JsonFields> Object(absl::string_view key) const;
  // kInvalidArgument if it is there but no list.
  absl::StatusOr<const Json*> List(absl::string_view key) const;

  // read(const JsonFields&) -> absl::Status, for each object of a list.
  template <typename Read>
  absl::Status ForEachObject(absl::string_view key, Read read) const {
    ASSIGN_OR_RETURN(const Json* list, List(key));
    if (list == nullptr) return absl::OkStatus();
    for (size_t i = 0; i < list->size(); ++i) {
      ASSIGN_OR_RETURN(const JsonFields fields,
                       Of((*list)[i], absl::StrCat(PathOf(key), "[", i, "]")));
      RETURN_IF_ERROR(read(fields));
    }
    return absl::OkStatus();
  }

  // "<path> must be <wanted>, not <the value, shortened>"
  absl::Status Bad(absl::string_view key, absl::string_view wanted) const;

 private:
  JsonFields(const Json* value, std::string path) : value_(value), path_(std::move(path)) {}

  const Json* value_;
  std::string path_;
};

// A client's value within a message: compact, and short.
std::string ShownJson(const nlohmann::ordered_json& value);
// A client's word likewise, without quotes.
std::string ShownWord(absl::string_view word);

}  // namespace shoal
