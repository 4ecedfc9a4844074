// One rank's step as the coordinator sees it: plan every decode, take every answer back. Budget: a
// step of a GPU takes some 10 ms; what is spent here per sequence is spent while the next step
// already runs (two plans in flight), so it costs throughput only beyond that.
#include <deque>

#include "benchmark/benchmark.h"

#include "coordinator/schedule/scheduler.h"

namespace shoal {
namespace {

void BM_ScheduleStep(benchmark::State& state) {
  const int32_t num_sequences = static_cast<int32_t>(state.range(0));
  const SchedulerLimits limits{.max_rows = 4096,
                               .prefill_chunk = 4096,
                               .max_running = num_sequences,
                               .prefix_cache = true,
                               .window = 128};
  Scheduler scheduler(limits, 400'000, 400'000);
  std::deque<Sequence> sequences;
  for (int32_t i = 0; i < num_sequences; ++i) {
    Sequence& sequence = sequences.emplace_back();
    sequence.id = SequenceId{static_cast<uint64_t>(i) + 1};
    sequence.prompt_length = 64;
    sequence.max_length = 1'000'000;
    for (int32_t t = 0; t < 64; ++t) sequence.tokens.push_back(TokenId{i * 64 + t});
    scheduler.Admit(&sequence);
  }
  for (auto step : state) {
    for (const PlanEntry& entry : scheduler.Plan()) {
      Sequence* const sequence = scheduler.Find(entry.sequence);
      if (entry.wants_sample) sequence->tokens.push_back(TokenId{7});
      scheduler.Returned(entry);
    }
  }
  state.SetItemsProcessed(state.iterations() * num_sequences);
}

BENCHMARK(BM_ScheduleStep)->ArgName("sequences")->Arg(1)->Arg(32)->Arg(256)->Iterations(2000);

}  // namespace
}  // namespace shoal

BENCHMARK_MAIN();
