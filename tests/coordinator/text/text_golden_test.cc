// The 474 recorded vectors of o200k_harmony (tests/golden/tokenizer; see the README there).
#include <fstream>
#include <iostream>
#include <memory>
#include <string>
#include <vector>

#include "absl/strings/escaping.h"
#include "gtest/gtest.h"
#include "nlohmann/json.hpp"

#include "coordinator/text/detokenizer.h"
#include "coordinator/text/pretokenizer.h"
#include "coordinator/text/tokenizer.h"
#include "tests/coordinator/text/tokenizer_json.h"

namespace shoal {
namespace {

using nlohmann::json;

std::vector<json> ReadVectors() {
  std::ifstream file(SHOAL_SOURCE_DIR "/tests/golden/tokenizer/golden.jsonl");
  std::vector<json> rows;
  for (std::string line; std::getline(file, line);) rows.push_back(json::parse(line));
  return rows;
}

std::vector<std::string> Pieces(const std::string& text) {
  std::vector<std::string> pieces;
  for (size_t at = 0; at < text.size();) {
    const size_t end = PieceEnd(text, at);
    pieces.push_back(text.substr(at, end - at));
    at = end;
  }
  return pieces;
}

TEST(PretokenizerTest, CutsThePiecesOfTheVectors) {
  int num_checked = 0;
  for (const json& row : ReadVectors()) {
    if (!row.contains("pieces") || row["special"] != "none") continue;
    EXPECT_EQ(Pieces(row["text"]), row["pieces"].get<std::vector<std::string>>()) << row["id"];
    ++num_checked;
  }
  EXPECT_GT(num_checked, 300);
}

SpecialTokens ToSpecialTokens(const json& special) {
  if (special == "none") return {};
  if (special == "all") return {SpecialTokens::Mode::kAll, {}};
  return {SpecialTokens::Mode::kListed, special.get<std::vector<std::string>>()};
}

std::vector<int32_t> Values(const std::vector<TokenId>& ids) {
  std::vector<int32_t> values;
  for (const TokenId id : ids) values.push_back(id.value);
  return values;
}

std::string Hex(absl::string_view bytes) {
  return absl::BytesToHexString(bytes);
}

void CheckRow(const Tokenizer& tokenizer, const json& row) {
  const std::string op = row["op"];
  const auto ids = row["ids"].get<std::vector<int32_t>>();
  if (op == "encode") {
    const auto encoded =
        tokenizer.Encode(row["text"].get<std::string>(), ToSpecialTokens(row["special"]));
    ASSERT_TRUE(encoded.ok()) << encoded.status();
    EXPECT_EQ(Values(*encoded), ids);
  } else if (op == "decode_stream" || op == "decode") {
    Detokenizer detokenizer(&tokenizer);
    std::vector<std::string> deltas;
    std::string text, bytes;
    for (const int32_t id : ids) {
      const auto delta = detokenizer.Push(TokenId{id});
      ASSERT_TRUE(delta.ok()) << delta.status();
      deltas.push_back(*delta);
      text += *delta;
      bytes += Hex(*tokenizer.Bytes(TokenId{id}));
    }
    const std::string flush = detokenizer.Flush();
    text += flush;
    if (op == "decode") {
      EXPECT_EQ(text, row["text"]);
      return;
    }
    EXPECT_EQ(deltas, row["deltas"].get<std::vector<std::string>>());
    EXPECT_EQ(flush, row["flush"]);
    EXPECT_EQ(text, row["text_replace"]);
    EXPECT_EQ(bytes, row["bytes_hex"]);
  } else if (op == "token_bytes") {
    EXPECT_EQ(Hex(*tokenizer.Bytes(TokenId{ids[0]})), row["bytes_hex"]);
  } else {
    ASSERT_EQ(op, "decode_error");
    EXPECT_EQ(tokenizer.Bytes(TokenId{ids[0]}), std::nullopt);
    EXPECT_FALSE(Detokenizer(&tokenizer).Push(TokenId{ids[0]}).ok());
  }
}

struct Form {
  const char* name;
  MergeForm merges;
  PairForm pairs;
};

class O200kTest : public testing::TestWithParam<Form> {};

TEST_P(O200kTest, AgreesWithEveryVector) {
  const auto vocabulary = ReadO200k(GetParam().merges);
  if (!vocabulary) GTEST_SKIP() << "474 vectors need the release's vocabulary";
  const auto tokenizer = Tokenizer::Parse(TokenizerText(*vocabulary, GetParam().pairs));
  ASSERT_TRUE(tokenizer.ok()) << tokenizer.status();

  const std::vector<json> rows = ReadVectors();
  ASSERT_EQ(rows.size(), 474u);
  for (const json& row : rows) {
    SCOPED_TRACE(testing::Message() << "vector " << row["id"] << ", " << row["cat"]);
    CheckRow(**tokenizer, row);
  }
  EXPECT_EQ((*tokenizer)->FirstSpecial(), TokenId{199998});
  EXPECT_EQ((*tokenizer)->size(), 200019);
  EXPECT_TRUE(RequireHarmonySpecials(**tokenizer).ok());
}

INSTANTIATE_TEST_SUITE_P(
    Forms,
    O200kTest,
    testing::Values(Form{"AllLists", MergeForm::kAll, PairForm::kList},
                    Form{"AllStrings", MergeForm::kAll, PairForm::kString},
                    Form{"NeededLists", MergeForm::kNeeded, PairForm::kList},
                    Form{"NeededStrings", MergeForm::kNeeded, PairForm::kString}),
    [](const auto& form) { return form.param.name; });

}  // namespace
}  // namespace shoal
