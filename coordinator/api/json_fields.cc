#include "coordinator/api/json_fields.h"

#include <limits>

#include "coordinator/text/json_text.h"
#include "coordinator/text/utf8.h"

namespace shoal {
namespace {

using nlohmann::ordered_json;

constexpr size_t kMaxShownBytes = 64;

absl::Status Mismatch(absl::string_view path, absl::string_view wanted, const ordered_json& value) {
  const absl::string_view name = path.empty() ? "the body" : path;
  return BadField(path, absl::StrCat(name, " must be ", wanted, ", not ", ShownJson(value)));
}

}  // namespace

std::string ShownJson(const ordered_json& value) {
  if (value.is_object()) return "an object";
  if (value.is_array()) return "a list";
  return ShownWord(CompactJson(value));
}

std::string ShownWord(absl::string_view word) {
  if (word.size() <= kMaxShownBytes) return std::string(word);
  const size_t whole = ValidUtf8Prefix(word.substr(0, kMaxShownBytes));
  return absl::StrCat(word.substr(0, whole), "...");
}

absl::StatusOr<JsonFields> JsonFields::Of(const Json& value, std::string path) {
  if (!value.is_object()) return Mismatch(path, "an object", value);
  return JsonFields(&value, std::move(path));
}

std::string JsonFields::PathOf(absl::string_view key) const {
  return path_.empty() ? std::string(key) : absl::StrCat(path_, ".", key);
}

absl::Status JsonFields::Bad(absl::string_view key, absl::string_view wanted) const {
  const Json* const value = Find(key);
  return Mismatch(PathOf(key), wanted, value == nullptr ? Json() : *value);
}

const JsonFields::Json* JsonFields::Find(absl::string_view key) const {
  const auto at = value_->find(std::string(key));
  return at == value_->end() || at->is_null() ? nullptr : &*at;
}

absl::StatusOr<std::optional<std::string>> JsonFields::Text(absl::string_view key) const {
  const Json* const value = Find(key);
  if (value == nullptr) return std::nullopt;
  if (value->is_string()) return value->get<std::string>();
  return Bad(key, "a string");
}

absl::StatusOr<std::string> JsonFields::NeededText(absl::string_view key) const {
  ASSIGN_OR_RETURN(std::optional<std::string> text, Text(key));
  if (text) return *std::move(text);
  return BadField(PathOf(key), absl::StrCat(PathOf(key), " is missing; it must be a string"));
}

absl::StatusOr<std::optional<bool>> JsonFields::Flag(absl::string_view key) const {
  const Json* const value = Find(key);
  if (value == nullptr) return std::nullopt;
  if (value->is_boolean()) return value->get<bool>();
  return Bad(key, "true or false");
}

absl::StatusOr<std::optional<double>> JsonFields::Number(absl::string_view key) const {
  const Json* const value = Find(key);
  if (value == nullptr) return std::nullopt;
  if (value->is_number()) return value->get<double>();
  return Bad(key, "a number");
}

absl::StatusOr<std::optional<int64_t>> JsonFields::Integer(absl::string_view key) const {
  const Json* const value = Find(key);
  if (value == nullptr) return std::nullopt;
  constexpr uint64_t kMax = std::numeric_limits<int64_t>::max();
  const bool fits =
      value->is_number_integer() && !(value->is_number_unsigned() && value->get<uint64_t>() > kMax);
  if (fits) return value->get<int64_t>();
  return Bad(key, "an integer of 64 bits");
}

absl::StatusOr<JsonFields> JsonFields::Object(absl::string_view key) const {
  static const Json* const empty = new Json(Json::object());
  const Json* const value = Find(key);
  return Of(value == nullptr ? *empty : *value, PathOf(key));
}

absl::StatusOr<const JsonFields::Json*> JsonFields::List(absl::string_view key) const {
  const Json* const value = Find(key);
  if (value == nullptr || value->is_array()) return value;
  return Bad(key, "a list");
}

}  // namespace shoal
