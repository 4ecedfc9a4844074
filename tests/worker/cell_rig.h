// A cell of real ranks in one process: threads, CPU backends, the synthetic micro-model, the local
// exchange or another. No worker, no link: plans go straight into Lowering and Forward.
#pragma once

#include <functional>
#include <memory>
#include <span>
#include <vector>

#include "base/ids.h"
#include "kernels/cpu/backend.h"
#include "model/config.h"
#include "proto/step.h"
#include "worker/activations.h"
#include "worker/exchange/local.h"
#include "worker/forward.h"
#include "worker/kv_cache.h"
#include "worker/load/holdings.h"
#include "worker/load/loader.h"
#include "worker/lowering.h"
#include "worker/records.h"

namespace shoal {

struct RigOptions {
  ModelConfig config = ModelConfig::Tiny();
  int32_t num_ranks = 1;
  int32_t copies = 1;  // Of every expert
  int num_threads = 1;
  CpuIsa isa = BestCpuIsa();
  int32_t max_rows = 512;
  BlockCounts blocks = {.full = 160, .window = 160};
  int32_t num_parts = 1;  // In which each layer's rows are exchanged, where not in slots
  // Who makes the exchanges of each rank, and outlives the rig. Empty: the local exchange.
  std::function<ExchangeFactory*(int32_t rank)> exchanges;
  // What each rank computes on, made of this. Empty: this.
  std::function<std::unique_ptr<Backend>(int32_t rank, std::unique_ptr<Backend> cpu)> backend;
};

class CellRig {
 public:
  struct RankState {
    std::unique_ptr<Backend> backend;
    std::unique_ptr<ExpertSet> expert_set;
    std::unique_ptr<KvCache> kv_cache;
    std::unique_ptr<Activations> activations;
    std::unique_ptr<DeviceArray<float>> rope;
    HeldExperts experts;
    Records records;
    std::unique_ptr<Lowering> lowering;
    LoweredStep step;
    std::unique_ptr<ExchangeFactory> local_factory;
    ExchangeFactory* factory = nullptr;
    std::unique_ptr<Exchange> exchange;
    std::unique_ptr<Forward> forward;
  };

  explicit CellRig(const RigOptions& options);

  // One step of all ranks, each on a thread of its own. Samples are appended to the records.
  std::vector<StepOutput> Step(const std::vector<StepPlan>& plans);

  // The same where it may fail: how it ended for each rank. One that failed has left the epoch; one
  // without a Forward does not take part.
  std::vector<absl::Status> TryStep(const std::vector<StepPlan>& plans,
                                    absl::Duration patience,
                                    std::vector<StepOutput>* outputs);

  const RigOptions& options() const { return options_; }

  RankState& rank(int32_t r) { return ranks_[static_cast<size_t>(r)]; }

  // Fills a block of all full or all window layers with NaN.
  void PoisonFull(int32_t rank, int32_t block);
  void PoisonWindow(int32_t rank, int32_t block);

 private:
  void Poison(int32_t rank, int32_t block, bool is_window);

  const RigOptions options_;
  std::unique_ptr<WeightSource> source_;
  std::unique_ptr<DenseSegment> dense_;
  std::vector<std::vector<Rank>> placement_;
  std::vector<RankState> ranks_;
};

// How a set of prompts travels through a cell.
struct DriveOptions {
  int32_t chunk = 512;
  // Sequences that share a step, over all ranks.
  int32_t batch = 1;
  // The first so many tokens of a prompt are given, the rest are appended one by one, as if
  // sampled.
  int32_t given = 1 << 20;
};

// Logits of every position of every prompt: [prompt][position * vocab]. Sequence i lives on rank
// i mod ranks. Blocks come in scattered order; window blocks return, full of NaN, as soon as no
// position can see them, so whoever reads one that it must not turns its logits into NaN.
std::vector<std::vector<float>> DrivePrompts(CellRig* rig,
                                             std::span<const std::vector<TokenId>> prompts,
                                             const DriveOptions& options);

}  // namespace shoal
