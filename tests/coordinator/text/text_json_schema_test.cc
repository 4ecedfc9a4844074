// The schema compiler: what is accepted, what is refused by which words, and which documents
// follow.
#include <string>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"

#include "coordinator/text/grammar.h"
#include "coordinator/text/json_schema.h"

namespace shoal {
namespace {

using testing::HasSubstr;

JsonGraph Compiled(const std::string& schema) {
  absl::StatusOr<JsonGraph> graph = CompileJsonSchema(schema);
  EXPECT_TRUE(graph.ok()) << schema << ": " << graph.status();
  return *std::move(graph);
}

// Byte by byte and all at once must agree.
bool Accepts(const JsonGraph& graph, const std::string& document) {
  GrammarState whole(&graph);
  GrammarState bytes(&graph);
  const bool is_taken = whole.Advance(document) && whole.IsComplete();
  bool is_taken_bytewise = true;
  for (const char byte : document) {
    is_taken_bytewise = is_taken_bytewise && bytes.Advance(std::string(1, byte));
  }
  is_taken_bytewise = is_taken_bytewise && bytes.IsComplete();
  EXPECT_EQ(is_taken, is_taken_bytewise) << document;
  return is_taken;
}

struct DocumentCase {
  const char* name;
  const char* schema;
  std::vector<std::string> valid;
  std::vector<std::string> invalid;
};

class DocumentTest : public testing::TestWithParam<DocumentCase> {};

TEST_P(DocumentTest, FollowsTheSchema) {
  const JsonGraph graph = Compiled(GetParam().schema);

  for (const std::string& document : GetParam().valid)
    EXPECT_TRUE(Accepts(graph, document)) << document;
  for (const std::string& document : GetParam().invalid)
    EXPECT_FALSE(Accepts(graph, document)) << document;
}

const DocumentCase kDocuments[] = {
    {"Object",
     R"({"type":"object","properties":{"a":{"type":"integer"},"b":{"type":"string"},"c":{}},
         "required":["b"]})",
     {R"({"a":1,"b":"x","c":null})",
      R"({"b":""})",
      R"({"a":-7, "b": "x"})",
      R"({"b":"x","c":[1,{"z":2}]})"},
     {R"({})",
      R"({"a":1})",
      R"({"b":"x","a":1})",
      R"({"b":"x","d":1})",
      R"({"b":"x",})",
      R"({ "b":"x"})",
      R"({"b":"x"} )",
      R"({"b":"x","b":"y"})",
      R"({"b":  "x"})",
      "{\"b\":\n\"x\"}"}},
    {"OtherProperties",
     R"({"type":"object","properties":{"id":{"type":"integer"}},
         "additionalProperties":{"type":"boolean"}})",
     {R"({})", R"({"id":1,"x":true})", R"({"idx":true,"i":false,"":true})", R"({"é":true})"},
     {R"({"id":true})", R"({"x":true,"id":1})", R"({"x":1})", R"({"i\u0064":true})"}},
    {"AnyObject",
     R"({"type":"object"})",
     {"{}", R"({"a":[],"b":{"c":"d"}})"},
     {"[]", "1", "", "{}{}"}},
    {"RequiredWithoutASchema",
     R"({"type":"object","properties":{"a":{"type":"null"}},"required":["z"]})",
     {R"({"a":null,"z":3})", R"({"z":"x"})"},
     {R"({"a":null})", "{}"}},
    {"Array",
     R"({"type":"array","items":{"type":"boolean"},"minItems":1,"maxItems":3})",
     {"[true]", "[true,false,true]", "[true, false]"},
     {"[]", "[true,true,true,true]", "[1]", "[true,]", "[,true]"}},
    {"Tuple",
     R"({"type":"array","prefixItems":[{"type":"integer"},{"type":"string"}],"items":false,
         "minItems":2})",
     {R"([1,"a"])"},
     {"[1]", R"(["a",1])", R"([1,"a",2])"}},
    {"Strings",
     R"({"type":"string","minLength":2,"maxLength":3})",
     {R"("ab")", R"("\n\t")", R"("\u00E9€")", R"("😀😀😀")", R"("\ud83d\ude00x")", R"("\"\\")"},
     {R"("a")", R"("abcd")", R"("\n")", R"("\ud83d\ude00")", R"("ab)", "ab"}},
    {"AnyString",
     R"({"type":"string"})",
     {R"("")", R"("\u00e9\/\b")", R"("\ud83d\ude00")", R"("\u0000")", "\"\x7f\""},
     {"\"\n\"",
      "\"\x1f\"",
      R"("\x")",
      R"("\u12g4")",
      R"("\ud83d")",
      R"("\ud83dx")",
      R"("\ude00")",
      R"("\ud83d\u0041")",
      "\"\xff\"",
      "\"\xc3\"",
      "\"\xed\xa0\x80\"",
      "\"\xc0\xaf\""}},
    {"Numbers",
     R"({"type":"number"})",
     {"0", "-0", "12", "-3.25", "1e5", "1E-07", "2.5e+10", "999999999999999999"},
     {"", "-", "01", "1.", ".5", "+1", "1e", "1e+", "0x1", "1e123", "NaN", "1234567890123456789"}},
    {"Integers", R"({"type":"integer"})", {"0", "-12", "7"}, {"1.0", "1e3", "00", "-"}},
    {"IntegersFrom3To117",
     R"({"type":"integer","minimum":3,"maximum":117})",
     {"3", "9", "10", "99", "100", "117"},
     {"2", "0", "1", "118", "-3", "1170", "03"}},
    {"IntegersAroundZero",
     R"({"type":"integer","minimum":-12,"exclusiveMaximum":5})",
     {"-12", "-1", "0", "4"},
     {"-13", "5", "-2000", "12"}},
    {"IntegersBelow",
     R"({"type":"integer","maximum":-100})",
     {"-100", "-999999999999999999"},
     {"-99", "-1", "0", "100"}},
    {"BoundedNumbers",
     R"({"type":"number","minimum":0,"maximum":1})",
     {"0", "1", "0.5", "0.000001", "1.0", "1.000000"},
     {"1.1", "-0.1", "2", "1.000001", "1e-1", "0.0000001", "-0"}},
    {"ExclusiveNumbers",
     R"({"type":"number","exclusiveMinimum":-1.5,"exclusiveMaximum":10.25})",
     {"-1.49", "10.2", "10.249999", "0", "-1.499999", "10"},
     {"-1.5", "-1.50", "10.25", "11", "-2"}},
    {"Enum",
     R"({"enum":["a","ab",1,12,true,null,{"k":[1]},"é\n"]})",
     {R"("a")", R"("ab")", "1", "12", "true", "null", R"({"k":[1]})", R"("é\n")"},
     {R"("abc")", "2", "123", "false", R"({"k": [1]})", "1.0"}},
    {"EnumOfAType", R"({"type":"string","enum":["x",1,null]})", {R"("x")"}, {"1", "null"}},
    {"Const", R"({"const":"only"})", {R"("only")"}, {R"("other")", R"("onl")"}},
    {"AnyOf",
     R"({"anyOf":[{"type":"object","properties":{"a":{"type":"integer"}},"required":["a"]},
                  {"type":"object","properties":{"a":{"type":"string"},"b":{"type":"null"}},
                      "required":["a","b"]},
                  {"type":"null"}]})",
     {R"({"a":1})", R"({"a":"x","b":null})", "null"},
     {R"({"a":1,"b":null})", R"({"a":"x"})", "nul", "{}"}},
    {"TypeList",
     R"({"type":["integer","string","null"],"maxLength":1})",
     {"1", R"("x")", "null"},
     {"1.5", R"("xy")", "true"}},
    {"Nullable", R"({"type":"integer","nullable":true})", {"1", "null"}, {R"("x")"}},
    {"AllOfOne",
     R"({"allOf":[{"type":"integer"}],"description":"pydantic writes it so"})",
     {"3"},
     {"null"}},
    {"Recursion",
     R"({"$defs":{"tree":{"type":"object","properties":{"v":{"type":"integer"},
          "kids":{"type":"array","items":{"$ref":"#/$defs/tree"}}},"required":["v"]}},
              "$ref":"#/$defs/tree"})",
     {R"({"v":1})", R"({"v":1,"kids":[]})", R"({"v":1,"kids":[{"v":2,"kids":[{"v":3}]},{"v":4}]})"},
     {R"({"v":1,"kids":[{}]})", R"({"kids":[]})"}},
    {"RecursionAtTheRoot",
     R"({"anyOf":[{"type":"null"},{"type":"array","items":{"$ref":"#"}}]})",
     {"null", "[]", "[null,[null,[]]]"},
     {"[1]", "[null"}},
    {"EscapedPointers",
     R"({"$defs":{"a/b~c":{"type":"boolean"}},"$ref":"#/$defs/a~1b~0c"})",
     {"true"},
     {"1"}},
    {"Anything",
     "{}",
     {"1", "[]", "{}", R"("x")", "null", R"({"a":{"b":[1,2,{"c":null}]}})"},
     {"", "x", "[1,]"}},
    {"True", "true", {"1", "{}"}, {"."}},
    {"ImpossibleParts",
     R"({"type":"object","properties":{"a":false,"b":{"type":"integer","minimum":2,"maximum":1},
         "c":{"type":"null"}}})",
     {R"({"c":null})", "{}"},
     {R"({"a":1})", R"({"b":1})", R"({"b":2})"}},
    {"NamesThatNeedEscapes",
     R"({"type":"object","properties":{"a\"b":{"type":"null"},"c\\":{"type":"null"}}})",
     {R"({"a\"b":null,"c\\":null})"},
     {R"({"a":null})"}},
    {"Annotations",
     R"({"$schema":"x","$id":"y","title":"t","description":"d","default":1,"examples":[1],
         "format":"date",
         "x-mine":{"not":1},"type":"string","deprecated":true,"uniqueItems":false})",
     {R"("any text")"},
     {"1"}},
};

