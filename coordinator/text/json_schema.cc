#include "coordinator/text/json_schema.h"

#include <algorithm>
#include <cmath>
#include <map>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_replace.h"
#include "absl/strings/str_split.h"
#include "nlohmann/json.hpp"

#include "base/status_macros.h"
#include "coordinator/text/json_graph_check.h"
#include "coordinator/text/json_keywords.h"
#include "coordinator/text/json_text.h"

namespace shoal {
namespace {

using Json = nlohmann::ordered_json;
using Index = JsonNode::Index;
using Kind = JsonNode::Kind;

// Of a schema in a schema: beyond, somebody is playing with our stack.
constexpr int kMaxSchemaDepth = 200;
constexpr int64_t kLargestInteger = 999'999'999'999'999'999;  // kMaxNumberDigits

template <typename... Parts>
absl::Status Refuse(absl::string_view place, const Parts&... parts) {
  return absl::InvalidArgumentError(absl::StrCat("JSON schema at ", place, ": ", parts...));
}

std::string Under(absl::string_view place, absl::string_view step) {
  return absl::StrCat(place, "/", absl::StrReplaceAll(step, {{"~", "~0"}, {"/", "~1"}}));
}

std::string Under(absl::string_view place, size_t index) {
  return absl::StrCat(place, "/", index);
}

bool IsOfType(const Json& value, absl::string_view type) {
  if (type == "integer" && value.is_number_float()) {
    return std::trunc(value.get<double>()) == value.get<double>();
  }
  return (type == "null" && value.is_null()) || (type == "boolean" && value.is_boolean()) ||
         (type == "string" && value.is_string()) || (type == "object" && value.is_object()) ||
         (type == "array" && value.is_array()) || (type == "number" && value.is_number()) ||
         (type == "integer" && value.is_number_integer());
}

class Compiler {
 public:
  explicit Compiler(const Json& document) : document_(document) {}

  absl::StatusOr<JsonGraph> Run() {
    ASSIGN_OR_RETURN(graph_.root, Compile(document_, "#", 0));
    RETURN_IF_ERROR(FinishJsonGraph([this](Index node) { return places_[node]; }, &graph_));
    return std::move(graph_);
  }

 private:
  // The node of the schema at `place`, which is made at most once: references to it share it.
  absl::StatusOr<Index> Compile(const Json& schema, const std::string& place, int depth);
  absl::Status Fill(const Json& schema, const std::string& place, int depth, Index node);
  absl::Status FillUnion(const Json& schema,
                         absl::string_view keyword,
                         const std::string& place,
                         int depth,
                         Index node);
  absl::Status FillReference(const Json& schema, const std::string& place, int depth, Index node);
  absl::Status FillLiterals(const Json& schema, const std::string& place, Index node);
  absl::Status FillTyped(const Json& schema, const std::string& place, int depth, Index node);
  absl::Status FillType(
      absl::string_view type, const Json& schema, const std::string& place, int depth, Index node);
  absl::Status FillObject(const Json& schema, const std::string& place, int depth, Index node);
  absl::Status AddRequired(const Json& schema, const std::string& place, Index node);
  absl::Status FillArray(const Json& schema, const std::string& place, int depth, Index node);
  absl::Status FillNumber(const Json& schema, const std::string& place, Index node);
  absl::Status ReadBound(const Json& schema,
                         const std::string& place,
                         const char* keyword,
                         const NumberRule& rule,
                         std::optional<int64_t>* bound);
  absl::Status ReadSizes(const Json& schema,
                         const std::string& place,
                         const char* least,
                         const char* most,
                         Index node);

  absl::StatusOr<Index> Add(absl::string_view place);
  absl::StatusOr<Index> AddLiteral(absl::string_view place, absl::string_view text);
  absl::StatusOr<Index> Anything();

  JsonNode& At(Index node) { return graph_.nodes[node]; }

