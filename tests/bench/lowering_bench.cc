// What the step thread does on the host between two decode steps of a GPU, apart from the driver's
// calls: lowering the plan and keeping the sampled tokens, for sequences of 1,500 tokens. The GPU
// waits meanwhile (docs/performance.md, "The host's turn").
#include <vector>

#include "benchmark/benchmark.h"

#include "base/check.h"
#include "worker/lowering.h"

namespace shoal {
namespace {

constexpr int32_t kTokens = 1'500;

void Turn(benchmark::State& state) {
  const auto num_sequences = static_cast<int32_t>(state.range(0));
  Records records;
  Lowering lowering(ModelConfig::GptOss120b());
  const int32_t blocks = (kTokens + kBlockTokens) / kBlockTokens + 1;
  lowering.EnterEpoch({.max_rows = 512,
                       .num_full_blocks = 2 * num_sequences * blocks,
                       .num_window_blocks = 2 * num_sequences * blocks});
  StepPlan plan;
  for (int32_t s = 0; s < num_sequences; ++s) {
    const SequenceId id{static_cast<uint64_t>(s) + 1};
    KeepRecord record{.sequence = id, .prompt_length = kTokens};
    record.tokens.assign(kTokens, TokenId{s});
    CHECK(records.Keep(record).ok());
    PlanEntry entry{.sequence = id, .first_position = kTokens - 1, .num_positions = 1};
    entry.wants_sample = true;
    for (int32_t b = 0; b < blocks; ++b) {
      entry.full_blocks.push_back(BlockId{s * blocks + b});
      entry.window_blocks.push_back(BlockId{s * blocks + b});
    }
    plan.entries.push_back(entry);
  }
  LoweredStep step;
  CHECK(lowering.Lower(plan, records, &step).ok());
  for (PlanEntry& entry : plan.entries) {  // As later plans are: no new blocks.
    entry.first_block = blocks;
    entry.full_blocks.clear();
    entry.window_blocks.clear();
  }
  for (auto _ : state) {
    CHECK(lowering.Lower(plan, records, &step).ok());
    for (const LoweredStep::Sample& sample : step.samples) {
      CHECK(records.Append(sample.sequence, sample.position, TokenId{5}).ok());
    }
  }
  state.SetItemsProcessed(state.iterations() * num_sequences);
}

BENCHMARK(Turn)->ArgName("sequences")->Arg(1)->Arg(32)->Arg(256)->Unit(benchmark::kMicrosecond);

}  // namespace
}  // namespace shoal

BENCHMARK_MAIN();
