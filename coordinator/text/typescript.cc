#include "coordinator/text/typescript.h"

#include <algorithm>
#include <utility>
#include <vector>

#include "absl/container/flat_hash_set.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"

#include "base/status_macros.h"
#include "coordinator/text/json_text.h"

namespace shoal {
namespace {

using nlohmann::ordered_json;

// Null if `schema` is no object or has no such key.
const ordered_json* Get(const ordered_json& schema, const char* key) {
  if (!schema.is_object()) return nullptr;
  const auto at = schema.find(key);
  return at == schema.end() ? nullptr : &*at;
}

const std::string* GetString(const ordered_json& schema, const char* key) {
  const ordered_json* const value = Get(schema, key);
  return value != nullptr && value->is_string() ? &value->get_ref<const std::string&>() : nullptr;
}

const ordered_json* GetArray(const ordered_json& schema, const char* key) {
  const ordered_json* const value = Get(schema, key);
  return value != nullptr && value->is_array() ? value : nullptr;
}

std::vector<std::string> StringsOf(const ordered_json* array) {
  std::vector<std::string> strings;
  if (array == nullptr) return strings;
  for (const ordered_json& element : *array) {
    if (element.is_string()) strings.push_back(element.get<std::string>());
  }
  return strings;
}

bool IsEnum(const ordered_json& schema) {
  const ordered_json* const values = GetArray(schema, "enum");
  return values != nullptr && !values->empty();
}

bool IsNullable(const ordered_json& schema) {
  const ordered_json* const value = Get(schema, "nullable");
  return value != nullptr && value->is_boolean() && value->get<bool>();
}

// How a string default of an enum is written differs by place: a quirk to keep.
enum class EnumDefault { kBare, kAsJson };

// "default: ..." or nothing.
std::vector<std::string> DefaultNote(const ordered_json& schema, EnumDefault enum_default) {
  const ordered_json* const value = Get(schema, "default");
  if (value == nullptr) return {};
  if (!value->is_string()) return {absl::StrCat("default: ", CompactJson(*value))};
  const std::string& text = value->get_ref<const std::string&>();
  if (!IsEnum(schema)) return {absl::StrCat("default: \"", text, "\"")};
  if (enum_default == EnumDefault::kBare) return {absl::StrCat("default: ", text)};
  return {absl::StrCat("default: ", CompactJson(*value))};
}

void AppendNotes(const std::vector<std::string>& notes, std::string* out) {
  if (!notes.empty()) absl::StrAppend(out, " // ", absl::StrJoin(notes, " "));
}

std::string Type(const ordered_json& schema, const std::string& indent);

std::string TypeOrNull(const ordered_json& schema, const std::string& indent) {
  std::string type = Type(schema, indent);
  if (IsNullable(schema) && !absl::StrContains(type, "null")) type += " | null";
  return type;
}

std::string UnionType(const ordered_json& variants, const std::string& indent) {
  std::string out;
  for (const ordered_json& variant : variants) {
    absl::StrAppend(&out, "\n", indent, " | ", TypeOrNull(variant, indent + "   "));
    std::vector<std::string> notes;
    if (const std::string* description = GetString(variant, "description")) {
      notes.push_back(*description);
    }
    for (std::string& note : DefaultNote(variant, EnumDefault::kAsJson)) {
      notes.push_back(std::move(note));
    }
    AppendNotes(notes, &out);
  }
  return out;
}

// A property whose value is a `oneOf`: one line for each variant.
void AppendUnionProperty(const std::string& name,
                         const ordered_json& value,
                         const ordered_json& variants,
                         const std::string& indent,
                         std::string* out) {
  const std::string* const description = GetString(value, "description");
  const std::string* const first =
      variants.empty() ? nullptr : GetString(variants.front(), "description");
  const bool is_described = description != nullptr && !(first != nullptr && *first == *description);
  if (is_described) absl::StrAppend(out, indent, "// ", *description, "\n");
  for (const std::string& note : DefaultNote(value, EnumDefault::kBare)) {
    absl::StrAppend(out, indent, "// ", note, "\n");
  }
  absl::StrAppend(out, indent, name, ":\n");
  bool is_first = true;
  for (const ordered_json& variant : variants) {
    absl::StrAppend(out, indent, " | ", TypeOrNull(variant, indent + "   "));
    std::vector<std::string> notes;
    const std::string* const own = GetString(variant, "description");
    const bool repeats = (is_first && is_described) ||
                         (own != nullptr && description != nullptr && *own == *description);
    if (own != nullptr && !repeats) notes.push_back(*own);
    for (std::string& note : DefaultNote(variant, EnumDefault::kBare)) {
      notes.push_back(std::move(note));
    }
    AppendNotes(notes, out);
    absl::StrAppend(out, "\n");
    is_first = false;
  }
  absl::StrAppend(out, indent, ",\n");
}

// `name` has its question mark already.
void AppendProperty(const std::string& name,
                    const ordered_json& value,
                    const std::string& indent,
                    std::string* out) {
  if (const std::string* title = GetString(value, "title")) {
    absl::StrAppend(out, indent, "// ", *title, "\n", indent, "//\n");
  }
  const bool has_union = Get(value, "oneOf") != nullptr;
  const std::string* const description = GetString(value, "description");
  // Only its first line gets the slashes: a quirk to keep.
  if (!has_union && description != nullptr) {
    absl::StrAppend(out, indent, "// ", *description, "\n");
  }
  const ordered_json* const examples = GetArray(value, "examples");
  if (examples != nullptr && !examples->empty()) {
    absl::StrAppend(out, indent, "// Examples:\n");
    for (const std::string& example : StringsOf(examples)) {
      absl::StrAppend(out, indent, "// - \"", example, "\"\n");
    }
  }
  if (const ordered_json* variants = GetArray(value, "oneOf")) {
    AppendUnionProperty(name, value, *variants, indent, out);
    return;
  }
  absl::StrAppend(out, indent, name, ": ", TypeOrNull(value, indent + "    "), ",");
  if (!has_union) AppendNotes(DefaultNote(value, EnumDefault::kBare), out);
  absl::StrAppend(out, "\n");
}

std::string ObjectType(const ordered_json& schema, const std::string& indent) {
  std::string out;
  if (const std::string* description = GetString(schema, "description")) {
    absl::StrAppend(&out, indent, "// ", *description, "\n");
  }
  absl::StrAppend(&out, "{\n");
  const ordered_json* const properties = Get(schema, "properties");
  if (properties != nullptr && properties->is_object()) {
    const std::vector<std::string> names = StringsOf(GetArray(schema, "required"));
    const absl::flat_hash_set<std::string> required(names.begin(), names.end());
    for (const auto& [name, value] : properties->get_ref<const ordered_json::object_t&>()) {
      AppendProperty(required.contains(name) ? name : name + "?", value, indent, &out);
    }
  }
  absl::StrAppend(&out, indent, "}");
  return out;
}

std::string TypeOfName(const std::string& name,
                       const ordered_json& schema,
                       const std::string& indent) {
  if (name == "object") return ObjectType(schema, indent);
  if (name == "string") {
    std::vector<std::string> values = StringsOf(GetArray(schema, "enum"));
    if (values.empty()) return "string";
    for (std::string& value : values) value = absl::StrCat("\"", value, "\"");
    return absl::StrJoin(values, " | ");
  }
  if (name == "number" || name == "integer") return "number";
  if (name == "boolean") return "boolean";
  if (name == "array") {
    const ordered_json* const items = Get(schema, "items");
    if (items == nullptr) return "Array<any>";
    return Type(*items, indent) + "[]";
  }
  return "any";
}

// Recursion is bounded by kMaxClientJsonDepth.
std::string Type(const ordered_json& schema, const std::string& indent) {
  if (const ordered_json* variants = GetArray(schema, "oneOf")) {
    return UnionType(*variants, indent);
  }
  if (const ordered_json* names = GetArray(schema, "type")) {
    std::vector<std::string> types = StringsOf(names);
    std::replace(types.begin(), types.end(), std::string("integer"), std::string("number"));
    return types.empty() ? "any" : absl::StrJoin(types, " | ");
  }
  const std::string* const name = GetString(schema, "type");
  return name == nullptr ? "any" : TypeOfName(*name, schema, indent);
}

}  // namespace

absl::StatusOr<std::string> TypeScriptType(absl::string_view schema) {
  ASSIGN_OR_RETURN(const ordered_json tree, ParseJson(schema));
  return Type(tree, "");
}

}  // namespace shoal
