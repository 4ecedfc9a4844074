// The model against exact arithmetic (the golden numbers of an independent float64 implementation),
// and against itself: equal bits for every way in which the same tokens can be computed.
#include "worker/forward.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <fstream>
#include <map>
#include <sstream>
#include <string>
#include <utility>
#include <vector>

#include "gtest/gtest.h"

#include "base/prng.h"
#include "kernels/numeric.h"
#include "tests/worker/cell_rig.h"
#include "tests/worker/nccl_cell.h"

namespace shoal {
namespace {

// The errors of OpenAI's own bf16 reference on the micro-model: 0.026 and 0.0062 (spec 8.6).
constexpr double kMaxError = 0.026;
constexpr double kMeanError = 0.007;
// Two logits nearer than this may change places.
constexpr double kMargin = 0.05;

std::vector<TokenId> Tokens(std::initializer_list<int> ids) {
  std::vector<TokenId> tokens;
  for (const int id : ids) tokens.push_back(TokenId{id});
  return tokens;
}

std::vector<TokenId> ShortPrompt() {
  return Tokens({101, 16, 47, 28, 18, 71, 18, 49, 87, 101, 71, 77});
}

// Prompts that differ from each other from the first token on.
std::vector<std::vector<TokenId>> MixedPrompts(int count) {
  std::vector<std::vector<TokenId>> prompts;
  Prng prng(8);
  for (int i = 0; i < count; ++i) {
    std::vector<TokenId>& prompt = prompts.emplace_back();
    const uint64_t length = 1 + prng.Below(i % 4 == 0 ? 100 : 36);
    for (uint64_t t = 0; t < length; ++t) {
      prompt.push_back(TokenId{static_cast<int32_t>(prng.Below(128))});
    }
  }
  return prompts;
}

// Of tests/golden/make_micro_model_logits.py.
struct Golden {
  std::vector<TokenId> tokens;
  std::map<size_t, std::vector<double>> logits;  // By position
};

Golden ReadGolden(const std::string& prompt) {
  Golden golden;
  std::ifstream file(SHOAL_SOURCE_DIR "/tests/golden/micro_model_logits.txt");
  for (std::string line; std::getline(file, line);) {
    std::istringstream words(line);
    std::string name;
    size_t position = 0;
    int32_t token = 0;
    words >> name >> position >> token;
    if (name != prompt) continue;
    EXPECT_EQ(position, golden.tokens.size());
    golden.tokens.push_back(TokenId{token});
    std::vector<double> logits;
    for (double value = 0.0; words >> value;) logits.push_back(value);
    if (!logits.empty()) golden.logits[position] = std::move(logits);
  }
  return golden;
}

uint64_t Hash(const std::vector<std::vector<float>>& logits) {
  uint64_t hash = kFnvOffset;
  for (const std::vector<float>& values : logits) {
    for (const float value : values) {
      hash = Mix64(hash ^ std::bit_cast<uint32_t>(value)) + kSplitMixStep;
    }
    hash = Mix64(hash + values.size());
  }
  return hash;
}

uint64_t HashOf(const RigOptions& rig_options,
                std::span<const std::vector<TokenId>> prompts,
                const DriveOptions& drive_options) {
  CellRig rig(rig_options);
  return Hash(DrivePrompts(&rig, prompts, drive_options));
}

void ExpectNearGolden(const std::string& prompt, const DriveOptions& options) {
  const Golden golden = ReadGolden(prompt);
  ASSERT_GT(golden.logits.size(), 10u);
  CellRig rig({});
  const std::vector<std::vector<TokenId>> prompts = {golden.tokens};
  const std::vector<float> logits = DrivePrompts(&rig, prompts, options).front();
  ASSERT_EQ(logits.size(), golden.tokens.size() * 128);
  double worst = 0.0;
  double sum = 0.0;
  for (const auto& [position, exact] : golden.logits) {
    ASSERT_EQ(exact.size(), 128u);
    const auto ours = std::span(logits).subspan(position * 128, 128);
    const auto best = static_cast<size_t>(std::ranges::max_element(exact) - exact.begin());
    for (size_t v = 0; v < 128; ++v) {
      const double error = std::abs(ours[v] - exact[v]);
      ASSERT_FALSE(std::isnan(error)) << prompt << " position " << position;
      worst = std::max(worst, error);
      sum += error;
      if (exact[v] < exact[best] - kMargin) {
        EXPECT_LT(ours[v], ours[best]) << prompt << " position " << position << " token " << v;
      }
    }
  }
  const double mean = sum / (128.0 * static_cast<double>(golden.logits.size()));
  std::printf("%s prompt: max error %.4f, mean %.5f\n", prompt.c_str(), worst, mean);
  EXPECT_LE(worst, kMaxError);
  EXPECT_LE(mean, kMeanError);
}

TEST(ForwardTest, TwelveTokensAgreeWithExactArithmetic) {
  ExpectNearGolden("short", {});
}

TEST(ForwardTest, ThreeHundredTokensAgreeWithExactArithmetic) {
  ExpectNearGolden("long", {.chunk = 48});
}

// Spec 8.6 lists the residual stream of token 11 after each layer, and its experts. A model cut off
// after n layers has the same first n.
TEST(ForwardTest, EveryLayerAgreesWithExactArithmetic) {
  struct Layer {
    double residual[4];
    int experts[4];
  };

  constexpr Layer kLayers[] = {{{2.880488, -0.915924, 0.865490, -0.888619}, {5, 4, 1, 3}},
                               {{1.976431, -0.782403, 1.586663, 0.950411}, {7, 5, 0, 1}},
                               {{1.722455, 1.026849, 0.322957, 1.661175}, {1, 7, 2, 5}},
                               {{0.867265, -0.665875, -0.014908, 2.811488}, {0, 6, 3, 7}}};
  for (int layers = 1; layers <= 4; ++layers) {
    RigOptions options;
    options.config.num_layers = layers;
    options.config.is_window_layer.resize(static_cast<size_t>(layers));
    if (layers == 1) options.config.is_window_layer = {true};
    CellRig rig(options);
    const std::vector<std::vector<TokenId>> prompts = {ShortPrompt()};
    DrivePrompts(&rig, prompts, {});
    const Activations& act = *rig.rank(0).activations;
    for (int i = 0; i < 4; ++i) {
      const float residual = act.hidden.row<float>(11)[i];
      EXPECT_NEAR(residual, kLayers[layers - 1].residual[i], 0.03) << layers << " layers, " << i;
      EXPECT_EQ(act.expert_ids.row<int32_t>(11)[i], kLayers[layers - 1].experts[i]);
    }
  }
}

// Values of layer 0, token 11 from spec 8.6: what the K/V cache holds.
TEST(ForwardTest, CacheHoldsRotatedKeysAndPlainValues) {
  CellRig rig({});
  const SequenceId sequence{0};
  const std::vector<TokenId> tokens = ShortPrompt();
  ASSERT_TRUE(rig.rank(0)
                  .records
                  .Keep({.term = {},
                         .sequence = sequence,
                         .index = 0,
                         .tokens = tokens,
                         .prompt_length = 12,
                         .sampling = {},
                         .envelope = ""})
                  .ok());
  StepPlan plan;
  plan.entries.push_back({.sequence = sequence,
                          .first_position = 0,
                          .num_positions = 12,
                          .first_block = 0,
                          .full_blocks = {BlockId{5}},
                          .window_blocks = {BlockId{9}},
                          .wants_sample = false,
                          .wants_logits = false});
  rig.Step({plan});
  const KvLayer kv = rig.rank(0).kv_cache->layer(0);
  const auto* block =
      reinterpret_cast<const Bf16*>(static_cast<const std::byte*>(kv.data) + 9 * kv.block_bytes());
  const auto at = [&](int kind, int head, int position, int dim) {
    const int64_t row = (int64_t{kind} * kv.num_kv_heads + head) * kBlockTokens + position;
    return ToFloat(block[row * kv.head_dim + dim]);
  };
  EXPECT_NEAR(at(0, 0, 11, 0), 0.403592, 0.01);
  EXPECT_NEAR(at(0, 0, 11, 1), 0.212523, 0.01);
  EXPECT_NEAR(at(0, 0, 11, 16), -0.384837, 0.01);
  EXPECT_NEAR(at(0, 0, 11, 17), 2.376272, 0.02);
  EXPECT_NEAR(at(1, 0, 11, 0), -0.819806, 0.01);
  EXPECT_NEAR(at(1, 0, 11, 1), -1.646713, 0.01);
}

// One value, whatever the way. The reference: one rank, one sequence at a time, one chunk.
class EqualBitsTest : public testing::Test {
 protected:
  static const std::vector<std::vector<TokenId>>& Prompts() {
    static const auto* const prompts = new std::vector<std::vector<TokenId>>(MixedPrompts(12));
    return *prompts;
  }

