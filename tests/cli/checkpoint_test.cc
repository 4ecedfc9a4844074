// `shoal inspect` and `shoal synth` against the published numbers of the releases.
#include "worker/load/checkpoint.h"

#include <filesystem>
#include <fstream>
#include <initializer_list>
#include <sstream>
#include <string>
#include <vector>

#include "cli/inspect.h"
#include "cli/synth.h"
#include "cli/synthetic_checkpoint.h"
#include "cli/synthetic_tokenizer.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "nlohmann/json.hpp"

#include "coordinator/text/tokenizer.h"
#include "tests/support/temp_folder.h"

namespace shoal {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;
using Json = nlohmann::json;

constexpr char kSpecials[][16] = {"<|startoftext|>",
                                  "<|endoftext|>",
                                  "<|return|>",
                                  "<|constrain|>",
                                  "<|channel|>",
                                  "<|start|>",
                                  "<|end|>",
                                  "<|message|>",
                                  "<|call|>"};

std::string Contents(const std::string& path) {
  std::ifstream file(path);
  std::ostringstream text;
  text << file.rdbuf();
  return text.str();
}

struct Outcome {
  int code;
  std::string out, err;
};

template <typename Subcommand>
Outcome Shoal(Subcommand subcommand, std::vector<std::string> args) {
  args.insert(args.begin(), "shoal");
  std::vector<char*> argv;
  for (std::string& arg : args) argv.push_back(arg.data());
  ::testing::internal::CaptureStdout();
  ::testing::internal::CaptureStderr();
  const int code = subcommand(static_cast<int>(argv.size()), argv.data());
  return {code, ::testing::internal::GetCapturedStdout(), ::testing::internal::GetCapturedStderr()};
}

TEST(InspectTest, NumbersOfTheReleases) {
  struct Case {
    const char* geometry;
    int64_t tensor_bytes, tensors, parameters, active, dense, files;
    int32_t experts;
  };

  const Case cases[] = {
      {"20b", 13'761'264'768, 459, 20'914'757'184, 3'608'307'264, 3'595'648'128, 3, 32},
      {"120b", 65'248'815'744, 687, 116'829'156'672, 5'132'849'472, 4'255'115'904, 15, 128}};
  for (const Case& c : cases) {
    TempFolder folder;
    ASSERT_EQ(Shoal(RunSynth, {folder / "m", "--geometry", c.geometry, "--plan-only"}).code, 0);

    const Outcome inspected = Shoal(RunInspect, {folder / "m", "--workers", "4", "--json"});

    ASSERT_EQ(inspected.code, 0) << inspected.err;
    const Json json = Json::parse(inspected.out);
    EXPECT_EQ(json["tensor_bytes"], c.tensor_bytes);
    EXPECT_EQ(json["tensors"], c.tensors);
    EXPECT_EQ(json["parameters"], c.parameters);
    EXPECT_EQ(json["active_parameters"], c.active);
    EXPECT_EQ(json["files"], c.files);
    EXPECT_EQ(json["layout"], "Hugging Face MXFP4");
    ASSERT_EQ(json["ranks"].size(), 4u);
    const int64_t layers = json["geometry"]["num_layers"];
    const int64_t experts = 13'236'480 * layers * c.experts / 4;
    EXPECT_EQ(c.tensor_bytes, c.dense + 4 * experts);
    for (const Json& rank : json["ranks"]) {
      EXPECT_EQ(rank["experts"], c.experts / 4);
      EXPECT_GT(rank["bytes_read"], c.dense + experts);
      EXPECT_LT(rank["bytes_read"], c.dense + experts + 400'000)
          << "headers, index, config, samples";
      EXPECT_GT(rank["bytes_resident"], c.dense + experts);
    }
  }
}

TEST(InspectTest, SharedDenseWeightsAreTheParents) {
  TempFolder folder;
  ASSERT_EQ(Shoal(RunSynth, {folder / "m"}).code, 0);

  const auto own = Inspect({.dir = folder / "m", .workers = 3, .copies = 2});
  const auto shared =
      Inspect({.dir = folder / "m", .workers = 3, .copies = 2, .has_shared_dense = true});

  ASSERT_TRUE(own.ok() && shared.ok());
  EXPECT_EQ(own->ranks[0].num_experts + own->ranks[1].num_experts + own->ranks[2].num_experts, 16);
  EXPECT_GT(own->ranks[0].bytes_read, shared->ranks[0].bytes_read);
  EXPECT_EQ(own->ranks[0].bytes_resident,
            shared->ranks[0].bytes_resident + shared->parent_bytes_resident);
  EXPECT_EQ(own->parent_bytes_read, 0);
}

// A re-save in BF16 is read as it is and kept as the release is.
TEST(InspectTest, ABf16ReSaveTakesTheMemoryOfTheRelease) {
  TempFolder folder;
  ASSERT_EQ(Shoal(RunSynth, {folder / "hf"}).code, 0);
  ASSERT_EQ(Shoal(RunSynth, {folder / "bf16", "--layout", "bf16"}).code, 0);

  const auto release = Inspect({.dir = folder / "hf"});
  const auto packed = Inspect({.dir = folder / "bf16"});
  const auto kept = Inspect({.dir = folder / "bf16", .bf16_experts = Bf16Experts::kKeep});

  ASSERT_TRUE(release.ok() && packed.ok() && kept.ok());
  EXPECT_EQ(packed->layout, "Hugging Face BF16");
  EXPECT_EQ(packed->experts, "MXFP4");
  EXPECT_EQ(kept->experts, "BF16");
  EXPECT_EQ(packed->ranks[0].bytes_resident, release->ranks[0].bytes_resident);
  EXPECT_GT(kept->ranks[0].bytes_resident, packed->ranks[0].bytes_resident);
  EXPECT_GT(packed->ranks[0].bytes_read, 2 * release->ranks[0].bytes_read);
}

TEST(InspectTest, ExitCodesTellUsageFromABadCheckpoint) {
  TempFolder folder;
  ASSERT_EQ(Shoal(RunSynth, {folder / "m"}).code, 0);

  const Outcome good = Shoal(RunInspect, {folder / "m"});
  EXPECT_EQ(good.code, 0);
  EXPECT_THAT(good.out,
              AllOf(HasSubstr("sound"), HasSubstr("8 experts of 96"), HasSubstr("bytes resident")));
  EXPECT_EQ(Shoal(RunInspect, {}).code, 2);
  EXPECT_EQ(Shoal(RunInspect, {folder / "m", "--workers", "0"}).code, 2);
  EXPECT_EQ(Shoal(RunInspect, {folder / "m", "--copies", "2"}).code, 2);
  EXPECT_EQ(Shoal(RunInspect, {folder / "m", "--frobnicate"}).code, 2);
  EXPECT_EQ(Shoal(RunInspect, {folder / "none"}).code, 4);
  std::ofstream(folder / "m/config.json") << R"({"model_type": "llama"})";
  const Outcome bad = Shoal(RunInspect, {folder / "m"});
  EXPECT_EQ(bad.code, 4);
  EXPECT_THAT(bad.err, AllOf(HasSubstr("\"llama\""), HasSubstr("\"gpt_oss\"")));
}

TEST(SynthTest, The20bIndexAndConfigAreTheReleasedBytes) {
  TempFolder folder;
  ASSERT_EQ(Shoal(RunSynth, {folder / "m", "--geometry", "20b", "--plan-only"}).code, 0);

  EXPECT_EQ(Contents(folder / "m/config.json"),
            Contents(SHOAL_SOURCE_DIR "/tests/golden/release/config_20b.json"));
  EXPECT_EQ(Contents(folder / "m/generation_config.json"),
            Contents(SHOAL_SOURCE_DIR "/tests/golden/release/generation_config.json"));
  EXPECT_EQ(Contents(folder / "m/model.safetensors.index.json").size(), 36'355u);
  EXPECT_EQ(std::filesystem::file_size(folder / "m/model-00002-of-00002.safetensors"),
            4'170'342'232u);
}

TEST(SynthTest, OptionsReplaceNumbersOfTheGeometry) {
  TempFolder folder;
  const Outcome made = Shoal(
      RunSynth,
      {folder / "m", "--layers",      "3",     "--experts",       "6",    "--experts-per-token",
       "2",          "--hidden",      "96",    "--intermediate",  "64",   "--heads",
       "6",          "--kv-heads",    "3",     "--head-dim",      "16",   "--vocab",
       "512",        "--window",      "8",     "--max-positions", "4096", "--layout",
       "bf16",       "--shard-bytes", "200000"});
  ASSERT_EQ(made.code, 0) << made.err;

  const auto checkpoint = Checkpoint::Open(folder / "m");

  ASSERT_TRUE(checkpoint.ok()) << checkpoint.status();
  const ModelConfig& config = (*checkpoint)->config();
  EXPECT_EQ(config.num_layers, 3);
  EXPECT_EQ(config.is_window_layer, (std::vector<bool>{true, false, true}));
  EXPECT_EQ(config.head_dim, 16);
  EXPECT_EQ(config.vocab, 512);
  EXPECT_EQ(config.max_positions, 4096);
  EXPECT_EQ((*checkpoint)->stored(), ExpertStorage::kBf16);
  EXPECT_EQ(config.eos_token_ids, (std::vector<int32_t>{503, 504, 510}));
  EXPECT_GT((*checkpoint)->files().size(), 2u);
}

TEST(SynthTest, TinyIsTheMicroModel) {
  TempFolder folder;
  ASSERT_EQ(Shoal(RunSynth, {folder / "hf"}).code, 0);
  ASSERT_EQ(Shoal(RunSynth, {folder / "original", "--layout", "original"}).code, 0);

  for (const char* layout : {"hf", "original"}) {
    const auto checkpoint = Checkpoint::Open(folder / layout);
    ASSERT_TRUE(checkpoint.ok()) << checkpoint.status();
    EXPECT_EQ((*checkpoint)->config(), ModelConfig::Tiny());
  }
}

TEST(SynthTest, RefusesWhatItCannotWrite) {
  TempFolder folder;
  ASSERT_EQ(Shoal(RunSynth, {folder / "m"}).code, 0);

  const Outcome again = Shoal(RunSynth, {folder / "m"});
  EXPECT_EQ(again.code, 4);
  EXPECT_THAT(again.err,
              AllOf(HasSubstr(folder / "m"), HasSubstr("already"), HasSubstr("empty folder")));
  const Outcome odd = Shoal(RunSynth, {folder / "odd", "--hidden", "65"});
  EXPECT_EQ(odd.code, 2);
  EXPECT_THAT(odd.err, AllOf(HasSubstr("65"), HasSubstr("multiples of 32")));
  EXPECT_EQ(Shoal(RunSynth, {folder / "odd", "--hidden", "65", "--layout", "bf16"}).code, 2);
  const Outcome limit =
      Shoal(RunSynth, {folder / "odd", "--layout", "original", "--max-positions", "4096"});
  EXPECT_EQ(limit.code, 2);
  EXPECT_THAT(limit.err, HasSubstr("context limit"));
  EXPECT_EQ(Shoal(RunSynth, {folder / "odd", "--geometry", "7b"}).code, 2);
  EXPECT_EQ(Shoal(RunSynth, {folder / "odd", "--layers", "-1"}).code, 2);
  EXPECT_FALSE(std::filesystem::exists(folder / "odd/config.json"));
}

TEST(SynthTest, ItsTokenizersWorkAtEverySize) {
  for (const int vocab : {107, 128, 266, 300, 512, 5000, 201'088}) {
    const auto tokenizer = Tokenizer::Parse(SyntheticTokenizerJson(vocab));
    ASSERT_TRUE(tokenizer.ok()) << vocab << ": " << tokenizer.status();
    EXPECT_LE((*tokenizer)->size(), vocab);
    const std::string text = "Shoal: babadu 42 bananas!\n\tOk" +
                             std::string(vocab >= 266 ? " h\xC3\xA9, \xE9\xB1\xBC" : "");
    const auto ids = (*tokenizer)->Encode(text, {});
    ASSERT_TRUE(ids.ok()) << vocab << ": " << ids.status();
    std::string decoded;
    for (const TokenId id : *ids) {
      EXPECT_FALSE((*tokenizer)->IsSpecial(id));
      decoded += std::string(*(*tokenizer)->Bytes(id));
    }
    EXPECT_EQ(decoded, text);
    for (const char* special : kSpecials)
      EXPECT_TRUE((*tokenizer)->Special(special).has_value()) << special;
    std::vector<int32_t> eos;
    for (const char* special : {"<|endoftext|>", "<|return|>", "<|call|>"})
      eos.push_back((*tokenizer)->Special(special)->value);
    EXPECT_EQ(eos, SyntheticEosIds(vocab));
    const int first_special = (*tokenizer)->FirstSpecial().value;
    for (int id = 0; id < first_special; ++id) {
      ASSERT_TRUE((*tokenizer)->Bytes(TokenId{id}).has_value())
          << vocab << ": id " << id << " has no text";
    }
  }
  EXPECT_EQ(SyntheticTokenizerJson(106), "");
  EXPECT_TRUE(SyntheticEosIds(106).empty());
}

}  // namespace
}  // namespace shoal
