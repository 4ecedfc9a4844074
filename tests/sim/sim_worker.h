// A worker without machinery: the real fence and records, a simulated model, and K/V memory whose
// every position remembers what was written there. It replies at once; the simulator delays.
#pragma once

#include <cstdint>
#include <deque>
#include <functional>
#include <map>
#include <optional>
#include <set>
#include <string>
#include <vector>

#include "base/ids.h"
#include "proto/cluster.h"
#include "proto/step.h"
#include "worker/fence.h"
#include "worker/records.h"

namespace shoal::sim {

struct SimWorkerOptions {
  int32_t num_full_blocks = 0;
  int32_t num_window_blocks = 0;
  int32_t window = 0;  // 0: no window layers
  int32_t max_experts = 0;
  bool is_fenced = true;  // false: a planted bug
};

class SimWorker {
 public:
  // `violation` is told what this worker saw that must not be.
  SimWorker(const SimWorkerOptions& options, std::function<void(std::string)> violation);

  // Obeys or refuses; returns the replies. LoadExperts is answered by FinishLoad.
  std::vector<FromWorker> Receive(const ToWorker& message);
  ExpertsLoaded FinishLoad(const LoadExperts& request);

  // The exchange of the epoch that was entered stands: what the epoch does not need is dropped.
  void ExchangeBuilt();
  // A step, or building the exchange, failed, or the link is gone: nothing of the epoch is obeyed.
  void Leave();

  // The plan to run next, if any. Run it: the result of a good step.
  const StepPlan* next_plan() const { return plans_.empty() ? nullptr : &plans_.front(); }

  StepResult Run();

  const Configure* epoch() const { return epoch_.has_value() ? &*epoch_ : nullptr; }

  const Records& records() const { return records_; }

  Term term() const { return fence_.term(); }

 private:
  using Block = std::vector<uint64_t>;  // Per position: Prefix hash of what was written; 0: nothing

  struct Table {
    std::vector<BlockId> full;
    std::vector<BlockId> window;
  };

  void Obey(const Welcome& message);
  std::optional<FromWorker> Obey(const Configure& message);
  std::optional<FromWorker> Obey(const Abort& message);
  std::optional<FromWorker> Obey(const KeepRecord& message);
  std::optional<FromWorker> Obey(const StepPlan& message);
  Refusal Refuse(const absl::Status& why) const;
  void Compute(const PlanEntry& entry, StepResult* result);
  void CheckReads(const PlanEntry& entry, const std::vector<uint64_t>& prefixes);
  uint64_t* At(std::vector<Block>* blocks, const std::vector<BlockId>& table, int32_t position);

  const SimWorkerOptions options_;
  const std::function<void(std::string)> violation_;
  Fence fence_{Term{0}};
  Records records_;
  std::optional<Configure> epoch_;
  std::deque<StepPlan> plans_;
  std::optional<StepResult> last_result_;
  CellId last_cell_;
  StepId last_obeyed_;                  // In that cell
  std::map<SequenceId, Table> tables_;  // As this epoch's plans gave them
  std::set<SequenceId> poisoned_;       // Whose logits were NaN in this epoch
  std::vector<Block> full_;
  std::vector<Block> window_;
  std::set<ExpertId> held_;
  std::set<ExpertId> listed_;  // By the last LoadExperts
};

}  // namespace shoal::sim