INSTANTIATE_TEST_SUITE_P(All,
                         DocumentTest,
                         testing::ValuesIn(kDocuments),
                         [](const testing::TestParamInfo<DocumentCase>& param) {
                           return std::string(param.param.name);
                         });

TEST(JsonSchemaTest, NestsNoDeeperThanItsLimit) {
  const JsonGraph graph = Compiled("true");
  const auto nested = [](size_t depth) {
    return std::string(depth, '[') + std::string(depth, ']');
  };

  EXPECT_TRUE(Accepts(graph, nested(kMaxJsonDepth)));
  EXPECT_FALSE(Accepts(graph, nested(kMaxJsonDepth + 1)));
}

struct RefusalCase {
  const char* name;
  std::string schema;
  std::vector<std::string> words;
};

class RefusalTest : public testing::TestWithParam<RefusalCase> {};

TEST_P(RefusalTest, NamesWhatAndWhere) {
  const absl::StatusOr<JsonGraph> graph = CompileJsonSchema(GetParam().schema);

  ASSERT_EQ(graph.status().code(), absl::StatusCode::kInvalidArgument) << GetParam().schema;
  for (const std::string& word : GetParam().words) {
    EXPECT_THAT(std::string(graph.status().message()), HasSubstr(word));
  }
}

std::string Deep(size_t depth) {
  std::string schema = "{}";
  for (size_t i = 0; i < depth; ++i) schema = R"({"items":)" + schema + "}";
  return schema;
}

