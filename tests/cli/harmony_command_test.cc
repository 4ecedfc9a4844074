// The recorded harmony vectors (tests/golden/harmony; see the README there), asked as users ask:
// `shoal harmony ... --jsonl`.
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <sstream>
#include <string>
#include <vector>

#include "cli/harmony.h"
#include "cli/options.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "nlohmann/json.hpp"

#include "tests/cli/standard_streams.h"
#include "tests/coordinator/text/tokenizer_json.h"

namespace shoal {
namespace {

using nlohmann::ordered_json;

std::vector<ordered_json> Lines(const std::string& text) {
  std::vector<ordered_json> rows;
  std::istringstream in(text);
  for (std::string line; std::getline(in, line);) rows.push_back(ordered_json::parse(line));
  return rows;
}

std::string ReadGolden(const std::string& name) {
  std::ifstream file(SHOAL_SOURCE_DIR "/tests/golden/harmony/" + name);
  std::ostringstream text;
  text << file.rdbuf();
  return text.str();
}

// The members of `row` that are named and there; comparable whatever their order.
nlohmann::json Pick(const ordered_json& row, const std::vector<std::string>& fields) {
  nlohmann::json picked = nlohmann::json::object();
  for (const std::string& field : fields) {
    if (row.contains(field)) picked[field] = nlohmann::json::parse(row[field].dump());
  }
  return picked;
}

class HarmonyCommandTest : public testing::Test {
 protected:
  static void SetUpTestSuite() {
    folder_ = testing::TempDir() + "shoal_harmony_command";
    std::filesystem::create_directories(folder_);
    const auto vocabulary = ReadO200k(MergeForm::kNeeded);
    if (!vocabulary) return;
    std::ofstream(folder_ + "/tokenizer.json") << TokenizerText(*vocabulary, PairForm::kString);
    has_vocabulary_ = true;
  }

  static void TearDownTestSuite() { std::filesystem::remove_all(folder_); }

  static std::vector<ordered_json> Ask(const std::string& what, const std::string& lines) {
    const CommandResult result =
        RunCommand(RunHarmony, {what, "--model", folder_, "--jsonl"}, lines);
    EXPECT_EQ(result.errors, "");
    EXPECT_EQ(result.code, kExitOk);
    return Lines(result.output);
  }

  static void CheckAnswers(const std::vector<ordered_json>& rows,
                           const std::vector<ordered_json>& answers,
                           const std::vector<std::string>& fields) {
    ASSERT_EQ(answers.size(), rows.size());
    for (size_t i = 0; i < rows.size(); ++i) {
      SCOPED_TRACE(rows[i]["name"].dump());
      const ordered_json& wanted =
          rows[i].contains("recommended") ? rows[i]["recommended"] : rows[i];
      EXPECT_EQ(Pick(answers[i], fields), Pick(wanted, fields))
          << answers[i].value("error", ordered_json()).dump();
    }
  }

  static void CheckRows(const std::string& what,
                        const std::string& file,
                        size_t num_rows,
                        const std::vector<std::string>& fields) {
    const std::vector<ordered_json> rows = Lines(ReadGolden(file));
    ASSERT_EQ(rows.size(), num_rows);
    CheckAnswers(rows, Ask(what, ReadGolden(file)), fields);
  }