  static uint64_t Reference() {
    static const uint64_t hash = HashOf({}, Prompts(), {});
    return hash;
  }
};

TEST_F(EqualBitsTest, ReferenceHasNoNan) {
  CellRig rig({});
  for (const std::vector<float>& values : DrivePrompts(&rig, Prompts(), {})) {
    for (const float value : values) ASSERT_TRUE(std::isfinite(value));
  }
}

TEST_F(EqualBitsTest, AnyNumberOfRanks) {
  for (const int32_t ranks : {2, 3, 5, 8}) {
    EXPECT_EQ(HashOf({.num_ranks = ranks}, Prompts(), {.batch = 5}), Reference()) << ranks;
  }
}

// What an overlapping exchange would do; more parts than some ranks have rows.
TEST_F(EqualBitsTest, AnyNumberOfPartsOfTheBatch) {
  for (const int32_t parts : {2, 3}) {
    const RigOptions options{.num_ranks = 3, .copies = 2, .num_parts = parts};
    EXPECT_EQ(HashOf(options, Prompts(), {.batch = 5}), Reference()) << parts;
  }
}

TEST_F(EqualBitsTest, AnyNumberOfCopies) {
  for (const int32_t copies : {2, 3}) {
    EXPECT_EQ(HashOf({.num_ranks = 3, .copies = copies}, Prompts(), {.batch = 5}), Reference());
  }
}

TEST_F(EqualBitsTest, AnyChunk) {
  for (const int32_t chunk : {1, 13, 32, 128}) {
    EXPECT_EQ(HashOf({}, Prompts(), {.chunk = chunk, .batch = 3}), Reference()) << chunk;
  }
}

TEST_F(EqualBitsTest, AnyBatch) {
  for (const int32_t batch : {2, 7, 12}) {
    EXPECT_EQ(HashOf({}, Prompts(), {.batch = batch}), Reference()) << batch;
  }
}

TEST_F(EqualBitsTest, RoomForFewRowsOnly) {
  EXPECT_EQ(HashOf({.max_rows = 9}, Prompts(), {.batch = 4}), Reference());
}

TEST_F(EqualBitsTest, PromptOrOutput) {
  for (const int32_t given : {1, 30}) {
    EXPECT_EQ(HashOf({}, Prompts(), {.batch = 6, .given = given}), Reference()) << given;
  }
}

TEST_F(EqualBitsTest, AnyNumberOfThreads) {
  EXPECT_EQ(HashOf({.num_threads = 3}, Prompts(), {.batch = 6}), Reference());
}

TEST_F(EqualBitsTest, AnyInstructionSet) {
  for (const CpuIsa isa : {CpuIsa::kScalar, CpuIsa::kAvx2, CpuIsa::kAvx512}) {
    if (isa > BestCpuIsa()) continue;
    EXPECT_EQ(HashOf({.isa = isa}, Prompts(), {.batch = 6}), Reference()) << CpuIsaName(isa);
  }
}

// Over NCCL, whose small steps travel in slots that the host does not look into, and whose large
// ones by the host's route: the same bits again. Five ranks and five sequences of a batch: some
// steps find ranks without rows.
TEST_F(EqualBitsTest, AnyNumberOfRanksOverNccl) {
  struct Case {
    int32_t ranks, copies;
    DriveOptions drive;
  };

  const Case cases[] = {
      {2, 1, {.batch = 5}},
      {3, 2, {.batch = 5}},
      {5, 2, {.batch = 7, .given = 1}},               // One row of each sequence
      {3, 3, {.chunk = 64, .batch = 3}},              // Full slots
      {2, 2, {.chunk = 65, .batch = 2}},              // Steps of either kind
      {5, 1, {.chunk = 13, .batch = 12, .given = 9}}  // Prefill and decode in one step
  };
  for (const Case& c : cases) {
    NcclCell cell(c.ranks);
    const RigOptions options{.num_ranks = c.ranks,
                             .copies = c.copies,
                             .exchanges = [&cell](int32_t rank) { return cell.factory(rank); }};
    EXPECT_EQ(HashOf(options, Prompts(), c.drive), Reference()) << c.ranks << " ranks";
  }
}

// A window that is longer than a block, and not a multiple of one.
TEST_F(EqualBitsTest, WindowOfFortyPositions) {
  RigOptions options;
  options.config.sliding_window = 40;
  const uint64_t reference = HashOf(options, Prompts(), {});
  EXPECT_NE(reference, Reference());
  EXPECT_EQ(HashOf(options, Prompts(), {.chunk = 7, .batch = 4}), reference);
  options.num_ranks = 2;
  EXPECT_EQ(HashOf(options, Prompts(), {.chunk = 33, .batch = 4, .given = 50}), reference);
}

// What is sampled is what the logits say, and does not depend on who else is in the step.
TEST(ForwardTest, GreedySamplingTakesTheLargestLogit) {
  for (const int32_t num_ranks : {1, 3}) {
    CellRig rig({.num_ranks = num_ranks});
    std::vector<StepPlan> plans(static_cast<size_t>(num_ranks));
    for (int32_t r = 0; r < num_ranks; ++r) {
      SamplingSettings greedy;
      greedy.temperature = 0.0f;
      ASSERT_TRUE(rig.rank(r)
                      .records
                      .Keep({.term = {},
                             .sequence = SequenceId{1},
                             .index = 0,
                             .tokens = ShortPrompt(),
                             .prompt_length = 12,
                             .sampling = greedy,
                             .envelope = ""})
                      .ok());
      plans[static_cast<size_t>(r)].entries.push_back({.sequence = SequenceId{1},
                                                       .first_position = 0,
                                                       .num_positions = 12,
                                                       .first_block = 0,
                                                       .full_blocks = {BlockId{0}},
                                                       .window_blocks = {BlockId{0}},
                                                       .wants_sample = true,
                                                       .wants_logits = true});
    }
    for (const StepOutput& output : rig.Step(plans)) {
      ASSERT_EQ(output.samples.size(), 1u);
      EXPECT_EQ(output.samples[0].id, 92);  // Spec 8.6: argmax of token 11
      const auto last = std::span(output.logits.at(0).values).last(128);
      EXPECT_EQ(std::ranges::max_element(last) - last.begin(), 92);
    }
    EXPECT_EQ(rig.rank(0).records.Find(SequenceId{1})->tokens.back(), TokenId{92});
  }
}

}  // namespace
}  // namespace shoal
