#include "coordinator/text/json_keywords.h"

#include <algorithm>
#include <iterator>

#include "absl/strings/str_cat.h"
#include "nlohmann/json.hpp"

namespace shoal {
namespace {

using Json = nlohmann::ordered_json;

template <typename... Parts>
absl::Status Refuse(absl::string_view place, const Parts&... parts) {
  return absl::InvalidArgumentError(absl::StrCat("JSON schema at ", place, ": ", parts...));
}

// Keywords of the drafts from 4 to 2020-12 that say which documents are valid and that no mask here
// can promise.
struct Unsupported {
  absl::string_view keyword;
  absl::string_view advice;
};

constexpr Unsupported kUnsupported[] = {
    {"not", "say what is allowed"},
    {"if", "use anyOf"},
    {"then", "use anyOf"},
    {"else", "use anyOf"},
    {"dependentRequired", "use anyOf"},
    {"dependentSchemas", "use anyOf"},
    {"dependencies", "use anyOf"},
    {"patternProperties", "name the properties, or use additionalProperties"},
    {"propertyNames", "name the properties"},
    {"minProperties", "use required"},
    {"maxProperties", "name the properties"},
    {"unevaluatedProperties", "use additionalProperties"},
    {"unevaluatedItems", "use items"},
    {"additionalItems", "use prefixItems and items"},
    {"contains", "use items"},
    {"minContains", "use items"},
    {"maxContains", "use items"},
    {"uniqueItems", "check the answer"},
    {"multipleOf", "check the answer"},
    {"pattern", "use enum, or check the answer"},
    {"$dynamicRef", "use $ref"},
    {"$recursiveRef", "use $ref"},
};

// Those that say nothing.
bool IsIdle(absl::string_view keyword, const Json& value) {
  if (keyword == "uniqueItems") return value == false;
  if (keyword == "minProperties") return value == 0;
  return false;
}

constexpr absl::string_view kObjectKeywords[] = {"properties", "required", "additionalProperties"};
constexpr absl::string_view kArrayKeywords[] = {"items", "prefixItems", "minItems", "maxItems"};
constexpr absl::string_view kStringKeywords[] = {"minLength", "maxLength"};
constexpr absl::string_view kNumberKeywords[] = {
    "minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum"};
constexpr absl::string_view kWholeKeywords[] = {"$ref", "anyOf", "oneOf", "allOf", "const", "enum"};

template <typename List>
bool Has(const List& list, absl::string_view keyword) {
  return std::find(std::begin(list), std::end(list), keyword) != std::end(list);
}

template <typename List>
bool HasAny(const Json& schema, const List& list) {
  return std::any_of(std::begin(list), std::end(list), [&](absl::string_view keyword) {
    return schema.contains(std::string(keyword));
  });
}

bool Restricts(absl::string_view keyword) {
  return keyword == "type" || Has(kObjectKeywords, keyword) || Has(kArrayKeywords, keyword) ||
         Has(kStringKeywords, keyword) || Has(kNumberKeywords, keyword) ||
         Has(kWholeKeywords, keyword);
}

}  // namespace

absl::Status CheckSchemaKeywords(const Json& schema, const std::string& place) {
  for (const auto& [key, value] : schema.items()) {
    for (const Unsupported& unsupported : kUnsupported) {
      if (key != unsupported.keyword || IsIdle(key, value)) continue;
      return Refuse(place, "`", key, "` is not supported: ", unsupported.advice);
    }
  }
  return absl::OkStatus();
}

absl::Status CheckStandsAlone(const Json& schema,
                              absl::string_view keyword,
                              const std::string& place) {
  const bool is_values = keyword == "const" || keyword == "enum";
  for (const auto& [key, value] : schema.items()) {
    if (key == keyword || !Restricts(key) || (is_values && key == "type")) continue;
    return Refuse(place,
                  "`",
                  key,
                  "` beside `",
                  keyword,
                  "` is not supported: put it into what `",
                  keyword,
                  "` names");
  }
  return absl::OkStatus();
}

absl::Status ReadSchemaTypes(const Json& schema,
                             const std::string& place,
                             std::vector<std::string>* types) {
  constexpr absl::string_view kTypes[] = {
      "null", "boolean", "object", "array", "number", "integer", "string"};
  const auto found = schema.find("type");
  if (found == schema.end()) return absl::OkStatus();
  const Json list = found->is_array() ? *found : Json::array({*found});
  for (const Json& type : list) {
    if (!type.is_string() || !Has(kTypes, type.get<std::string>())) {
      return Refuse(place,
                    "`type` must be one or a list of null, boolean, object, array, number, integer "
                    "and string");
    }
    const auto name = type.get<std::string>();
    if (!Has(*types, name)) types->push_back(name);
  }
  if (types->empty()) return Refuse(place, "`type` is an empty list");
  return absl::OkStatus();
}

std::vector<std::string> TypesImplied(const Json& schema) {
  std::vector<std::string> types;
  if (HasAny(schema, kObjectKeywords)) types.emplace_back("object");
  if (HasAny(schema, kArrayKeywords)) types.emplace_back("array");
  if (HasAny(schema, kStringKeywords)) types.emplace_back("string");
  if (HasAny(schema, kNumberKeywords)) types.emplace_back("number");
  return types;
}

}  // namespace shoal