std::string Wide(size_t count) {
  std::string schema = R"({"properties":{)";
  for (size_t i = 0; i < count; ++i)
    schema += (i == 0 ? "\"p" : ",\"p") + std::to_string(i) + "\":{}";
  return schema + "}}";
}

std::string Alternatives(size_t count) {
  std::string schema = R"({"anyOf":[)";
  for (size_t i = 0; i < count; ++i)
    schema += (i == 0 ? "{\"minLength\":" : ",{\"minLength\":") + std::to_string(i) + "}";
  return schema + "]}";
}

std::string Chain(size_t length) {
  std::string schema = R"({"$ref":"#/$defs/0","$defs":{)";
  for (size_t i = 0; i < length; ++i) {
    schema += "\"" + std::to_string(i) +
              "\":{\"type\":\"array\",\"minItems\":1,\"items\":{\"$ref\":\"#/$defs/" +
              std::to_string(i + 1) + "\"}},";
  }
  return schema + "\"" + std::to_string(length) + "\":{}}}";
}

const RefusalCase kRefusals[] = {
    {"NotJson", R"({"type":)", {"JSON schema: ", "byte"}},
    {"NotASchema", "3", {"at #", "object or a boolean"}},
    {"Not", R"({"properties":{"a":{"not":{"type":"null"}}}})", {"at #/properties/a", "`not`"}},
    {"If", R"({"type":"object","if":{},"then":{}})", {"`if`"}},
    {"PatternProperties", R"({"patternProperties":{"^a":{}}})", {"`patternProperties`"}},
    {"Dependent", R"({"items":{"dependentRequired":{}}})", {"#/items", "`dependentRequired`"}},
    {"Unevaluated", R"({"unevaluatedProperties":false})", {"`unevaluatedProperties`"}},
    {"Pattern", R"({"type":"string","pattern":"^a$"})", {"`pattern`"}},
    {"MultipleOf", R"({"type":"integer","multipleOf":5})", {"`multipleOf`"}},
    {"UniqueItems", R"({"type":"array","uniqueItems":true})", {"`uniqueItems`"}},
    {"Contains", R"({"type":"array","contains":{}})", {"`contains`"}},
    {"PropertyNames", R"({"propertyNames":{}})", {"`propertyNames`"}},
    {"AllOfTwo", R"({"allOf":[{},{}]})", {"`allOf` of 2"}},
    {"BesideAnyOf", R"({"type":"object","anyOf":[{}]})", {"`type` beside `anyOf`"}},
    {"BesideRef",
     R"({"$ref":"#/$defs/a","required":["x"],"$defs":{"a":{}}})",
     {"`required` beside `$ref`"}},
    {"BesideEnum", R"({"enum":[1,2],"minimum":2})", {"`minimum` beside `enum`"}},
    {"RemoteRef",
     R"({"$ref":"https://example.com/s.json"})",
     {"`$ref` to `https://example.com/s.json`"}},
    {"LostRef", R"({"items":{"$ref":"#/$defs/none"}})", {"#/items", "no such place"}},
    {"DynamicRef", R"({"$dynamicRef":"#x"})", {"`$dynamicRef`"}},
    {"CycleOfRefs",
     R"({"$ref":"#/$defs/a","$defs":{"a":{"$ref":"#/$defs/b"},"b":{"$ref":"#/$defs/a"}}})",
     {"#/$defs/", "without progress"}},
    {"CycleToItself", R"({"$ref":"#"})", {"without progress"}},
    {"CycleThroughAnyOf", R"({"anyOf":[{"type":"null"},{"$ref":"#"}]})", {"without progress"}},
    {"EndlessObject",
     R"({"type":"object","properties":{"next":{"$ref":"#"}},"required":["next"]})",
     {"no document"}},
    {"EndlessArray", R"({"type":"array","items":{"$ref":"#"},"minItems":1})", {"no document"}},
    {"TooDeepADocument", Chain(80), {"no document", "64 deep"}},
    {"False", "false", {"no document"}},
    {"EmptyRange", R"({"type":"integer","minimum":3,"maximum":2})", {"no document"}},
    {"EmptyString", R"({"type":"string","minLength":3,"maxLength":2})", {"no document"}},
    {"RequiredButForbidden",
     R"({"type":"object","additionalProperties":false,"required":["a"]})",
     {"#/required", "`a"}},
    {"UnknownType", R"({"type":"strin"})", {"`type` must be"}},
    {"BadProperties", R"({"properties":[]})", {"#/properties", "must be an object"}},
    {"BadRequired", R"({"required":"a"})", {"#/required", "list of names"}},
    {"BadEnum", R"({"enum":[]})", {"#/enum"}},
    {"BadAnyOf", R"({"anyOf":{}})", {"#/anyOf"}},
    {"BadSize", R"({"type":"string","maxLength":-1})", {"#/maxLength"}},
    {"BadBound", R"({"type":"number","minimum":"1"})", {"#/minimum"}},
    {"OldExclusive", R"({"type":"number","exclusiveMinimum":true})", {"#/exclusiveMinimum"}},
    {"FineBound", R"({"type":"number","maximum":0.00000001})", {"#/maximum", "decimals"}},
    {"NestedTooDeep", Deep(300), {"128"}},
    {"TooManyParts", Wide(5001), {"5000 parts"}},
    {"TooManyAlternatives", Alternatives(65), {"64 alternatives"}},
    {"TooLong", "{\"title\":\"" + std::string(65536, 'x') + "\"}", {"65536 bytes"}},
};

INSTANTIATE_TEST_SUITE_P(All,
                         RefusalTest,
                         testing::ValuesIn(kRefusals),
                         [](const testing::TestParamInfo<RefusalCase>& param) {
                           return std::string(param.param.name);
                         });

}  // namespace
}  // namespace shoal
