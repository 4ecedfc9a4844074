// The plan of a checkpoint's files against the published release.
#include "model/shards.h"

#include <fstream>
#include <sstream>
#include <string>

#include "gmock/gmock.h"
#include "gtest/gtest.h"

#include "base/prng.h"
#include "model/config_writer.h"

namespace shoal {
namespace {

using ::testing::HasSubstr;

std::string Golden(const std::string& name) {
  std::ifstream file(SHOAL_SOURCE_DIR "/tests/golden/release/" + name);
  std::ostringstream text;
  text << file.rdbuf();
  return text.str();
}

int64_t FileBytes(const Shard& shard) {
  return static_cast<int64_t>(WriteSafetensorsHeader(shard.tensors).size()) +
         shard.tensors.back().end;
}

TEST(ShardsTest, The20bIsCutAsReleased) {
  const auto tensors = FileTensors(ModelConfig::GptOss20b(), CheckpointLayout::kHuggingFace);

  const auto shards = PlanShards(tensors, CheckpointLayout::kHuggingFace, kReleasedShardBytes);

  ASSERT_EQ(shards.size(), 3u);
  EXPECT_EQ(shards[0].file, "model-00000-of-00002.safetensors");
  EXPECT_EQ(shards[2].file, "model-00002-of-00002.safetensors");
  EXPECT_EQ(FileBytes(shards[0]), 4'792'272'488);
  EXPECT_EQ(FileBytes(shards[1]), 4'798'702'184);
  EXPECT_EQ(FileBytes(shards[2]), 4'170'342'232);
  // The released index has 36,355 bytes and sha256 0e085b977c4c...502cd1; this is the FNV-1a of
  // those bytes, which make_release_files.py writes.
  const std::string index = WriteShardIndex(tensors, shards);
  EXPECT_EQ(index.size(), 36'355u);
  EXPECT_EQ(Fnv1a64(index), 0x83db2dbee5922e9fu);
}

TEST(ShardsTest, ConfigFilesAreTheReleasedBytes) {
  EXPECT_EQ(WriteConfigJson(ModelConfig::GptOss20b(), CheckpointLayout::kHuggingFace),
            Golden("config_20b.json"));
  EXPECT_EQ(WriteConfigJson(ModelConfig::GptOss120b(), CheckpointLayout::kHuggingFace),
            Golden("config_120b.json"));
  EXPECT_EQ(WriteGenerationConfigJson(ModelConfig::GptOss20b()), Golden("generation_config.json"));
}

TEST(ShardsTest, ConfigFilesReadBack) {
  ModelConfig odd = ModelConfig::Tiny();
  odd.rope.truncate = true;
  odd.rope.attention_factor = 1.25;
  odd.rope.theta = 10000.5;
  odd.swiglu_alpha = 1.5;
  odd.storage = ExpertStorage::kBf16;
  odd.is_window_layer = {false, true, true, false};
  ModelConfig plain = ModelConfig::Tiny();
  plain.rope = {.theta = 5e5, .factor = 1.0};
  for (const ModelConfig& config : {ModelConfig::Tiny(), ModelConfig::GptOss20b(), odd, plain}) {
    const auto read = ParseModelConfig(WriteConfigJson(config, CheckpointLayout::kHuggingFace),
                                       WriteGenerationConfigJson(config));
    ASSERT_TRUE(read.ok()) << read.status();
    EXPECT_EQ(*read, config);
  }
  const auto original =
      ParseModelConfig(WriteConfigJson(ModelConfig::Tiny(), CheckpointLayout::kOriginal),
                       WriteGenerationConfigJson(ModelConfig::Tiny()));
  ASSERT_TRUE(original.ok()) << original.status();
  EXPECT_EQ(*original, ModelConfig::Tiny());
}

TEST(ShardsTest, OriginalShardsCountFromOne) {
  const auto tensors = FileTensors(ModelConfig::Tiny(), CheckpointLayout::kOriginal);

  const auto shards = PlanShards(tensors, CheckpointLayout::kOriginal, 100'000);

  ASSERT_GT(shards.size(), 2u);
  EXPECT_EQ(shards[0].file,
            "model--00001-of-0000" + std::to_string(shards.size()) + ".safetensors");
  EXPECT_EQ(PlanShards(tensors, CheckpointLayout::kOriginal, 1 << 30)[0].file, "model.safetensors");
}

TEST(ShardsTest, EveryTensorIsInOneShardAndTheIndexFindsIt) {
  const auto tensors = FileTensors(ModelConfig::Tiny(), CheckpointLayout::kHuggingFace);

  const auto shards = PlanShards(tensors, CheckpointLayout::kHuggingFace, 60'000);
  const auto index = ParseShardIndex(WriteShardIndex(tensors, shards));

  ASSERT_TRUE(index.ok()) << index.status();
  size_t count = 0;
  for (const Shard& shard : shards) {
    for (const StoredTensor& tensor : shard.tensors) {
      EXPECT_EQ(index->at(tensor.name), shard.file);
      ++count;
    }
  }
  EXPECT_EQ(count, tensors.size());
  EXPECT_EQ(index->size(), tensors.size());
}

TEST(ShardsTest, RefusesAnIndexThatLeadsElsewhere) {
  const auto error = [](const char* json) {
    const auto index = ParseShardIndex(json);
    return index.ok() ? std::string("accepted") : std::string(index.status().message());
  };
  EXPECT_THAT(error(R"({"weight_map": {"x": "../y.safetensors"}})"),
              HasSubstr("\"../y.safetensors\""));
  EXPECT_THAT(error(R"({"weight_map": {"x": "y.bin"}})"), HasSubstr("y.bin"));
  EXPECT_THAT(error(R"({"weight_map": {"x": 3}})"), HasSubstr("is said to be in 3"));
  EXPECT_THAT(error(R"({"weight_map": {}})"), HasSubstr("empty"));
  EXPECT_THAT(error(R"({"weight_map": {"x": "a.safetensors", "x": "b.safetensors"}})"),
              HasSubstr("twice"));
  EXPECT_THAT(error("[]"), HasSubstr("object is needed"));
}

}  // namespace
}  // namespace shoal
