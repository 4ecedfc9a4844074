// Checkpoint folders as they are released, re-saved, cut off and tampered with.
#include <sys/wait.h>
#include <unistd.h>

#include <cstring>
#include <filesystem>
#include <fstream>
#include <sstream>
#include <string>
#include <vector>

#include "absl/strings/numbers.h"
#include "cli/inspect.h"
#include "cli/synthetic_checkpoint.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"

#include "kernels/cpu/backend.h"
#include "model/config_writer.h"
#include "model/safetensors.h"
#include "model/shards.h"
#include "model/synthetic.h"
#include "model/tensors.h"
#include "tests/support/temp_folder.h"
#include "tests/worker/load_fake_backend.h"
#include "worker/load/checkpoint.h"
#include "worker/load/loader.h"

namespace shoal {
namespace {

namespace fs = std::filesystem;
using ::testing::AllOf;
using ::testing::HasSubstr;

constexpr int64_t kOneFile = int64_t{1} << 40;

ModelConfig Tiny(ExpertStorage storage = ExpertStorage::kMxfp4) {
  ModelConfig config = ModelConfig::Tiny();
  config.storage = storage;
  return config;
}

void Write(const std::string& dir,
           const ModelConfig& config,
           CheckpointLayout layout = CheckpointLayout::kHuggingFace,
           int64_t shard_bytes = kOneFile) {
  const absl::Status status = WriteSyntheticCheckpoint(
      {.dir = dir, .config = config, .layout = layout, .shard_bytes = shard_bytes}, nullptr);
  ASSERT_TRUE(status.ok()) << status;
}

std::string ErrorOf(const std::string& dir) {
  const auto source = OpenCheckpoint(dir);
  return source.ok() ? "accepted" : std::string(source.status().message());
}

// The first tensor that does not read as the formula says; empty: all do.
std::string FirstDifference(const WeightSource& source) {
  ModelConfig stored = source.config();
  stored.storage = source.stored();
  for (const ModelTensor& tensor : ModelTensors(stored)) {
    std::vector<std::byte> expected(static_cast<size_t>(tensor.bytes())), read(expected.size());
    FillSynthetic(tensor, 0, expected);
    if (!source.Read(tensor.name, 0, read).ok() || read != expected) return tensor.name;
    const size_t third = read.size() / 3;
    std::vector<std::byte> part(third);
    if (!source.Read(tensor.name, static_cast<int64_t>(third), part).ok() ||
        std::memcmp(part.data(), expected.data() + third, third) != 0) {
      return tensor.name + " (part)";
    }
  }
  return "";
}

TEST(CheckpointTest, AllLayoutsGiveTheSameWeights) {
  struct Case {
    const char* name;
    ExpertStorage storage;
    CheckpointLayout layout;
    int64_t shard_bytes;
    const char* layout_name;
  };

  const Case cases[] = {
      {"hf", ExpertStorage::kMxfp4, CheckpointLayout::kHuggingFace, kOneFile, "Hugging Face MXFP4"},
      {"hf_sharded",
       ExpertStorage::kMxfp4,
       CheckpointLayout::kHuggingFace,
       70'000,
       "Hugging Face MXFP4"},
      {"original", ExpertStorage::kMxfp4, CheckpointLayout::kOriginal, kOneFile, "OpenAI original"},
      {"original_sharded",
       ExpertStorage::kMxfp4,
       CheckpointLayout::kOriginal,
       90'000,
       "OpenAI original"},
      {"bf16", ExpertStorage::kBf16, CheckpointLayout::kHuggingFace, kOneFile, "Hugging Face BF16"},
      {"bf16_sharded",
       ExpertStorage::kBf16,
       CheckpointLayout::kHuggingFace,
       400'000,
       "Hugging Face BF16"},
  };
  TempFolder folder;
  for (const Case& c : cases) {
    Write(folder / c.name, Tiny(c.storage), c.layout, c.shard_bytes);
    const auto checkpoint = Checkpoint::Open(folder / c.name);
    ASSERT_TRUE(checkpoint.ok()) << c.name << ": " << checkpoint.status();
    EXPECT_EQ((*checkpoint)->config(), Tiny(ExpertStorage::kMxfp4)) << c.name;
    EXPECT_EQ((*checkpoint)->stored(), c.storage) << c.name;
    EXPECT_EQ(LayoutName((*checkpoint)->layout(), c.storage), c.layout_name);
    EXPECT_EQ((*checkpoint)->files().size() == 1, c.shard_bytes == kOneFile);
    EXPECT_EQ(FirstDifference(**checkpoint), "") << c.name;
  }
}

// Every bf16 of one expert's down_proj in layer 2 gets its last bit set, as by training.
void Train(const std::string& file, int expert) {
  const auto checkpoint = Checkpoint::Open(fs::path(file).parent_path());
  ASSERT_TRUE(checkpoint.ok()) << checkpoint.status();
  const CheckpointFile& of = (*checkpoint)->files()[0];
  std::fstream stream(file, std::ios::in | std::ios::out | std::ios::binary);
  for (const StoredTensor& tensor : of.tensors) {
    if (tensor.name != "model.layers.2.mlp.experts.down_proj") continue;
    const int64_t bytes = (tensor.end - tensor.begin) / 8;
    std::string values(static_cast<size_t>(bytes), '\0');
    const auto at = static_cast<std::streamoff>(of.data_begin + tensor.begin + expert * bytes);
    stream.seekg(at).read(values.data(), bytes);
    for (size_t i = 0; i < values.size(); i += 2) values[i] = static_cast<char>(values[i] | 1);
    stream.seekp(at).write(values.data(), bytes);
  }
  ASSERT_TRUE(stream.flush().good());
}

TEST(CheckpointTest, Bf16ExpertsArePackedOnlyIfTheyAreMxfp4) {
  TempFolder folder;
  Write(folder / "saved", Tiny(ExpertStorage::kBf16));
  fs::copy(folder / "saved", folder / "tuned");
  Train(folder / "tuned/model.safetensors", 6);

  const auto saved = Checkpoint::Open(folder / "saved");
  const auto kept = Checkpoint::Open(folder / "saved", Bf16Experts::kKeep);
  const auto tuned = Checkpoint::Open(folder / "tuned");

  ASSERT_TRUE(saved.ok() && kept.ok() && tuned.ok());
  EXPECT_EQ((*saved)->config().storage, ExpertStorage::kMxfp4);
  EXPECT_EQ((*kept)->config().storage, ExpertStorage::kBf16);
  EXPECT_EQ((*tuned)->config().storage, ExpertStorage::kBf16);
  for (const auto* checkpoint : {&saved, &kept, &tuned}) {
    EXPECT_EQ((**checkpoint)->stored(), ExpertStorage::kBf16);
  }
  EXPECT_NE((*saved)->digest(), (*kept)->digest()) << "their bits differ: no cell may mix them";
}

// The samples missed what was trained: an error, not a guess.
TEST(CheckpointTest, ABf16ExpertThatOnlyLooksLikeMxfp4IsNamedAtItsLoad) {
  TempFolder folder;
  Write(folder / "m", Tiny(ExpertStorage::kBf16));
  const auto checkpoint = Checkpoint::Open(folder / "m");
  ASSERT_TRUE(checkpoint.ok()) << checkpoint.status();
  Train(folder / "m/model.safetensors", 6);
  LoadFakeBackend backend;
  const auto set = ExpertSet::Create(checkpoint->get(), &backend);
  const std::vector<ExpertId> sound = {ExpertId{5}}, trained = {ExpertId{6}};

  EXPECT_TRUE(set->Hold(sound, nullptr).ok());
  const absl::Status status = set->Hold(trained, nullptr);

  EXPECT_EQ(status.code(), absl::StatusCode::kDataLoss);
  EXPECT_THAT(std::string(status.message()),
              AllOf(HasSubstr("model.layers.2.mlp.experts.down_proj: the block [6, 0 to 31, 0]"),
                    HasSubstr("--load-format stored")));
}

TEST(CheckpointTest, TheIndexIsNotNeeded) {
  TempFolder folder;
  Write(folder / "a", Tiny(), CheckpointLayout::kHuggingFace, 70'000);
  ASSERT_TRUE(fs::remove(folder / "a/model.safetensors.index.json"));

  const auto source = OpenCheckpoint(folder / "a");

  ASSERT_TRUE(source.ok()) << source.status();
  EXPECT_EQ(FirstDifference(**source), "");
}

// A release has config.json, the shards and original/ with the same weights again; a user may have
// downloaded only one of them.
TEST(CheckpointTest, OriginalFolderIsUsedOnlyWhereTheRestIsMissing) {
  TempFolder folder;
  Write(folder / "both", Tiny());
  Write(folder / "both/original", Tiny(), CheckpointLayout::kOriginal);
  Write(folder / "only/original", Tiny(), CheckpointLayout::kOriginal);
  fs::copy_file(folder / "both/config.json", folder / "only/config.json");

  const auto both = Checkpoint::Open(folder / "both");
  const auto only = Checkpoint::Open(folder / "only");

  ASSERT_TRUE(both.ok()) << both.status();
  EXPECT_EQ((*both)->layout(), CheckpointLayout::kHuggingFace);
  EXPECT_EQ((*both)->files().size(), 1u);
  ASSERT_TRUE(only.ok()) << only.status();
  EXPECT_EQ((*only)->layout(), CheckpointLayout::kOriginal);
  EXPECT_EQ(FirstDifference(**only), "");
}

TEST(CheckpointTest, DigestIsEqualForCopiesAndNothingElse) {
  TempFolder folder;
  Write(folder / "a", Tiny());
  fs::copy(folder / "a", folder / "copy");
  fs::copy(folder / "a", folder / "tuned");
  Write(folder / "bf16", Tiny(ExpertStorage::kBf16));
  {
    // The last tensor of the last layer, in its middle: as a fine-tune would, same shapes and
    // sizes.
    const auto checkpoint = Checkpoint::Open(folder / "tuned");
    ASSERT_TRUE(checkpoint.ok());
    const CheckpointFile& file = (*checkpoint)->files()[0];
    const StoredTensor& tensor = file.tensors.back();
    std::fstream out(folder / "tuned/model.safetensors",
                     std::ios::in | std::ios::out | std::ios::binary);
    out.seekp(file.data_begin + (tensor.begin + tensor.end) / 2);
    out.put('\xEE');
  }
  const auto digest = [&](const char* name) { return (*OpenCheckpoint(folder / name))->digest(); };

  EXPECT_EQ(digest("a").size(), 16u);
  EXPECT_EQ(digest("a"), digest("copy"));
  EXPECT_NE(digest("a"), digest("tuned"));
  EXPECT_NE(digest("a"), digest("bf16"));
  EXPECT_NE(digest("a"), MakeSyntheticSource(Tiny())->digest());
}

TEST(CheckpointTest, RefusesFoldersThatAreNone) {
  TempFolder folder;
  Write(folder / "a", Tiny());
  fs::create_directory(folder / "empty");
  fs::create_directory(folder / "config_only");
  fs::copy_file(folder / "a/config.json", folder / "config_only/config.json");

  EXPECT_THAT(ErrorOf(folder / "missing"),
              AllOf(HasSubstr("missing"), HasSubstr("no such folder")));
  EXPECT_THAT(ErrorOf(folder / "a/config.json"), HasSubstr("no such folder"));
  EXPECT_THAT(
      ErrorOf(folder / "empty"),
      AllOf(HasSubstr("neither config.json nor original/config.json"), HasSubstr("is needed")));
  EXPECT_THAT(ErrorOf(folder / "config_only"),
              AllOf(HasSubstr("no *.safetensors"), HasSubstr("download")));
}

// A Tiny checkpoint of zeros whose tensor list was changed before it was written.
template <typename Change>
std::string ErrorAfter(const Change& change) {
  TempFolder folder;
  std::vector<FileTensor> tensors = FileTensors(Tiny(), CheckpointLayout::kHuggingFace);
  change(&tensors);
  const Shard shard = PlanShards(tensors, CheckpointLayout::kHuggingFace, kOneFile)[0];
  const std::string header = WriteSafetensorsHeader(shard.tensors);
  std::ofstream(folder / "model.safetensors") << header;
  fs::resize_file(folder / "model.safetensors",
                  header.size() + static_cast<size_t>(shard.tensors.back().end));
  std::ofstream(folder / "config.json") << WriteConfigJson(Tiny(), CheckpointLayout::kHuggingFace);
  return ErrorOf(folder.path());
}

FileTensor* Named(std::vector<FileTensor>* tensors, const std::string& name) {
  for (FileTensor& tensor : *tensors) {
    if (tensor.name == name) return &tensor;
  }
  return nullptr;
}

constexpr char kRouter[] = "model.layers.2.mlp.router.weight";

TEST(CheckpointTest, RefusesOtherTensorsThanTheConfigSays) {
  EXPECT_EQ(ErrorAfter([](std::vector<FileTensor>*) {}), "accepted");
  EXPECT_THAT(ErrorAfter([](std::vector<FileTensor>* t) {
                t->erase(t->begin() + (Named(t, kRouter) - t->data()));
              }),
              HasSubstr("missing: model.layers.2.mlp.router.weight (BF16 [8, 64])"));
  EXPECT_THAT(ErrorAfter([](std::vector<FileTensor>* t) {
                t->push_back({"model.layers.4.extra", StoredType::kU8, {2, 3}});
              }),
              HasSubstr("not expected: model.layers.4.extra (U8 [2, 3])"));
  EXPECT_THAT(
      ErrorAfter([](std::vector<FileTensor>* t) {
        Named(t, kRouter)->shape = {64, 8};
      }),
      AllOf(HasSubstr("model.safetensors: tensor model.layers.2.mlp.router.weight is BF16 [64, 8]"),
            HasSubstr("BF16 [8, 64] is needed")));
  EXPECT_THAT(
      ErrorAfter([](std::vector<FileTensor>* t) { Named(t, kRouter)->type = StoredType::kU8; }),
      AllOf(HasSubstr("router.weight is U8 [8, 64]"), HasSubstr("BF16 [8, 64] is needed")));
  EXPECT_THAT(ErrorAfter([](std::vector<FileTensor>* t) { t->resize(t->size() / 2); }),
              HasSubstr("more"));
}

TEST(CheckpointTest, RefusesExpertsInAnotherFormatThanTheConfigSays) {
  TempFolder folder;
  Write(folder / "a", Tiny());
  std::ofstream(folder / "a/config.json")
      << WriteConfigJson(Tiny(ExpertStorage::kBf16), CheckpointLayout::kHuggingFace);

  EXPECT_THAT(
      ErrorOf(folder / "a"),
      AllOf(HasSubstr("missing: model.layers.0.mlp.experts.gate_up_proj (BF16 [8, 64, 192])"),
            HasSubstr(
                "not expected: model.layers.0.mlp.experts.down_proj_blocks (U8 [8, 64, 3, 16])")));
}

TEST(CheckpointTest, RefusesDamagedFilesByName) {
  TempFolder folder;
  Write(folder / "a", Tiny());
  const std::string file = folder / "a/model.safetensors";
  const auto size = fs::file_size(file);

  fs::resize_file(file, size - 1);
  EXPECT_THAT(ErrorOf(folder / "a"), AllOf(HasSubstr(file), HasSubstr("truncated")));
  fs::resize_file(file, 1000);
  EXPECT_THAT(ErrorOf(folder / "a"), AllOf(HasSubstr(file), HasSubstr("the file has only 992")));
  fs::resize_file(file, 5);
  EXPECT_THAT(ErrorOf(folder / "a"), AllOf(HasSubstr(file), HasSubstr("5 bytes")));
  std::ofstream(file) << std::string("\0\0\0\x10\0\0\0\0", 8) << "{}";
  EXPECT_THAT(ErrorOf(folder / "a"),
              AllOf(HasSubstr("claims 268435456 bytes"), HasSubstr("at most 100000000")));
  fs::remove(file);
  EXPECT_THAT(ErrorOf(folder / "a"), HasSubstr("no *.safetensors"));
}

TEST(CheckpointTest, RefusesAnIndexThatDisagreesWithTheFiles) {
  TempFolder folder;
  Write(folder / "a", Tiny(), CheckpointLayout::kHuggingFace, 150'000);
  fs::copy(folder / "a", folder / "twice");
  const auto whole = Checkpoint::Open(folder / "a");
  ASSERT_TRUE(whole.ok());
  ASSERT_GT((*whole)->files().size(), 2u);
  const std::string shard = fs::path((*whole)->files()[1].reader.path()).filename();

  fs::remove(folder / ("a/" + shard));
  EXPECT_THAT(ErrorOf(folder / "a"), AllOf(HasSubstr(shard), HasSubstr("No such file")));
  fs::remove(folder / "a/model.safetensors.index.json");
  EXPECT_THAT(ErrorOf(folder / "a"), HasSubstr("missing: "));

  fs::remove(folder / "twice/model.safetensors.index.json");
  fs::copy_file(folder / ("twice/" + shard), folder / "twice/model-copy.safetensors");
  EXPECT_THAT(ErrorOf(folder / "twice"),
              AllOf(HasSubstr("is in "), HasSubstr("model-copy"), HasSubstr("once is needed")));
}

TEST(CheckpointTest, AFileCutOffAfterOpeningIsDataLoss) {
  TempFolder folder;
  Write(folder / "a", Tiny());
  const auto source = OpenCheckpoint(folder / "a");
  ASSERT_TRUE(source.ok());
  fs::resize_file(folder / "a/model.safetensors", 100'000);
  std::vector<std::byte> out(128 * 64 * 2);

  const absl::Status status =
      (*source)->Read("model.layers.3.mlp.experts.gate_up_proj_blocks", 0, out);

  EXPECT_EQ(status.code(), absl::StatusCode::kDataLoss);
  EXPECT_THAT(std::string(status.message()),
              AllOf(HasSubstr("model.safetensors"), HasSubstr("ends at byte")));
}

// From a file, as a user would meet it: see load_memory_test for its place in the message.
TEST(CheckpointTest, AScaleOf255InAFileIsFound) {
  TempFolder folder;
  Write(folder / "a", Tiny());
  {
    const auto checkpoint = Checkpoint::Open(folder / "a");
    ASSERT_TRUE(checkpoint.ok());
    const CheckpointFile& file = (*checkpoint)->files()[0];
    for (const StoredTensor& tensor : file.tensors) {
      if (tensor.name != "model.layers.1.mlp.experts.gate_up_proj_scales") continue;
      std::fstream out(file.reader.path(), std::ios::in | std::ios::out | std::ios::binary);
      out.seekp(file.data_begin + tensor.begin + 3 * 192 * 2);  // [3, 0, 0]
      out.put('\xFF');
    }
  }
  const auto source = OpenCheckpoint(folder / "a");
  ASSERT_TRUE(source.ok());
  LoadFakeBackend backend;
  const auto set = ExpertSet::Create(source->get(), &backend);
  const ExpertId good[] = {{2}}, bad[] = {{3}};

  EXPECT_TRUE(set->Hold(good, nullptr).ok());
  EXPECT_THAT(std::string(set->Hold(bad, nullptr).message()),
              HasSubstr("model.layers.1.mlp.experts.gate_up_proj_scales: scale [3, 0, 0] is 255"));
}

// Bytes that this process has read so far, from anywhere.
int64_t BytesRead() {
  std::ifstream file("/proc/self/io");
  std::string key;
  int64_t value = 0;
  file >> key >> value;
  return key == "rchar:" ? value : -1;
}

TEST(CheckpointTest, AWorkerReadsWhatInspectPredicts) {
  TempFolder folder;
  ModelConfig config = Tiny();
  config.num_experts = 12;
  config.hidden = 256;
  config.intermediate = 352;
  Write(folder / "a", config, CheckpointLayout::kHuggingFace, 1'000'000);
  for (const bool has_shared_dense : {false, true}) {
    const auto inspection =
        Inspect({.dir = folder / "a", .workers = 4, .has_shared_dense = has_shared_dense});
    ASSERT_TRUE(inspection.ok()) << inspection.status();
    const RankLoad& predicted = inspection->ranks[1];
    ASSERT_EQ(predicted.num_experts, 3);

    const int64_t before = BytesRead();
    const auto source = OpenCheckpoint(folder / "a");
    ASSERT_TRUE(source.ok()) << source.status();
    CpuBackend backend(CpuBackendOptions{.num_threads = 1});
    int64_t resident = 0;
    if (!has_shared_dense) {
      const auto dense = DenseSegment::Load(**source, nullptr);
      ASSERT_TRUE(dense.ok()) << dense.status();
      resident += (*dense)->bytes();
    }
    const auto experts = ExpertSet::Create(source->get(), &backend);
    const ExpertId held[] = {{3}, {4}, {11}};
    ASSERT_TRUE(experts->Hold(held, nullptr).ok());
    const int64_t read = BytesRead() - before;

    EXPECT_GT(before, 0);
    EXPECT_GE(read, predicted.bytes_read);
    EXPECT_LE(read, predicted.bytes_read + predicted.bytes_read / 100) << "at most 1 % over";
    EXPECT_EQ(resident + experts->resident_bytes(), predicted.bytes_resident);
  }
}

}  // namespace
}  // namespace shoal
