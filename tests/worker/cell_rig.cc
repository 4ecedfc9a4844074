#include "tests/worker/cell_rig.h"

#include <algorithm>
#include <cstring>
#include <thread>

#include "absl/time/clock.h"
#include "absl/time/time.h"
#include "gtest/gtest.h"

#include "base/check.h"

namespace shoal {
namespace {

constexpr absl::Duration kPatience = absl::Seconds(60);

template <typename F>
void OnThreads(size_t count, F f) {
  std::vector<std::thread> threads;
  for (size_t i = 0; i < count; ++i) threads.emplace_back([i, &f] { f(i); });
  for (std::thread& thread : threads) thread.join();
}

// Blocks of one kind of one rank.
class FreeBlocks {
 public:
  explicit FreeBlocks(int32_t count) {
    // 7 is coprime to no multiple of itself only; counts are not.
    for (int32_t i = 0; i < count; ++i) blocks_.push_back(i * 7 % count);
    CHECK_NE(count % 7, 0);
  }

  int32_t Take() {
    CHECK(!blocks_.empty());
    const int32_t block = blocks_.back();
    blocks_.pop_back();
    return block;
  }

  void Return(int32_t block) { blocks_.insert(blocks_.begin(), block); }

 private:
  std::vector<int32_t> blocks_;
};

}  // namespace

CellRig::CellRig(const RigOptions& options)
    : options_(options),
      source_(MakeSyntheticSource(options.config)),
      ranks_(static_cast<size_t>(options.num_ranks)) {
  const ModelConfig& config = options_.config;
  auto dense = DenseSegment::Load(*source_, [](int64_t, int64_t) { return true; });
  CHECK(dense.ok());
  dense_ = *std::move(dense);

  std::vector<Member> members;
  for (int32_t r = 0; r < options.num_ranks; ++r) {
    members.push_back({.worker = WorkerId{static_cast<uint32_t>(r)},
                       .incarnation = Incarnation{static_cast<uint64_t>(r) + 1},
                       .exchange_endpoint = "",
                       .host = "here"});
  }
  placement_.resize(static_cast<size_t>(config.num_experts));
  for (int32_t e = 0; e < config.num_experts; ++e) {
    std::vector<Rank>& holders = placement_[static_cast<size_t>(e)];
    for (int32_t c = 0; c < std::min(options.copies, options.num_ranks); ++c) {
      holders.push_back(Rank{(e + c) % options.num_ranks});
    }
    std::sort(holders.begin(), holders.end());
  }

  const auto hub = std::make_shared<LocalHub>();
  for (size_t r = 0; r < ranks_.size(); ++r) {
    if (options_.exchanges != nullptr) {
      ranks_[r].factory = options_.exchanges(static_cast<int32_t>(r));
    } else {
      ranks_[r].local_factory = MakeLocalExchangeFactory(hub);
      ranks_[r].factory = ranks_[r].local_factory.get();
    }
    members[r].exchange_endpoint = ranks_[r].factory->endpoint();
  }
  OnThreads(ranks_.size(), [&](size_t r) {
    RankState& state = ranks_[r];
    const Rank self{static_cast<int32_t>(r)};
    state.backend = std::make_unique<CpuBackend>(
        CpuBackendOptions{.num_threads = options_.num_threads, .cpus = {}, .isa = options_.isa});
    if (options_.backend != nullptr) {
      state.backend = options_.backend(self.value, std::move(state.backend));
    }
    Backend* const backend = state.backend.get();
    std::vector<ExpertId> mine;
    for (size_t e = 0; e < placement_.size(); ++e) {
      if (std::ranges::count(placement_[e], self) > 0) {
        mine.push_back(ExpertId{static_cast<int32_t>(e)});
      }
    }
    state.expert_set = ExpertSet::Create(source_.get(), backend);
    CHECK(state.expert_set->Hold(mine, [](int64_t, int64_t) { return true; }).ok());
    state.experts = {
        .ids = mine,
        .layers = {state.expert_set->layers().begin(), state.expert_set->layers().end()},
        .local_index = {state.expert_set->local_index().begin(),
                        state.expert_set->local_index().end()}};
    state.kv_cache = std::make_unique<KvCache>(config, backend);
    CHECK(state.kv_cache->Resize(options_.blocks).ok());
    for (int32_t b = 0; b < options_.blocks.full; ++b) PoisonFull(self.value, b);
    for (int32_t b = 0; b < options_.blocks.window; ++b) PoisonWindow(self.value, b);
    const ActivationSizes sizes{.max_rows = options_.max_rows,
                                .num_ranks = options_.num_ranks,
                                .slot_rows = state.factory->max_slot_rows(),
                                .sequence_blocks = options_.blocks.full};
    state.activations = *Activations::Create(config, sizes, backend);
    state.rope = std::make_unique<DeviceArray<float>>(backend);
    state.rope->Set(RopeTable(config, 512));
    state.lowering = std::make_unique<Lowering>(config);
    state.lowering->EnterEpoch({.max_rows = options_.max_rows,
                                .num_full_blocks = options_.blocks.full,
                                .num_window_blocks = options_.blocks.window});
    auto exchange = state.factory->Create({.cell = CellId{0},
                                           .epoch = Epoch{1},
                                           .self = self,
                                           .members = members,
                                           .key = {},
                                           .local_index = state.experts.local_index},
                                          {.max_rows = options_.max_rows,
                                           .experts_per_token = config.experts_per_token,
                                           .row_bytes = config.hidden * 2},
                                          absl::Now() + kPatience);
    CHECK(exchange.ok());
    state.exchange = *std::move(exchange);
    state.forward = std::make_unique<Forward>(ForwardParts{.config = &options_.config,
                                                           .backend = backend,
                                                           .dense = &dense_->weights(),
                                                           .rope = state.rope->data(),
                                                           .experts = state.experts.layers,
                                                           .local_index = state.experts.local_index,
                                                           .placement = placement_,
                                                           .self = self,
                                                           .num_ranks = options_.num_ranks,
                                                           .kv_cache = state.kv_cache.get(),
                                                           .activations = state.activations.get(),
                                                           .exchange = state.exchange.get()});
  });
}

std::vector<StepOutput> CellRig::Step(const std::vector<StepPlan>& plans) {
  std::vector<StepOutput> outputs;
  for (const absl::Status& status : TryStep(plans, kPatience, &outputs))
    EXPECT_TRUE(status.ok()) << status;
  return outputs;
}

std::vector<absl::Status> CellRig::TryStep(const std::vector<StepPlan>& plans,
                                           absl::Duration patience,
                                           std::vector<StepOutput>* outputs) {
  CHECK_EQ(plans.size(), ranks_.size());
  int32_t most_rows = 0;  // As the coordinator says it
  int32_t most_positions = 0;
  bool is_decode = true;
  for (const StepPlan& plan : plans) {
    int32_t rows = 0;
    for (const PlanEntry& entry : plan.entries) {
      rows += entry.num_positions;
      is_decode = is_decode && entry.num_positions == 1;
      most_positions = std::max(most_positions, entry.first_position + 1);
    }
    most_rows = std::max(most_rows, rows);
  }
  outputs->assign(plans.size(), {});
  std::vector<absl::Status> statuses(plans.size());
  OnThreads(plans.size(), [&](size_t r) {
    RankState& state = ranks_[r];
    StepPlan plan = plans[r];
    plan.most_positions = is_decode ? most_positions : 0;
    absl::Status& status = statuses[r];
    if (state.forward == nullptr) return;
    status = state.lowering->Lower(plan, state.records, &state.step);
    if (!status.ok()) return;
    ExchangeShape shape = state.exchange->BeginStep(most_rows);
    shape.num_parts = options_.num_parts;
    status = state.forward->Run(shape, absl::Now() + patience, &state.step, &(*outputs)[r]);
    for (size_t i = 0; status.ok() && i < (*outputs)[r].samples.size(); ++i) {
      const LoweredStep::Sample& sample = state.step.samples[i];
      status = state.records.Append(
          sample.sequence, sample.position, TokenId{(*outputs)[r].samples[i].id});
    }
    if (status.ok()) return;
    state.forward = nullptr;  // As a worker does with the first error
    state.exchange = nullptr;
  });
  return statuses;
}

void CellRig::PoisonFull(int32_t rank, int32_t block) {
  Poison(rank, block, false);
}

void CellRig::PoisonWindow(int32_t rank, int32_t block) {
  Poison(rank, block, true);
}

void CellRig::Poison(int32_t rank, int32_t block, bool is_window) {
  RankState& state = ranks_[static_cast<size_t>(rank)];
  for (int layer = 0; layer < options_.config.num_layers; ++layer) {
    if (options_.config.is_window_layer[static_cast<size_t>(layer)] != is_window) continue;
    const KvLayer kv = state.kv_cache->layer(layer);
    const std::vector<uint8_t> nan(static_cast<size_t>(kv.block_bytes()), 0xff);  // bf16 NaN
    state.backend->Write(
        static_cast<std::byte*>(kv.data) + block * kv.block_bytes(), nan.data(), nan.size());
  }
}

std::vector<std::vector<float>> DrivePrompts(CellRig* rig,
                                             std::span<const std::vector<TokenId>> prompts,
                                             const DriveOptions& options) {
  const ModelConfig& config = rig->options().config;
  const auto num_ranks = static_cast<size_t>(rig->options().num_ranks);
  std::vector<FreeBlocks> full(num_ranks, FreeBlocks(rig->options().blocks.full));
  std::vector<FreeBlocks> window(num_ranks, FreeBlocks(rig->options().blocks.window));

  struct Sequence {
    int32_t done = 0;
    std::vector<BlockId> full_blocks;
    std::vector<BlockId> window_blocks;
    int32_t first_window_block = 0;  // Not returned yet
  };

  std::vector<Sequence> sequences(prompts.size());
  std::vector<std::vector<float>> logits(prompts.size());
  const auto length = [&](size_t i) { return static_cast<int32_t>(prompts[i].size()); };

  for (size_t i = 0; i < prompts.size(); ++i) {
    const int32_t given = std::min(options.given, length(i));
    EXPECT_TRUE(rig->rank(static_cast<int32_t>(i % num_ranks))
                    .records
                    .Keep({.term = {},
                           .sequence = SequenceId{i},
                           .index = 0,
                           .tokens = {prompts[i].begin(), prompts[i].begin() + given},
                           .prompt_length = given,
                           .sampling = {},
                           .envelope = ""})
                    .ok());
  }

  std::vector<size_t> waiting;  // Last first
  for (size_t i = prompts.size(); i-- > 0;) waiting.push_back(i);
  std::vector<size_t> running;
  while (!waiting.empty() || !running.empty()) {
    while (!waiting.empty() && running.size() < static_cast<size_t>(options.batch)) {
      running.push_back(waiting.back());
      waiting.pop_back();
    }
    std::vector<StepPlan> plans(num_ranks);
    std::vector<int32_t> room(num_ranks, rig->options().max_rows);
    for (const size_t i : running) {
      Sequence& sequence = sequences[i];
      const size_t home = i % num_ranks;
      const bool is_decoding = sequence.done >= options.given;
      const int32_t until = is_decoding ? sequence.done + 1 : std::min(options.given, length(i));
      const int32_t count =
          std::min({options.chunk, until - sequence.done, length(i) - sequence.done, room[home]});
      if (count == 0) continue;
      if (is_decoding) {
        const TokenId token = prompts[i][static_cast<size_t>(sequence.done)];
        EXPECT_TRUE(rig->rank(static_cast<int32_t>(home))
                        .records.Append(SequenceId{i}, sequence.done, token)
                        .ok());
      }
      room[home] -= count;
      // Blocks behind the window return before the step that no longer sees them.
      const int32_t visible = std::max(0, sequence.done - config.sliding_window + 1) / kBlockTokens;
      for (int32_t& b = sequence.first_window_block; b < visible; ++b) {
        const BlockId gone = sequence.window_blocks[static_cast<size_t>(b)];
        rig->PoisonWindow(static_cast<int32_t>(home), gone.value);
        window[home].Return(gone.value);
      }
      const auto first_new = static_cast<int32_t>(sequence.full_blocks.size());
      const int32_t needed = (sequence.done + count + kBlockTokens - 1) / kBlockTokens;
      for (int32_t b = first_new; b < needed; ++b) {
        sequence.full_blocks.push_back(BlockId{full[home].Take()});
        sequence.window_blocks.push_back(BlockId{window[home].Take()});
      }
      plans[home].entries.push_back(
          {.sequence = SequenceId{i},
           .first_position = sequence.done,
           .num_positions = count,
           .first_block = first_new,
           .full_blocks = {sequence.full_blocks.begin() + first_new, sequence.full_blocks.end()},
           .window_blocks = {sequence.window_blocks.begin() + first_new,
                             sequence.window_blocks.end()},
           .wants_sample = false,
           .wants_logits = true});
      sequence.done += count;
    }
    const std::vector<StepOutput> outputs = rig->Step(plans);
    if (testing::Test::HasFailure()) return logits;
    for (const StepOutput& output : outputs) {
      for (const LogitRows& rows : output.logits) {
        std::vector<float>& all = logits[rows.sequence.value];
        CHECK_EQ(all.size(), static_cast<size_t>(rows.first_position * config.vocab));
        all.insert(all.end(), rows.values.begin(), rows.values.end());
      }
    }
    std::erase_if(running, [&](size_t i) {
      if (sequences[i].done < length(i)) return false;
      const size_t home = i % num_ranks;
      for (const BlockId b : sequences[i].full_blocks) {
        rig->PoisonFull(static_cast<int32_t>(home), b.value);
        full[home].Return(b.value);
      }
      for (size_t b = static_cast<size_t>(sequences[i].first_window_block);
           b < sequences[i].window_blocks.size();
           ++b) {
        rig->PoisonWindow(static_cast<int32_t>(home), sequences[i].window_blocks[b].value);
        window[home].Return(sequences[i].window_blocks[b].value);
      }
      rig->rank(static_cast<int32_t>(home)).lowering->Forget(SequenceId{i});
      rig->rank(static_cast<int32_t>(home)).records.Forget(SequenceId{i});
      return true;
    });
  }
  return logits;
}

}  // namespace shoal
