#include "cli/tokenize.h"

#include <chrono>
#include <fstream>
#include <iostream>
#include <optional>
#include <utility>
#include <vector>

#include "CLI/CLI.hpp"
#include "absl/status/status.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "cli/json_lines.h"
#include "cli/options.h"
#include "nlohmann/json.hpp"

#include "base/status_macros.h"
#include "coordinator/text/detokenizer.h"

namespace shoal {
namespace {

using nlohmann::json;

std::string Line(const json& value) {
  return value.dump(-1, ' ', false, json::error_handler_t::replace);
}

std::vector<int32_t> Values(const std::vector<TokenId>& ids) {
  std::vector<int32_t> values;
  values.reserve(ids.size());
  for (const TokenId id : ids) values.push_back(id.value);
  return values;
}

absl::StatusOr<SpecialTokens> ParseSpecial(const json& special) {
  using Mode = SpecialTokens::Mode;
  if (special == "none") return SpecialTokens{Mode::kNone, {}};
  if (special == "all") return SpecialTokens{Mode::kAll, {}};
  if (special.is_array()) {
    SpecialTokens listed{Mode::kListed, {}};
    for (const json& marker : special) {
      if (!marker.is_string()) return absl::InvalidArgumentError("a marker is not a string");
      listed.listed.push_back(marker.get<std::string>());
    }
    return listed;
  }
  return absl::InvalidArgumentError(
      absl::StrCat("special is \"none\", \"all\" or a list of markers, not ", Line(special)));
}

// {"text": ..., "special": ...} -> {"ids": ...}
absl::StatusOr<json> TokenizeRow(const Tokenizer& tokenizer, const json& row) {
  const auto text = row.find("text");
  if (text == row.end() || !text->is_string()) {
    return absl::InvalidArgumentError("the field \"text\" is missing or no string");
  }
  ASSIGN_OR_RETURN(const SpecialTokens special, ParseSpecial(row.value("special", json("none"))));
  ASSIGN_OR_RETURN(const std::vector<TokenId> ids,
                   tokenizer.Encode(text->get_ref<const std::string&>(), special));
  return json{{"ids", Values(ids)}};
}

// {"ids": ...} -> {"deltas": ..., "flush": ...}
absl::StatusOr<json> DetokenizeRow(const Tokenizer& tokenizer, const json& row) {
  const auto ids = row.find("ids");
  if (ids == row.end() || !ids->is_array()) {
    return absl::InvalidArgumentError("the field \"ids\" is missing or no list");
  }
  Detokenizer detokenizer(&tokenizer);
  json deltas = json::array();
  for (const json& id : *ids) {
    if (!id.is_number_integer() || id < 0 || id >= tokenizer.size()) {
      return absl::InvalidArgumentError(absl::StrCat(
          "the tokenizer has no token ", Line(id), "; ids are below ", tokenizer.size()));
    }
    ASSIGN_OR_RETURN(std::string delta, detokenizer.Push(TokenId{id.get<int32_t>()}));
    deltas.push_back(std::move(delta));
  }
  return json{{"deltas", std::move(deltas)}, {"flush", detokenizer.Flush()}};
}

template <typename Convert>
int RunRows(const Tokenizer& tokenizer, Convert convert) {
  return RunJsonLines([&](const std::string& line) -> absl::StatusOr<std::string> {
    const json row = json::parse(line, nullptr, false);
    if (!row.is_object()) {
      return absl::InvalidArgumentError("the line is not a JSON object in UTF-8");
    }
    ASSIGN_OR_RETURN(const json result, convert(tokenizer, row));
    return Line(result);
  });
}

absl::StatusOr<std::unique_ptr<Tokenizer>> LoadTokenizerAloud(const std::string& folder) {
  const auto start = std::chrono::steady_clock::now();
  ASSIGN_OR_RETURN(std::unique_ptr<Tokenizer> tokenizer, LoadTokenizer(folder));
  const std::chrono::duration<double, std::milli> passed = std::chrono::steady_clock::now() - start;
  std::cerr << "tokenizer: " << tokenizer->size() << " ids, loaded in "
            << static_cast<int>(passed.count()) << " ms\n";
  return tokenizer;
}

struct Options {
  std::string model;
  bool is_jsonl = false;
  bool is_json = false;
};

void AddOptions(CLI::App* app, Options* options, const char* lines) {
  app->add_option("--model", options->model, "Folder of the checkpoint: holds tokenizer.json")
      ->required();
  CLI::Option* const jsonl = app->add_flag("--jsonl", options->is_jsonl, lines);
  app->add_flag("--json", options->is_json, "One JSON object instead of plain output")
      ->excludes(jsonl);
}

// The exit code, if there is nothing left to do: after --help or a wrong command line.
std::optional<int> ParseArguments(CLI::App* app, int argc, char** argv) {
  try {
    app->parse(argc, argv);
  } catch (const CLI::ParseError& error) {
    return app->exit(error) == 0 ? kExitOk : kExitUsage;
  }
  return std::nullopt;
}

int Tokenize(const Options& options,
             const std::optional<std::string>& text,
             const std::vector<std::string>& markers) {
  const auto tokenizer = LoadTokenizerAloud(options.model);
  if (!tokenizer.ok()) return Fail(tokenizer.status());
  if (options.is_jsonl) return RunRows(**tokenizer, TokenizeRow);

  SpecialTokens special{SpecialTokens::Mode::kListed, markers};
  if (markers.empty()) special.mode = SpecialTokens::Mode::kNone;
  if (markers == std::vector<std::string>{"none"}) special.mode = SpecialTokens::Mode::kNone;
  if (markers == std::vector<std::string>{"all"}) special.mode = SpecialTokens::Mode::kAll;
  const auto ids = (*tokenizer)->Encode(text ? *text : ReadStandardInput(), special);
  if (!ids.ok()) return Fail(ids.status());
  if (options.is_json) {
    std::cout << Line({{"ids", Values(*ids)}, {"num_tokens", ids->size()}}) << "\n";
    return kExitOk;
  }
  const char* separator = "";
  for (const TokenId id : *ids) std::cout << std::exchange(separator, " ") << id.value;
  std::cout << "\n";
  return kExitOk;
}

int Detokenize(const Options& options, std::vector<int64_t> ids) {
  const auto tokenizer = LoadTokenizerAloud(options.model);
  if (!tokenizer.ok()) return Fail(tokenizer.status());
  if (options.is_jsonl) return RunRows(**tokenizer, DetokenizeRow);

  if (ids.empty()) {
    for (std::string word; std::cin >> word;) {
      int64_t id = 0;
      if (!absl::SimpleAtoi(word, &id)) {
        return Fail(absl::InvalidArgumentError(absl::StrCat("not a token id: ", word)));
      }
      ids.push_back(id);
    }
  }
  const auto row = DetokenizeRow(**tokenizer, {{"ids", ids}});
  if (!row.ok()) return Fail(row.status());
  std::string text;
  for (const json& delta : (*row)["deltas"]) text += delta.get_ref<const std::string&>();
  text += (*row)["flush"].get_ref<const std::string&>();
  std::cout << (options.is_json ? Line({{"text", text}}) + "\n" : text);
  return kExitOk;
}

}  // namespace

absl::StatusOr<std::unique_ptr<Tokenizer>> LoadTokenizer(const std::string& model_folder) {
  const std::string path = absl::StrCat(model_folder, "/tokenizer.json");
  std::ifstream file(path, std::ios::binary | std::ios::ate);
  const std::streamoff size = file ? static_cast<std::streamoff>(file.tellg()) : -1;
  // A folder can be opened, too; its size is not one of a file.
  constexpr std::streamoff kMaxFileBytes = std::streamoff{1} << 30;  // The release has 28 MB
  std::string text;
  if (size >= 0 && size <= kMaxFileBytes) {
    text.resize(static_cast<size_t>(size));
    file.seekg(0);
    file.read(text.data(), size);
  }
  if (!file || size < 0 || size > kMaxFileBytes) {
    return absl::NotFoundError(absl::StrCat("cannot read ",
                                            path,
                                            "; --model names a folder with config.json, "
                                            "tokenizer.json and the weights"));
  }
  absl::StatusOr<std::unique_ptr<Tokenizer>> tokenizer = Tokenizer::Parse(text);
  if (tokenizer.ok()) return tokenizer;
  return absl::FailedPreconditionError(
      absl::StrCat(model_folder, ": ", tokenizer.status().message()));
}

int RunTokenize(int argc, char** argv) {
  CLI::App app("Text to token ids", "shoal tokenize");
  Options options;
  std::optional<std::string> text;
  std::vector<std::string> markers;
  AddOptions(&app,
             &options,
             R"(Lines {"text": ..., "special": "none"|"all"|[markers]} in, {"ids": [...]} out)");
  app.add_option("text", text, "The text; standard input if there is none");
  app.add_option("--special", markers, "all, or markers such as <|end|> that become one id");
  if (const std::optional<int> code = ParseArguments(&app, argc, argv)) return *code;
  return Tokenize(options, text, markers);
}

int RunDetokenize(int argc, char** argv) {
  CLI::App app("Token ids to text", "shoal detokenize");
  Options options;
  std::vector<int64_t> ids;
  AddOptions(&app, &options, R"(Lines {"ids": [...]} in, {"deltas": [...], "flush": "..."} out)");
  app.add_option("ids", ids, "Token ids; from standard input if there are none");
  if (const std::optional<int> code = ParseArguments(&app, argc, argv)) return *code;
  return Detokenize(options, std::move(ids));
}

}  // namespace shoal