  const Json& document_;
  JsonGraph graph_;
  std::vector<std::string> places_;  // By node
  std::map<std::string, Index> node_at_;
  std::optional<Index> anything_;
};

absl::StatusOr<Index> Compiler::Add(absl::string_view place) {
  if (graph_.nodes.size() >= kMaxSchemaNodes) {
    return Refuse(place, "the schema has more than ", kMaxSchemaNodes, " parts");
  }
  graph_.nodes.emplace_back();
  places_.emplace_back(place);
  return static_cast<Index>(graph_.nodes.size() - 1);
}

absl::StatusOr<Index> Compiler::AddLiteral(absl::string_view place, absl::string_view text) {
  ASSIGN_OR_RETURN(const Index node, Add(place));
  At(node).kind = Kind::kLiterals;
  At(node).literals.Insert(text, 0);
  return node;
}

absl::StatusOr<Index> Compiler::Anything() {
  if (anything_.has_value()) return *anything_;
  ASSIGN_OR_RETURN(const Index any, Add("#"));
  anything_ = any;
  for (const Kind kind : {Kind::kObject, Kind::kArray, Kind::kString, Kind::kNumber}) {
    ASSIGN_OR_RETURN(const Index node, Add("#"));
    At(node).kind = kind;
    if (kind == Kind::kObject) At(node).others = any;
    if (kind == Kind::kArray) At(node).items = any;
    At(any).alternatives.push_back(node);
  }
  ASSIGN_OR_RETURN(const Index words, Add("#"));
  At(words).kind = Kind::kLiterals;
  int32_t value = 0;
  for (const absl::string_view word : {"true", "false", "null"}) {
    At(words).literals.Insert(word, value++);
  }
  At(any).alternatives.push_back(words);
  return any;
}

absl::StatusOr<Index> Compiler::Compile(const Json& schema, const std::string& place, int depth) {
  if (const auto found = node_at_.find(place); found != node_at_.end()) return found->second;
  if (depth > kMaxSchemaDepth) {
    return Refuse(place.substr(0, 64), "schemas nest more than ", kMaxSchemaDepth, " deep");
  }
  ASSIGN_OR_RETURN(const Index node, Add(place));
  node_at_.emplace(place, node);
  if (schema.is_boolean()) {
    if (!schema.get<bool>()) return node;  // A union of nothing
    ASSIGN_OR_RETURN(const Index any, Anything());
    At(node).alternatives = {any};
    return node;
  }
  if (!schema.is_object()) return Refuse(place, "a schema must be an object or a boolean");
  RETURN_IF_ERROR(CheckSchemaKeywords(schema, place));
  const auto nullable = schema.find("nullable");
  if (nullable == schema.end() || *nullable != true) {
    RETURN_IF_ERROR(Fill(schema, place, depth, node));
    return node;
  }
  ASSIGN_OR_RETURN(const Index value, Add(place));
  RETURN_IF_ERROR(Fill(schema, place, depth, value));
  ASSIGN_OR_RETURN(const Index null, AddLiteral(place, "null"));
  At(node).alternatives = {value, null};
  return node;
}

absl::Status Compiler::Fill(const Json& schema, const std::string& place, int depth, Index node) {
  if (schema.contains("$ref")) return FillReference(schema, place, depth, node);
  for (const char* keyword : {"anyOf", "oneOf", "allOf"}) {
    if (schema.contains(keyword)) return FillUnion(schema, keyword, place, depth, node);
  }
  if (schema.contains("const") || schema.contains("enum")) {
    return FillLiterals(schema, place, node);
  }
  return FillTyped(schema, place, depth, node);
}

absl::Status Compiler::FillUnion(const Json& schema,
                                 absl::string_view keyword,
                                 const std::string& place,
                                 int depth,
                                 Index node) {
  RETURN_IF_ERROR(CheckStandsAlone(schema, keyword, place));
  const Json& list = schema[std::string(keyword)];
  const std::string list_place = Under(place, keyword);
  if (!list.is_array() || list.empty()) return Refuse(list_place, "must be a list of schemas");
  if (keyword == "allOf" && list.size() > 1) {
    return Refuse(place,
                  "`allOf` of ",
                  list.size(),
                  " schemas is not supported: write what they say together as one schema");
  }
  for (size_t i = 0; i < list.size(); ++i) {
    ASSIGN_OR_RETURN(const Index alternative, Compile(list[i], Under(list_place, i), depth + 1));
    At(node).alternatives.push_back(alternative);
  }
  return absl::OkStatus();
}

absl::Status Compiler::FillReference(const Json& schema,
                                     const std::string& place,
                                     int depth,
                                     Index node) {
  RETURN_IF_ERROR(CheckStandsAlone(schema, "$ref", place));
  if (!schema["$ref"].is_string()) return Refuse(Under(place, "$ref"), "must be a string");
  const std::string reference = schema["$ref"].get<std::string>();
  const absl::string_view shown = absl::string_view(reference).substr(0, 128);
  if (reference != "#" && !absl::StartsWith(reference, "#/")) {
    return Refuse(place,
                  "`$ref` to `",
                  shown,
                  "` is not supported: only places inside the schema, such as `#/$defs/name`");
  }
  const Json* target = &document_;
  const std::vector<std::string> steps = absl::StrSplit(reference, '/');
  for (size_t i = 1; i < steps.size(); ++i) {
    const std::string step = absl::StrReplaceAll(steps[i], {{"~1", "/"}, {"~0", "~"}});
    size_t index = 0;
    if (target->is_object() && target->contains(step)) {
      target = &(*target)[step];
    } else if (target->is_array() && absl::SimpleAtoi(step, &index) && index < target->size()) {
      target = &(*target)[index];
    } else {
      return Refuse(place, "`$ref` to `", shown, "`: there is no such place in the schema");
    }
  }
  ASSIGN_OR_RETURN(const Index alternative, Compile(*target, reference, depth + 1));
  At(node).alternatives = {alternative};
  return absl::OkStatus();
}

absl::Status Compiler::FillLiterals(const Json& schema, const std::string& place, Index node) {
  const char* const keyword = schema.contains("const") ? "const" : "enum";
  RETURN_IF_ERROR(CheckStandsAlone(schema, keyword, place));
  Json values = Json::array({schema[keyword]});
  if (absl::string_view(keyword) == "enum") {
    if (!schema["enum"].is_array() || schema["enum"].empty()) {
      return Refuse(Under(place, "enum"), "must be a list of values");
    }
    values = schema["enum"];
  }
  std::vector<std::string> types;
  RETURN_IF_ERROR(ReadSchemaTypes(schema, place, &types));
  At(node).kind = Kind::kLiterals;
  int32_t index = 0;
  for (const Json& value : values) {
    const bool fits =
        types.empty() || std::any_of(types.begin(), types.end(), [&](const std::string& type) {
          return IsOfType(value, type);
        });
    if (fits) At(node).literals.Insert(CompactJson(value), index++);
  }
  if (index == 0) At(node).kind = Kind::kUnion;  // Of nothing
  return absl::OkStatus();
}

absl::Status Compiler::FillTyped(const Json& schema,
                                 const std::string& place,
                                 int depth,
                                 Index node) {
  std::vector<std::string> types;
  RETURN_IF_ERROR(ReadSchemaTypes(schema, place, &types));
  if (types.empty()) types = TypesImplied(schema);
  if (types.empty()) {
    ASSIGN_OR_RETURN(const Index any, Anything());
    At(node).alternatives = {any};
    return absl::OkStatus();
  }
  if (types.size() == 1) return FillType(types[0], schema, place, depth, node);
  for (const std::string& type : types) {
    ASSIGN_OR_RETURN(const Index alternative, Add(place));
    RETURN_IF_ERROR(FillType(type, schema, place, depth, alternative));
    At(node).alternatives.push_back(alternative);
  }
  return absl::OkStatus();
}

absl::Status Compiler::FillType(
    absl::string_view type, const Json& schema, const std::string& place, int depth, Index node) {
  if (type == "object") return FillObject(schema, place, depth, node);
  if (type == "array") return FillArray(schema, place, depth, node);
  if (type == "string") {
    At(node).kind = Kind::kString;
    return ReadSizes(schema, place, "minLength", "maxLength", node);
  }
  if (type == "number" || type == "integer") {
    At(node).kind = Kind::kNumber;
    At(node).number.is_integer = type == "integer";
    return FillNumber(schema, place, node);
  }
  At(node).kind = Kind::kLiterals;
  if (type == "null") {
    At(node).literals.Insert("null", 0);
  } else {
    At(node).literals.Insert("true", 0);
    At(node).literals.Insert("false", 1);
  }
  return absl::OkStatus();
}

absl::Status Compiler::FillObject(const Json& schema,
                                  const std::string& place,
                                  int depth,
                                  Index node) {
  At(node).kind = Kind::kObject;
  const Json properties = schema.value("properties", Json::object());
  const std::string properties_place = Under(place, "properties");
  if (!properties.is_object()) return Refuse(properties_place, "must be an object");
  for (const auto& [name, value] : properties.items()) {
    ASSIGN_OR_RETURN(const Index child, Compile(value, Under(properties_place, name), depth + 1));
    const auto index = static_cast<int32_t>(At(node).properties.size());
    At(node).properties.push_back({.node = child, .is_required = false});
    At(node).names.Insert(CompactJson(name).substr(1), index);
  }
  if (schema.contains("additionalProperties")) {
    ASSIGN_OR_RETURN(
        const Index others,
        Compile(schema["additionalProperties"], Under(place, "additionalProperties"), depth + 1));
    if (schema["additionalProperties"] != false) At(node).others = others;
  } else if (properties.empty()) {
    ASSIGN_OR_RETURN(At(node).others, Anything());
  }
  return AddRequired(schema, place, node);
}

// A required property without a schema of its own is one of the others.
absl::Status Compiler::AddRequired(const Json& schema, const std::string& place, Index node) {
  const Json required = schema.value("required", Json::array());
  const std::string required_place = Under(place, "required");
  if (!required.is_array()) return Refuse(required_place, "must be a list of names");
  for (const Json& name : required) {
    if (!name.is_string()) return Refuse(required_place, "must be a list of names");
    const std::string written = CompactJson(name).substr(1);
    ByteTrie::Node at = ByteTrie::kRoot;
    for (size_t i = 0; i < written.size() && at != ByteTrie::kNowhere; ++i) {
      at = At(node).names.Step(at, static_cast<uint8_t>(written[i]));
    }
    if (at != ByteTrie::kNowhere && At(node).names.value(at) >= 0) {
      At(node).properties[static_cast<size_t>(At(node).names.value(at))].is_required = true;
      continue;
    }
    Index others = At(node).others;
    if (others == JsonNode::kNone && !schema.contains("additionalProperties")) {
      ASSIGN_OR_RETURN(others, Anything());
    }
    if (others == JsonNode::kNone) {
      return Refuse(required_place, "`", written.substr(0, 64), " is required and not allowed");
    }
    const auto index = static_cast<int32_t>(At(node).properties.size());
    At(node).properties.push_back({.node = others, .is_required = true});
    At(node).names.Insert(written, index);
  }
  return absl::OkStatus();
}

absl::Status Compiler::FillArray(const Json& schema,
                                 const std::string& place,
                                 int depth,
                                 Index node) {
  At(node).kind = Kind::kArray;
  RETURN_IF_ERROR(ReadSizes(schema, place, "minItems", "maxItems", node));
  const Json prefix = schema.value("prefixItems", Json::array());
  const std::string prefix_place = Under(place, "prefixItems");
  if (!prefix.is_array()) return Refuse(prefix_place, "must be a list of schemas");
  for (size_t i = 0; i < prefix.size(); ++i) {
    ASSIGN_OR_RETURN(const Index item, Compile(prefix[i], Under(prefix_place, i), depth + 1));
    At(node).prefix.push_back(item);
  }
  if (schema.contains("items")) {
    ASSIGN_OR_RETURN(const Index items, Compile(schema["items"], Under(place, "items"), depth + 1));
    At(node).items = items;
  } else {
    ASSIGN_OR_RETURN(At(node).items, Anything());
  }
  return absl::OkStatus();
}

absl::Status Compiler::ReadSizes(
    const Json& schema, const std::string& place, const char* least, const char* most, Index node) {
  for (const char* keyword : {least, most}) {
    if (!schema.contains(keyword)) continue;
    const Json& value = schema[keyword];
    const bool is_count = value.is_number() && value.get<double>() >= 0 &&
                          value.get<double>() <= 1e9 &&
                          std::trunc(value.get<double>()) == value.get<double>();
    if (!is_count) return Refuse(Under(place, keyword), "must be a count from 0 to 10^9");
    (keyword == least ? At(node).min_size : At(node).max_size) = value.get<uint32_t>();
  }
  return absl::OkStatus();
}

absl::Status Compiler::ReadBound(const Json& schema,
                                 const std::string& place,
                                 const char* keyword,
                                 const NumberRule& rule,
                                 std::optional<int64_t>* bound) {
  if (!schema.contains(keyword)) return absl::OkStatus();
  const Json& value = schema[keyword];
  if (!value.is_number()) return Refuse(Under(place, keyword), "must be a number");
  const bool is_least = absl::StrContains(absl::AsciiStrToLower(keyword), "minimum");
  const double unit = rule.is_integer ? 1.0 : 1e6;
  const double scaled = value.get<double>() * unit;
  const double limit = static_cast<double>(kLargestInteger);
  int64_t result = 0;
  if (std::abs(scaled) >= limit) {
    result = scaled > 0 ? kLargestInteger : -kLargestInteger;
    if (is_least == (scaled > 0)) return Refuse(Under(place, keyword), "must be within 10^18");
  } else if (value.is_number_integer() && rule.is_integer) {
    result = value.get<int64_t>();
  } else if (rule.is_integer) {
    result = static_cast<int64_t>(is_least ? std::ceil(scaled) : std::floor(scaled));
  } else {
    result = std::llround(scaled);
    if (std::abs(scaled - std::round(scaled)) > 1e-3) {
      return Refuse(Under(place, keyword), "has more than ", kBoundedDecimals, " decimals");
    }
  }
  const bool is_exclusive = absl::StartsWith(keyword, "exclusive");
  const bool is_hit = !rule.is_integer || value.get<double>() == static_cast<double>(result);
  if (is_exclusive && is_hit) result += is_least ? 1 : -1;
  if (bound->has_value()) result = is_least ? std::max(**bound, result) : std::min(**bound, result);
  *bound = result;
  return absl::OkStatus();
}

absl::Status Compiler::FillNumber(const Json& schema, const std::string& place, Index node) {
  const NumberRule rule = At(node).number;
  std::optional<int64_t> least;
  std::optional<int64_t> most;
  RETURN_IF_ERROR(ReadBound(schema, place, "minimum", rule, &least));
  RETURN_IF_ERROR(ReadBound(schema, place, "exclusiveMinimum", rule, &least));
  RETURN_IF_ERROR(ReadBound(schema, place, "maximum", rule, &most));
  RETURN_IF_ERROR(ReadBound(schema, place, "exclusiveMaximum", rule, &most));
  if (!least.has_value() && !most.has_value()) return absl::OkStatus();
  const NumberRule::Range range{.min = least.value_or(-kLargestInteger),
                                .max = most.value_or(kLargestInteger)};
  At(node).number.range = range;
  if (range.min > range.max) At(node).kind = Kind::kUnion;  // Of nothing
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<JsonGraph> CompileJsonSchema(absl::string_view schema) {
  if (schema.size() > kMaxSchemaBytes) {
    return absl::InvalidArgumentError(absl::StrCat(
        "a JSON schema must have at most ", kMaxSchemaBytes, " bytes: ", schema.size()));
  }
  const absl::StatusOr<Json> document = ParseJson(schema);
  if (!document.ok()) {
    return absl::InvalidArgumentError(absl::StrCat("JSON schema: ", document.status().message()));
  }
  return Compiler(*document).Run();
}

JsonGraph AnyJsonObject() {
  return *CompileJsonSchema(R"({"type":"object"})");
}

}  // namespace shoal
