// What tokenizer.json may say, and what is refused by name.
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"

#include "coordinator/text/tokenizer.h"
#include "tests/coordinator/text/tokenizer_json.h"

namespace shoal {
namespace {

using nlohmann::ordered_json;
using testing::HasSubstr;

ordered_json SmallTree() {
  return TokenizerTree(MakeTestVocabulary({{"a", "b"}, {"ab", "c"}}, {"<|start|>", "<|end|>"}),
                       PairForm::kList);
}

std::string Refusal(const std::string& json) {
  const absl::Status status = Tokenizer::Parse(json).status();
  return std::string(status.message());
}

struct Fault {
  const char* name;
  std::function<void(ordered_json*)> plant;
  const char* expected;  // In the refusal
};

class FaultTest : public testing::TestWithParam<Fault> {};

TEST_P(FaultTest, IsRefusedByName) {
  ordered_json tree = SmallTree();
  GetParam().plant(&tree);
  EXPECT_THAT(Refusal(tree.dump()), HasSubstr(GetParam().expected));
}

ordered_json& Model(ordered_json* tree) {
  return (*tree)["model"];
}

ordered_json& Step(ordered_json* tree, size_t index) {
  return (*tree)["pre_tokenizer"]["pretokenizers"][index];
}

const Fault kFaults[] = {
    {"ModelType", [](ordered_json* t) { Model(t)["type"] = "WordPiece"; }, "WordPiece"},
    {"NoModel", [](ordered_json* t) { t->erase("model"); }, "BPE"},
    {"Dropout", [](ordered_json* t) { Model(t)["dropout"] = 0.1; }, "dropout 0.1"},
    {"UnknownToken", [](ordered_json* t) { Model(t)["unk_token"] = "<unk>"; }, "<unk>"},
    {"Prefix", [](ordered_json* t) { Model(t)["continuing_subword_prefix"] = "##"; }, "##"},
    {"ByteFallback", [](ordered_json* t) { Model(t)["byte_fallback"] = true; }, "byte_fallback"},
    {"Normalizer",
     [](ordered_json* t) {
       (*t)["normalizer"] = {{"type", "NFC"}};
     },
     "NFC"},
    {"NoPreTokenizer", [](ordered_json* t) { (*t)["pre_tokenizer"] = nullptr; }, "pre_tokenizer"},
    {"PreTokenizer",
     [](ordered_json* t) {
       (*t)["pre_tokenizer"] = {{"type", "Whitespace"}};
     },
     "Whitespace"},
    {"SplitPattern", [](ordered_json* t) { Step(t, 0)["pattern"]["Regex"] = "\\w+"; }, "\\w+"},
    {"SplitBehavior", [](ordered_json* t) { Step(t, 0)["behavior"] = "Removed"; }, "Removed"},
    {"SplitInvert", [](ordered_json* t) { Step(t, 0)["invert"] = true; }, "invert"},
    {"PrefixSpace", [](ordered_json* t) { Step(t, 1)["add_prefix_space"] = true; }, "prefix_space"},
    {"TwoSplits", [](ordered_json* t) { Step(t, 1).erase("use_regex"); }, "use_regex"},
    {"PostProcessor",
     [](ordered_json* t) {
       (*t)["post_processor"] = {{"type", "TemplateProcessing"}};
     },
     "TemplateProcessing"},
    {"Decoder", [](ordered_json* t) { (*t)["decoder"]["type"] = "Metaspace"; }, "Metaspace"},
    {"NoVocabulary", [](ordered_json* t) { Model(t).erase("vocab"); }, "model.vocab is missing"},
    {"VocabularyList",
     [](ordered_json* t) {
       Model(t)["vocab"] = {"a", "b"};
     },
     "model.vocab is missing"},
    {"NestedVocabulary",
     [](ordered_json* t) { Model(t)["vocab"]["x"] = ordered_json::object(); },
     "model.vocab"},
    {"NoMerges", [](ordered_json* t) { Model(t).erase("merges"); }, "model.merges is missing"},
    {"NegativeId", [](ordered_json* t) { Model(t)["vocab"]["a"] = -1; }, "\"a\""},
    {"HugeId", [](ordered_json* t) { Model(t)["vocab"]["a"] = 2'000'000'000; }, "2000000000"},
    {"TextId", [](ordered_json* t) { Model(t)["vocab"]["a"] = "7"; }, "\"a\""},
    {"EqualIds", [](ordered_json* t) { Model(t)["vocab"]["a"] = 98; }, "id 98"},
    {"NotByteLevel", [](ordered_json* t) { Model(t)["vocab"]["\u4E2D"] = 258; }, "\u4E2D"},
    {"SpaceInToken", [](ordered_json* t) { Model(t)["vocab"]["a b"] = 258; }, "byte-level"},
    {"EmptyToken", [](ordered_json* t) { Model(t)["vocab"][""] = 258; }, "empty"},
    {"MergeOfUnknown", [](ordered_json* t) { Model(t)["merges"][1][1] = "q"; }, "\"ab\" and \"q\""},
    {"MergeTwice",
     [](ordered_json* t) {
       Model(t)["merges"].push_back({"a", "b"});
     },
     "merge 2 stands twice"},
    {"MergeOfThree", [](ordered_json* t) { Model(t)["merges"][0].push_back("c"); }, "not a pair"},
    {"MergeOfOne", [](ordered_json* t) { Model(t)["merges"][0] = {"a"}; }, "not a pair"},
    {"MergeWithoutSpace", [](ordered_json* t) { Model(t)["merges"][0] = "ab"; }, "not a pair"},
    {"MergeOfTwoSpaces", [](ordered_json* t) { Model(t)["merges"][0] = "a b c"; }, "byte-level"},
    {"MergeOfNumbers",
     [](ordered_json* t) {
       Model(t)["merges"][0] = {1, 2};
     },
     "merge 0"},
    {"NestedMerges",
     [](ordered_json* t) {
       Model(t)["merges"][0] = {{"a", "b"}, {"a", "b"}};
     },
     "model.merges"},
    {"AddedIdTwice", [](ordered_json* t) { (*t)["added_tokens"][1]["id"] = 258; }, "258"},
    {"AddedTwice",
     [](ordered_json* t) { (*t)["added_tokens"][1]["content"] = "<|start|>"; },
     "<|start|>"},
    {"AddedAmongOrdinary", [](ordered_json* t) { (*t)["added_tokens"][0]["id"] = 100; }, "100"},
    {"AddedStripping", [](ordered_json* t) { (*t)["added_tokens"][0]["lstrip"] = true; }, "lstrip"},
    {"AddedOrdinary",
     [](ordered_json* t) { (*t)["added_tokens"][0]["special"] = false; },
     "special false"},
    {"AddedWithoutId", [](ordered_json* t) { (*t)["added_tokens"][0].erase("id"); }, "<|start|>"},
    {"AddedEmpty", [](ordered_json* t) { (*t)["added_tokens"][0]["content"] = ""; }, "content"},
    {"AddedObject", [](ordered_json* t) { (*t)["added_tokens"] = 3; }, "added_tokens"},
};

INSTANTIATE_TEST_SUITE_P(TokenizerFile, FaultTest, testing::ValuesIn(kFaults), [](const auto& f) {
  return f.param.name;
});

TEST(TokenizerFileTest, RefusesWhatIsNoJsonWithItsOffset) {
  EXPECT_THAT(Refusal(""), HasSubstr("not JSON"));
  EXPECT_THAT(Refusal("{\"a\": 1,}"), HasSubstr("not JSON at byte 9"));
  EXPECT_THAT(Refusal("[1, 2]"), HasSubstr("not a JSON object"));
  EXPECT_THAT(Refusal("{\"model\": {\"vocab\": {\"\xC0\": 1}}}"), HasSubstr("not JSON at byte"));
  EXPECT_THAT(Refusal("{\"a\": 1, \"a\": 2}"), HasSubstr("\"a\" stands twice"));
  EXPECT_THAT(Refusal(std::string(200'000, '[')), HasSubstr("nested deeper"));
  const std::string whole = SmallTree().dump();
  EXPECT_THAT(Refusal(whole.substr(0, whole.size() / 2)), HasSubstr("not JSON"));
}

TEST(TokenizerFileTest, RefusesATokenThatStandsTwice) {
  std::string text = SmallTree().dump();
  const std::string entry = "\"b\":98";
  const size_t at = text.find(entry);
  ASSERT_NE(at, std::string::npos);
  text.insert(at, "\"b\":300,");
  EXPECT_THAT(Refusal(text), HasSubstr("must have the largest ids"));
  text.replace(at, 8, "\"b\":255,");
  EXPECT_THAT(Refusal(text), HasSubstr("\"b\" stands twice"));
}

TEST(TokenizerFileTest, ReadsTheFieldsInAnyOrder) {
  ordered_json tree = SmallTree();
  ordered_json model;
  for (const char* key : {"merges", "vocab", "ignore_merges", "type"})
    model[key] = Model(&tree)[key];
  ordered_json turned = {{"model", model}};
  for (const char* key : {"pre_tokenizer", "added_tokens"}) turned[key] = tree[key];
  turned["unknown_field"] = {{"model", {{"vocab", {{"x", 1}}}, {"merges", {1, 2}}}}};

  const auto tokenizer = Tokenizer::Parse(turned.dump());
  ASSERT_TRUE(tokenizer.ok()) << tokenizer.status();
  EXPECT_EQ(*(*tokenizer)->Encode("abc", {}), std::vector<TokenId>({TokenId{257}}));
}

TEST(TokenizerFileTest, TakesSpecialsThatTheVocabularyListsAsWell) {
  ordered_json tree = SmallTree();
  Model(&tree)["vocab"]["<|start|>"] = 258;
  Model(&tree)["vocab"]["<|end|>"] = 259;
  const auto tokenizer = Tokenizer::Parse(tree.dump());
  ASSERT_TRUE(tokenizer.ok()) << tokenizer.status();
  EXPECT_EQ((*tokenizer)->Encode("<|end|>", {})->size(), 7u);
  EXPECT_TRUE((*tokenizer)->IsSpecial(TokenId{259}));

  Model(&tree)["vocab"]["<|end|>"] = 258;
  EXPECT_THAT(Refusal(tree.dump()), HasSubstr("id 258"));
}

TEST(TokenizerFileTest, LeavesHolesBetweenIds) {
  ordered_json tree = SmallTree();
  tree["added_tokens"][1]["id"] = 300;
  const auto tokenizer = Tokenizer::Parse(tree.dump());
  ASSERT_TRUE(tokenizer.ok()) << tokenizer.status();
  EXPECT_EQ((*tokenizer)->size(), 301);
  EXPECT_EQ((*tokenizer)->FirstSpecial(), TokenId{258});
  EXPECT_EQ((*tokenizer)->Bytes(TokenId{299}), std::nullopt);
  EXPECT_FALSE((*tokenizer)->IsSpecial(TokenId{299}));
  EXPECT_EQ(*(*tokenizer)->Bytes(TokenId{300}), "<|end|>");
}

TEST(TokenizerFileTest, PutsFirstSpecialBehindAllIdsIfThereIsNone) {
  ordered_json tree = SmallTree();
  tree.erase("added_tokens");
  const auto tokenizer = Tokenizer::Parse(tree.dump());
  ASSERT_TRUE(tokenizer.ok()) << tokenizer.status();
  EXPECT_EQ((*tokenizer)->FirstSpecial(), TokenId{258});
  EXPECT_EQ((*tokenizer)->size(), 258);
}

}  // namespace
}  // namespace shoal
