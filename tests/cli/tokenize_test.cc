#include "cli/tokenize.h"

#include <filesystem>
#include <fstream>
#include <sstream>
#include <string>
#include <utility>
#include <vector>

#include "cli/options.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "nlohmann/json.hpp"

#include "tests/cli/standard_streams.h"
#include "tests/coordinator/text/tokenizer_json.h"

namespace shoal {
namespace {

using nlohmann::json;

// Runs a subcommand with the standard streams replaced.
class TokenizeCommandTest : public testing::Test {
 protected:
  void SetUp() override {
    folder_ = testing::TempDir() + "shoal_tokenize_" +
              testing::UnitTest::GetInstance()->current_test_info()->name();
    std::filesystem::create_directories(folder_);
    const TestVocabulary vocabulary =
        MakeTestVocabulary({{"a", "b"}, {"ab", "c"}}, {"<|start|>", "<|end|>"});
    std::ofstream(folder_ + "/tokenizer.json") << TokenizerText(vocabulary, PairForm::kString);
  }

  void TearDown() override { std::filesystem::remove_all(folder_); }

  using Command = int (*)(int, char**);

  int Run(Command command, std::vector<std::string> arguments, const std::string& input) {
    const CommandResult result = RunCommand(command, std::move(arguments), input);
    output_ = result.output;
    errors_ = result.errors;
    return result.code;
  }

  std::vector<json> OutputLines() const {
    std::vector<json> lines;
    std::istringstream in(output_);
    for (std::string line; std::getline(in, line);) lines.push_back(json::parse(line));
    return lines;
  }

  std::string folder_, output_, errors_;
};

TEST_F(TokenizeCommandTest, AnswersEachLineAndFailsAtTheEndIfOneWasRefused) {
  const std::string input = R"({"text": "abc<|end|>", "special": ["<|end|>"]})"
                            "\n"
                            R"({"text": "abc"})"
                            "\nnonsense\n"
                            R"({"txt": "abc"})"
                            "\n"
                            R"({"text": "abc", "special": ["<|no|>"]})"
                            "\n"
                            R"({"text": "\ud800"})"
                            "\n"
                            R"({"text": "ab<|end|>", "special": "all"})"
                            "\n";
  EXPECT_EQ(Run(RunTokenize, {"--model", folder_, "--jsonl"}, input), kExitFailed);

  const std::vector<json> lines = OutputLines();
  ASSERT_EQ(lines.size(), 7u);
  EXPECT_EQ(lines[0], json::parse(R"({"ids": [257, 259]})"));
  EXPECT_EQ(lines[1], json::parse(R"({"ids": [257]})"));
  for (const size_t refused : {2, 3, 4, 5}) {
    EXPECT_TRUE(lines[refused].contains("error")) << lines[refused];
    EXPECT_EQ(lines[refused].size(), 1u);
  }
  EXPECT_EQ(lines[6], json::parse(R"({"ids": [256, 259]})"));
  EXPECT_NE(errors_.find("loaded in"), std::string::npos);
}

TEST_F(TokenizeCommandTest, DetokenizesEachLineAsAStream) {
  const std::string input = R"({"ids": [257, 226, 130, 172, 258, 226]})"
                            "\n"
                            R"({"ids": [1000]})"
                            "\n"
                            R"({"ids": [4294967296]})"
                            "\n"
                            R"({"ids": [-1]})"
                            "\n";
  EXPECT_EQ(Run(RunDetokenize, {"--model", folder_, "--jsonl"}, input), kExitFailed);

  const std::vector<json> lines = OutputLines();
  ASSERT_EQ(lines.size(), 4u);
  EXPECT_EQ(lines[0]["deltas"], json({"abc", "", "", "\u20AC", "<|start|>", ""}));
  EXPECT_EQ(lines[0]["flush"], "\uFFFD");
  EXPECT_NE(lines[1]["error"].get<std::string>().find("1000"), std::string::npos);
  EXPECT_TRUE(lines[2].contains("error"));
  EXPECT_TRUE(lines[3].contains("error"));
}

TEST_F(TokenizeCommandTest, TakesTextFromTheArgumentOrStandardInput) {
  EXPECT_EQ(Run(RunTokenize, {"--model", folder_, "abcab"}, ""), 0);
  EXPECT_EQ(output_, "257 256\n");
  EXPECT_EQ(Run(RunTokenize, {"--model", folder_, "--json"}, "ab"), 0);
  EXPECT_EQ(OutputLines()[0], json::parse(R"({"ids": [256], "num_tokens": 1})"));
  EXPECT_EQ(Run(RunTokenize, {"--model", folder_, "--special", "all", "--", "<|end|>"}, ""), 0);
  EXPECT_EQ(output_, "259\n");
  EXPECT_EQ(Run(RunDetokenize, {"--model", folder_, "257", "256"}, ""), 0);
  EXPECT_EQ(output_, "abcab");
  EXPECT_EQ(Run(RunDetokenize, {"--model", folder_}, "257\n256"), 0);
  EXPECT_EQ(output_, "abcab");
}

TEST_F(TokenizeCommandTest, NamesTheFileThatIsNotThere) {
  EXPECT_EQ(Run(RunTokenize, {"--model", "/no/such/folder", "x"}, ""), kExitPrecondition);
  EXPECT_NE(errors_.find("/no/such/folder/tokenizer.json"), std::string::npos) << errors_;
  std::ofstream(folder_ + "/tokenizer.json") << "{";
  EXPECT_EQ(Run(RunTokenize, {"--model", folder_, "x"}, ""), kExitPrecondition);
  EXPECT_NE(errors_.find("not JSON at byte"), std::string::npos) << errors_;
}

TEST_F(TokenizeCommandTest, RefusesAWrongCommandLine) {
  EXPECT_EQ(Run(RunTokenize, {"x"}, ""), kExitUsage);
  EXPECT_THAT(errors_, testing::HasSubstr("--model"));
  EXPECT_EQ(Run(RunDetokenize, {"--model", folder_, "--json", "--jsonl"}, ""), kExitUsage);
  EXPECT_EQ(Run(RunDetokenize, {"--model", folder_, "seven"}, ""), kExitUsage);
  EXPECT_EQ(Run(RunDetokenize, {"--model", folder_}, "seven"), kExitUsage);
  EXPECT_EQ(Run(RunDetokenize, {"--model", folder_, "400"}, ""), kExitUsage);
  EXPECT_EQ(Run(RunTokenize, {"--help"}, ""), kExitOk);
  EXPECT_THAT(output_, testing::HasSubstr("--jsonl"));
}

}  // namespace
}  // namespace shoal
