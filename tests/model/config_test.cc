// The config files of both releases and of others that a user may have; the rotary table against
// the numbers of spec 8.2.
#include "model/config.h"

#include <cmath>
#include <fstream>
#include <sstream>
#include <string>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "nlohmann/json.hpp"

#include "model/rope.h"
#include "model/strict_json.h"

namespace shoal {
namespace {

using Json = nlohmann::json;
using ::testing::AllOf;
using ::testing::ElementsAre;
using ::testing::HasSubstr;

std::string Golden(const std::string& name) {
  std::ifstream file(SHOAL_SOURCE_DIR "/tests/golden/release/" + name);
  std::ostringstream text;
  text << file.rdbuf();
  EXPECT_FALSE(text.str().empty()) << name;
  return text.str();
}

Json Released() {
  return Json::parse(Golden("config_20b.json"));
}

std::string ErrorOf(const Json& json) {
  const absl::StatusOr<ModelConfig> config = ParseModelConfig(json.dump(), "");
  EXPECT_FALSE(config.ok()) << "accepted: " << json.dump();
  if (config.ok()) return "";
  EXPECT_EQ(config.status().code(), absl::StatusCode::kInvalidArgument);
  return std::string(config.status().message());
}

// original/config.json of the 20b release.
Json Original() {
  return {{"num_hidden_layers", 24},
          {"num_experts", 32},
          {"experts_per_token", 4},
          {"vocab_size", 201088},
          {"hidden_size", 2880},
          {"intermediate_size", 2880},
          {"swiglu_limit", 7.0},
          {"head_dim", 64},
          {"num_attention_heads", 64},
          {"num_key_value_heads", 8},
          {"sliding_window", 128},
          {"initial_context_length", 4096},
          {"rope_theta", 150000},
          {"rope_scaling_factor", 32.0},
          {"rope_ntk_alpha", 1},
          {"rope_ntk_beta", 32}};
}

TEST(ConfigTest, ReleasedFilesGiveTheReleasedModels) {
  const auto small = ParseModelConfig(Golden("config_20b.json"), Golden("generation_config.json"));
  const auto large = ParseModelConfig(Golden("config_120b.json"), Golden("generation_config.json"));

  ASSERT_TRUE(small.ok()) << small.status();
  EXPECT_EQ(*small, ModelConfig::GptOss20b());
  ASSERT_TRUE(large.ok()) << large.status();
  EXPECT_EQ(*large, ModelConfig::GptOss120b());
  EXPECT_EQ(large->num_window_layers(), 18);
  EXPECT_EQ(large->window(0), 128);
  EXPECT_EQ(large->window(35), 0);
}

TEST(ConfigTest, OriginalSpellingGivesTheSameModel) {
  const auto config = ParseModelConfig(Original().dump(), "");

  ASSERT_TRUE(config.ok()) << config.status();
  EXPECT_EQ(*config, ModelConfig::GptOss20b());
}

TEST(ConfigTest, StopSetIsTheUnionOfBothFiles) {
  const auto config = ParseModelConfig(Released().dump(), R"({"eos_token_id": [200012, 200002]})");

  ASSERT_TRUE(config.ok()) << config.status();
  EXPECT_THAT(config->eos_token_ids, ElementsAre(200002, 200012));
}

TEST(ConfigTest, RopeParametersSayTheSameAsRopeScaling) {
  Json json = Released();
  json["rope_parameters"] = json["rope_scaling"];
  json["rope_parameters"]["rope_theta"] = 150000.0;
  json.erase("rope_scaling");
  json.erase("rope_theta");

  const auto config = ParseModelConfig(json.dump(), "");

  ASSERT_TRUE(config.ok()) << config.status();
  EXPECT_EQ(config->rope, ModelConfig::GptOss20b().rope);
}

TEST(ConfigTest, AcceptsTheSpellingsOfOtherWriters) {
  Json json = Released();
  json["rope_scaling"]["type"] = json["rope_scaling"]["rope_type"];
  json["rope_scaling"].erase("rope_type");
  json["rope_scaling"].erase("truncate");
  json["num_experts"] = json["num_local_experts"];
  json.erase("num_local_experts");
  json.erase("num_experts_per_tok");
  json.erase("layer_types");
  json.erase("max_position_embeddings");
  json["hidden_size"] = 2880.0;
  json["bos_token_id"] = nullptr;

  const auto config = ParseModelConfig(json.dump(), Golden("generation_config.json"));

  ASSERT_TRUE(config.ok()) << config.status();
  EXPECT_EQ(*config, ModelConfig::GptOss20b());
}

TEST(ConfigTest, NoQuantizationConfigMeansBf16Experts) {
  Json json = Released();
  json.erase("quantization_config");
  const auto without = ParseModelConfig(json.dump(), "");
  json["quantization_config"] = nullptr;
  const auto null = ParseModelConfig(json.dump(), "");

  ASSERT_TRUE(without.ok()) << without.status();
  EXPECT_EQ(without->storage, ExpertStorage::kBf16);
  ASSERT_TRUE(null.ok()) << null.status();
  EXPECT_EQ(null->storage, ExpertStorage::kBf16);
}

TEST(ConfigTest, LayerTypesAreBelievedNotAssumed) {
  Json json = Released();
  json["layer_types"][0] = "full_attention";

  const auto config = ParseModelConfig(json.dump(), "");

  ASSERT_TRUE(config.ok()) << config.status();
  EXPECT_EQ(config->window(0), 0);
  EXPECT_EQ(config->num_window_layers(), 11);
}

TEST(ConfigTest, PlainRotaryEmbeddingIsFactorOne) {
  Json json = Released();
  json["rope_scaling"] = {{"rope_type", "default"}};
  const auto named = ParseModelConfig(json.dump(), "");
  json["rope_scaling"] = nullptr;
  const auto null = ParseModelConfig(json.dump(), "");

  ASSERT_TRUE(named.ok()) << named.status();
  EXPECT_EQ(named->rope.factor, 1.0);
  ASSERT_TRUE(null.ok()) << null.status();
  EXPECT_EQ(null->rope.factor, 1.0);
}

TEST(ConfigTest, RefusesWhatItWouldComputeWronglyAndSaysWhatWouldDo) {
  struct Case {
    const char* name;
    const char* pointer;
    Json value;
    std::vector<const char*> said;
  };

  const Case cases[] = {
      {"model type", "/model_type", "llama", {"model_type", "\"llama\"", "\"gpt_oss\""}},
      {"rope type", "/rope_scaling/rope_type", "llama3", {"rope_type", "\"llama3\"", "\"yarn\""}},
      {"rope setting", "/rope_scaling/mscale", 0.7, {"rope_scaling.mscale", "0.7", "remove"}},
      {"rope contradiction",
       "/rope_parameters",
       {{"rope_type", "default"}},
       {"rope_", "contradict"}},
      {"quantization",
       "/quantization_config/quant_method",
       "bitsandbytes",
       {"quant_method", "\"bitsandbytes\"", "\"mxfp4\""}},
      {"layer type",
       "/layer_types/3",
       "linear_attention",
       {"layer_types", "\"linear_attention\"", "\"full_attention\""}},
      {"layer types",
       "/layer_types",
       Json::array({"full_attention"}),
       {"layer_types", "24 entries"}},
      {"activation", "/hidden_act", "gelu", {"hidden_act", "\"gelu\"", "\"silu\""}},
      {"no biases", "/attention_bias", false, {"attention_bias", "false", "true"}},
      {"tied", "/tie_word_embeddings", true, {"tie_word_embeddings", "true", "false"}},
      {"negative", "/hidden_size", -64, {"hidden_size", "-64", "from 1 to"}},
      {"huge", "/num_local_experts", 1e18, {"num_local_experts", "1e+18"}},
      {"text", "/head_dim", "64", {"head_dim", "\"64\"", "number"}},
      {"fraction", "/head_dim", 64.5, {"head_dim", "64.5", "whole"}},
      {"odd head", "/head_dim", 63, {"head_dim", "63", "even"}},
      {"groups", "/hidden_size", 2881, {"2881", "multiples of 32"}},
      {"kv heads", "/num_key_value_heads", 7, {"64", "7", "multiple"}},
      {"top k", "/num_experts_per_tok", 33, {"33"}},
      {"alias contradiction", "/num_experts", 64, {"num_experts", "64", "contradicts", "32"}},
      {"window", "/sliding_window", 0, {"sliding_window", "0"}},
      {"eos", "/eos_token_id", 201088, {"eos_token_id", "201088", "201087"}},
      {"yarn range", "/rope_scaling/beta_fast", 0.5, {"YaRN", "low < high"}},
      {"theta", "/rope_theta", nullptr, {"rope_theta", "150000"}},
  };
  for (const Case& c : cases) {
    Json json = Released();
    json[Json::json_pointer(c.pointer)] = c.value;
    if (std::string(c.name) == "top k") json["experts_per_token"] = 33;
    const std::string error = ErrorOf(json);
    for (const char* said : c.said) EXPECT_THAT(error, HasSubstr(said)) << c.name;
  }
}

TEST(ConfigTest, RefusesMissingKeysByName) {
  for (const char* key : {"hidden_size",
                          "num_local_experts",
                          "head_dim",
                          "rms_norm_eps",
                          "vocab_size",
                          "rope_scaling",
                          "model_type"}) {
    Json json = Released();
    json.erase(key);
    EXPECT_THAT(ErrorOf(json), HasSubstr(key));
  }
}

TEST(StrictJsonTest, RefusesDuplicatesDepthAndNonsense) {
  const auto error = [](const std::string& text) {
    const auto json = ParseStrictJson(text, "file.json");
    return json.ok() ? "accepted" : std::string(json.status().message());
  };
  EXPECT_THAT(error(R"({"a": 1, "b": {"a": 2}, "a": 3})"),
              AllOf(HasSubstr("\"a\""), HasSubstr("twice")));
  EXPECT_THAT(error(R"([{"a": 1}, {"a": 2}])"), HasSubstr("object is needed"));
  EXPECT_THAT(error("{\"a\": " + std::string(1'000'000, '[')), HasSubstr("deeper than 64"));
  EXPECT_THAT(error("{\"a\": }"), AllOf(HasSubstr("file.json"), HasSubstr("byte 7")));
  EXPECT_THAT(error(""), HasSubstr("not valid JSON"));
  EXPECT_EQ(error(R"({"b": {"a": 2}, "a": [{"a": 3}, {"a": 3}]})"), "accepted");
}

TEST(ValidateTest, TinyAndReleasedModelsAreLegal) {
  EXPECT_TRUE(ModelConfig::Tiny().Validate().ok());
  EXPECT_TRUE(ModelConfig::GptOss20b().Validate().ok());
  EXPECT_TRUE(ModelConfig::GptOss120b().Validate().ok());
  ModelConfig odd = ModelConfig::Tiny();
  odd.intermediate = 100;
  EXPECT_FALSE(odd.Validate().ok());
  odd.storage = ExpertStorage::kBf16;
  EXPECT_TRUE(odd.Validate().ok()) << "BF16 experts have no blocks of 32";
}

// Spec 8.2, column "omega (fp32 reference arithmetic)".
TEST(RopeTest, FrequenciesOfTheReleasedModels) {
  constexpr float kOmega[32] = {
      1.000000000e+00f, 6.890442967e-01f, 4.747820497e-01f, 3.271458745e-01f, 2.254180014e-01f,
      1.553229839e-01f, 1.070244238e-01f, 7.374456525e-02f, 5.081327260e-02f, 3.170569614e-02f,
      1.933499984e-02f, 1.159204915e-02f, 6.794959307e-03f, 3.860359080e-03f, 2.093792660e-03f,
      1.052602194e-03f, 4.564839182e-04f, 1.293186942e-04f, 3.830881178e-05f, 2.639646846e-05f,
      1.818833698e-05f, 1.253256960e-05f, 8.635495760e-06f, 5.950239483e-06f, 4.099978469e-06f,
      2.825066758e-06f, 1.946596285e-06f, 1.341290954e-06f, 9.242089618e-07f, 6.368209142e-07f,
      4.387978549e-07f, 3.023511397e-07f};

  const auto rope = ComputeRopeFrequencies(ModelConfig::GptOss20b().rope, 64);

  ASSERT_TRUE(rope.ok()) << rope.status();
  ASSERT_EQ(rope->omega.size(), 32u);
  EXPECT_DOUBLE_EQ(rope->magnitude, 1.3465735902799727);
  for (size_t i = 0; i < 32; ++i) {
    const float omega = static_cast<float>(rope->omega[i]);
    EXPECT_LE(omega, std::nextafter(kOmega[i], 2.0f)) << i;  // Within one unit in the last place
    EXPECT_GE(omega, std::nextafter(kOmega[i], 0.0f)) << i;
  }
}

TEST(RopeTest, TruncationMovesTheBlend) {
  RopeConfig rope = ModelConfig::GptOss20b().rope;
  rope.truncate = true;

  const auto frequencies = ComputeRopeFrequencies(rope, 64);

  ASSERT_TRUE(frequencies.ok());
  EXPECT_NEAR(frequencies->omega[9], 3.162075228e-02, 1e-11);
  EXPECT_NEAR(frequencies->omega[17], 2.279477958e-04, 1e-13);
}

// Spec 8.2, columns "m cos fp32" and "m sin fp32".
TEST(RopeTest, TableOfTheReleasedModels) {
  struct Row {
    size_t position, pair;
    double cos, sin;
  };

  constexpr Row kRows[] = {{1, 0, 0.72755688, 1.13310254},
                           {1, 8, 1.34483552, 0.06839437},
                           {1, 31, 1.34657359, 4.0713806e-07},
                           {127, 1, 1.20900273, -0.59293586},
                           {1000, 12, 1.17404687, 0.65945011},
                           {131071, 1, 0.95820332, -0.94610083},
                           {131071, 17, -0.43485624, -1.27442551},
                           {131071, 31, 1.34551632, 0.05335003}};

  const std::vector<float> table = RopeTable(ModelConfig::GptOss20b(), 131'072);

  ASSERT_EQ(table.size(), 131'072u * 64u);
  for (const Row& row : kRows) {
    const size_t at = (row.position * 32 + row.pair) * 2;
    EXPECT_NEAR(table[at], row.cos, 1.3e-7 * std::abs(row.cos) + 6e-9)
        << row.position << " " << row.pair;
    EXPECT_NEAR(table[at + 1], row.sin, 1.3e-7 * std::abs(row.sin))
        << row.position << " " << row.pair;
  }
  EXPECT_EQ(table[0], static_cast<float>(1.3465735902799727));
  EXPECT_EQ(table[1], 0.0f);
}

TEST(RopeTest, PortableCosSinAgreesWithTheLibrary) {
  for (int n = 0; n <= 200'000; ++n) {
    const double x = n * 0.65536;  // 0 to 131,072
    const CosSin turn = PortableCosSin(x);
    ASSERT_NEAR(turn.cos, std::cos(x), 4e-16) << x;
    ASSERT_NEAR(turn.sin, std::sin(x), 4e-16) << x;
  }
  EXPECT_EQ(PortableCosSin(-1.0).sin, -PortableCosSin(1.0).sin);
}

}  // namespace
}  // namespace shoal
