// THE MODEL: in which order kernels run. One object serves one epoch of one cell.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "absl/status/status.h"
#include "absl/time/time.h"

#include "base/ids.h"
#include "kernels/backend.h"
#include "model/config.h"
#include "proto/step.h"
#include "worker/activations.h"
#include "worker/exchange/exchange.h"
#include "worker/kv_cache.h"
#include "worker/lowering.h"
#include "worker/step_shape.h"
#include "worker/weights.h"

namespace shoal {

// What a rank computes with during an epoch. Everything pointed to outlives the Forward.
struct ForwardParts {
  const ModelConfig* config = nullptr;
  Backend* backend = nullptr;
  const DenseWeights* dense = nullptr;
  const float* rope = nullptr;                   // RopeTable of the context, in device memory
  std::span<const ExpertLayer> experts;          // [num_layers]
  std::span<const int32_t> local_index;          // [num_experts], -1: not held
  std::span<const std::vector<Rank>> placement;  // [num_experts] -> ranks, rising
  Rank self;
  int32_t num_ranks = 1;
  KvCache* kv_cache = nullptr;
  Activations* activations = nullptr;
  Exchange* exchange = nullptr;  // May be null in a cell of one rank, which exchanges nothing
};

struct StepOutput {
  std::vector<SampleResult> samples;  // [step.samples]
  std::vector<LogitRows> logits;      // [step.logits]
};

// One thread.
class Forward {
 public:
  explicit Forward(const ForwardParts& parts);
  // Forgets the steps that the backend keeps: an exchange that is being aborted waits for that.
  ~Forward();

  Forward(const Forward&) = delete;
  Forward& operator=(const Forward&) = delete;

  // One step over this rank's rows, which may be none. `exchange`: what BeginStep said. Pads `step`
  // where steps of this kind are recorded.
  // Collective: every rank of the cell runs the same steps, with or without rows of its own,
  // because each layer exchanges rows with all of them. The first error ends the epoch.
  absl::Status Run(const ExchangeShape& exchange,
                   absl::Time deadline,
                   LoweredStep* step,
                   StepOutput* output);

 private:
  // The arrays of a step in device memory.
  struct StepIndexes {
    IndexView token_ids, positions, full_slots, window_slots, full_tables, window_tables;
    std::span<const AttentionEntry> entries;
    IndexView num_rows;  // [1], those that are not padding
    StepShape shape;
  };

  void TakeRows(int64_t num_rows);
  absl::Status Layers(const StepIndexes& indexes,
                      const ExchangeShape& exchange,
                      absl::Time deadline);
  void Embed(const StepIndexes& indexes);
  void Attention(const StepIndexes& indexes, int layer);
  void ChooseExperts(int layer);
  void ExpertsAlone(int layer);
  absl::Status ExpertsInSlots(int layer,
                              const int32_t* num_rows,
                              int32_t slot_rows,
                              absl::Time deadline);
  absl::Status ExpertsByRoute(int layer, int32_t num_parts, absl::Time deadline);
  absl::Status ExchangePart(int layer, int32_t part, int32_t num_parts, absl::Time deadline);
  void RunExperts(int layer,
                  const TensorView& rows,
                  std::span<const int32_t> expert_offsets,
                  IndexView pair_row,
                  IndexView pair_out,
                  const TensorView& out,
                  int64_t usual_pairs);
  int32_t NumLocal(int layer) const;
  void Sample(const LoweredStep& step, std::vector<SampleResult>* results);
  void ReturnLogits(const LoweredStep& step, std::vector<LogitRows>* logits);
  TensorView Unembed(std::span<const int32_t> rows);

  const ForwardParts parts_;
  const ModelConfig& config_;
  Backend& backend_;
  const DenseWeights& weights_;
  Activations& all_;  // Of the largest step; act_ is the part that the current one has

  // Slices of `all_` with the rows of the current step.
  struct {
    TensorView hidden, normed, qkv, attended, projected, scores, expert_ids, shares, returned;
  } act_;

  const int64_t slice_rows_;  // Rows of all_.logits
  // Reused from layer to layer.
  std::vector<int32_t> expert_ids_;  // [rows * k], host
  Route route_;
  const IndexView local_index_;
  SlotExchange* const slots_;  // Null: the exchange has none
  const RouteTable table_;     // For slots
};

}  // namespace shoal