  static bool has_vocabulary_;
  static std::string folder_;
};

bool HarmonyCommandTest::has_vocabulary_ = false;
std::string HarmonyCommandTest::folder_;

TEST_F(HarmonyCommandTest, WritesTheTypesOfTheVectors) {
  CheckRows("types", "typescript.jsonl", 31, {"ts"});
}

TEST_F(HarmonyCommandTest, RendersThePromptsOfTheVectors) {
  if (!has_vocabulary_) GTEST_SKIP() << "21 vectors need the release's vocabulary";
  CheckRows("render", "render.jsonl", 21, {"ids", "text"});
}

TEST_F(HarmonyCommandTest, ReadsTheAnswersOfTheVectors) {
  if (!has_vocabulary_) GTEST_SKIP() << "46 vectors need the release's vocabulary";
  CheckRows("parse", "parse.jsonl", 46, {"events", "messages", "repairs"});
}

TEST_F(HarmonyCommandTest, MapsTheRequestsOfTheVectors) {
  if (!has_vocabulary_) GTEST_SKIP() << "27 vectors need the release's vocabulary";
  CheckRows("request", "chat_mapping.jsonl", 27, {"messages", "ids", "text", "http_status"});
}

TEST_F(HarmonyCommandTest, SaysWhatIsWrongWithTheRequestsThatTheVectorsRefuse) {
  if (!has_vocabulary_) GTEST_SKIP() << "3 vectors need the release's vocabulary";
  const std::vector<ordered_json> rows = Lines(ReadGolden("chat_mapping.jsonl"));
  const std::vector<ordered_json> answers = Ask("request", ReadGolden("chat_mapping.jsonl"));
  ASSERT_EQ(answers.size(), rows.size());
  int num_refused = 0;
  for (size_t i = 0; i < rows.size(); ++i) {
    if (!rows[i].contains("error_hint")) continue;
    ++num_refused;
    EXPECT_THAT(answers[i]["error"]["message"].get<std::string>(),
                testing::HasSubstr(rows[i]["error_hint"].get<std::string>()));
    EXPECT_EQ(answers[i]["error"]["type"], "invalid_request_error");
  }
  EXPECT_EQ(num_refused, 3);
}

TEST_F(HarmonyCommandTest, WritesTheOutputOfTheVectors) {
  if (!has_vocabulary_) GTEST_SKIP() << "13 vectors need the release's vocabulary";
  std::string input;
  for (ordered_json row : Lines(ReadGolden("api_output.jsonl"))) {
    row["functions"] = {"f", "shell", "get_weather", "create_event"};
    input += row.dump() + "\n";
  }
  CheckAnswers(Lines(input),
               Ask("output", input),
               {"chat_deltas", "chat_message", "finish_reason", "responses_events"});
}

TEST_F(HarmonyCommandTest, ReadsOneSchemaOverManyLinesWithoutAModel) {
  const CommandResult result =
      RunCommand(RunHarmony, {"types"}, "{\"schema\":\n {\"type\": \"string\"}}\n");
  EXPECT_EQ(result.code, kExitOk);
  EXPECT_THAT(result.output, testing::HasSubstr("\"ts\": \"string\""));
}

TEST_F(HarmonyCommandTest, ShowsThePromptOfABareRequest) {
  if (!has_vocabulary_) GTEST_SKIP() << "needs a vocabulary with harmony's markers";
  const CommandResult chat = RunCommand(RunHarmony,
                                        {"request", "--model", folder_},
                                        R"({"messages":[{"role":"user","content":"Hi"}]})");
  EXPECT_EQ(chat.code, kExitOk);
  EXPECT_THAT(chat.output,
              testing::EndsWith("<|start|>user<|message|>Hi<|end|><|start|>assistant\n"));
  const CommandResult responses =
      RunCommand(RunHarmony, {"request", "--model", folder_}, R"({"input":"Hi"})");
  EXPECT_EQ(responses.output, chat.output);
  const CommandResult refused =
      RunCommand(RunHarmony, {"request", "--model", folder_}, R"({"messages":[]})");
  EXPECT_EQ(refused.code, kExitFailed);
  EXPECT_THAT(refused.output, testing::HasSubstr("messages is empty"));
}

TEST_F(HarmonyCommandTest, AnswersEachLineAndFailsAtTheEndIfOneWasRefused) {
  const CommandResult result = RunCommand(
      RunHarmony, {"types", "--jsonl"}, "nonsense\n{\"schema\":{\"type\":\"string\"}}\n{}\n");
  EXPECT_EQ(result.code, kExitFailed);
  const std::vector<ordered_json> lines = Lines(result.output);
  ASSERT_EQ(lines.size(), 3u);
  EXPECT_THAT(lines[0]["error"].get<std::string>(), testing::HasSubstr("at byte"));
  EXPECT_EQ(lines[1]["ts"], "string");
  EXPECT_THAT(lines[2]["error"].get<std::string>(), testing::HasSubstr("\"schema\" is missing"));
}

}  // namespace
}  // namespace shoal
