// A rank's body: obeys the coordinator's messages in their order, refuses what the fence refuses,
// decides nothing. docs/step_protocol.md has the table of messages.
//
// Three kinds of threads. The step thread owns everything that a step touches and handles one
// message after the other. Holdings has the loading thread. Links only deliver: their messages go
// into a bounded queue, save that Abort and Configure also end, at once, the exchange in which the
// step thread may be waiting, and that Bootstrap goes to the exchange for which it waits.
// Next: worker/forward.cc
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <thread>
#include <variant>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/status/status.h"
#include "absl/synchronization/mutex.h"
#include "absl/time/time.h"

#include "base/bounded_queue.h"
#include "base/ids.h"
#include "kernels/backend.h"
#include "proto/cluster.h"
#include "proto/step.h"
#include "worker/activations.h"
#include "worker/exchange/exchange.h"
#include "worker/fence.h"
#include "worker/forward.h"
#include "worker/kv_cache.h"
#include "worker/load/holdings.h"
#include "worker/load/loader.h"
#include "worker/lowering.h"
#include "worker/records.h"

namespace shoal {

struct WorkerOptions {
  WorkerId id;
  Incarnation incarnation;
  std::string version;  // Of the program
  std::string host;     // Failure domain
  std::string process;  // For people
  Term highest_term;
  int64_t memory_bytes = 0;  // For weights, activations and K/V
  int64_t dense_bytes = 0;   // Of that, dense weights; 0 where they are shared with the host
  // Whether rows in the backend's memory can travel: not where that is a GPU's and the exchange
  // reads the host's. Then only a cell of one rank is possible.
  bool exchanges_rows = true;
  int64_t kv_tokens = 0;  // Positions in full layers; 0: as many as memory_bytes leaves room for
};

// Everything pointed to outlives the Worker.
struct WorkerParts {
  const WeightSource* source = nullptr;
  const DenseWeights* dense = nullptr;
  Backend* backend = nullptr;  // The step thread's
  // The loading thread's; its backend is another object of the same kind.
  std::unique_ptr<ExpertSet> experts;
  ExchangeFactory* exchanges = nullptr;
  // Called from the step thread; may wait for room, not for the coordinator.
  std::function<void(FromWorker)> send;
  std::function<absl::Time()> now;
};

class Worker {
 public:
  Worker(WorkerOptions options, WorkerParts parts);
  // Ends what the step thread does and joins it.
  ~Worker();

  Worker(const Worker&) = delete;
  Worker& operator=(const Worker&) = delete;

  // Thread-safe. Messages of one link are handled in the order of delivery. False: the queue stayed
  // full until `deadline`; the link should be closed.
  bool Deliver(ToWorker message, absl::Time deadline);

  // Thread-safe. Not OK once the device has failed: nothing computes here any more, the process
  // should end.
  absl::Status fault() const;

  // Thread-safe. What a link says first, and every second.
  Enrol enrol() const;
  Beat beat() const;

 private:
  struct LoadAnswer {
    LoadExperts request;
    absl::Status status;
  };

  // An epoch's machinery, in the order of construction.
  struct EpochState {
    HeldExperts experts;
    std::vector<std::vector<Rank>> placement;  // [num_experts]
    std::unique_ptr<Exchange> exchange;
    std::unique_ptr<Forward> forward;
  };

  void Run();
  void Handle(const Welcome& message);
  void Handle(const Dismiss& message);
  void Handle(LoadExperts& message);
  void Handle(const Configure& message);
  void Handle(const Bootstrap& message);
  void Handle(const Abort& message);
  void Handle(const KeepRecord& message);
  void Handle(const StepPlan& plan);
  void Handle(const LoadAnswer& answer);
  void Refuse(absl::Status reason);

  absl::Status EnterEpoch(const Configure& message);
  absl::Status MakeBuffers(const Configure& message);
  absl::StatusOr<std::unique_ptr<Exchange>> MakeExchange(const Configure& message,
                                                         const HeldExperts& experts);
  void LeaveEpoch();

  absl::Status RunStep(const StepPlan& plan, absl::Time deadline, StepResult* result);
  absl::Status KeepSamples(const StepOutput& output, StepResult* result);

  BlockCounts ChooseBlocks();
  int64_t UsualStepBytes() const;
  void PassOn(const Bootstrap& message);
  void EndEpochs(const Abort& message);
  void EndEpochs(const Configure& message);
  void Interrupt() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  void Publish(absl::string_view phase);

  const WorkerOptions options_;
  const ModelConfig& config_;
  const WeightSource& source_;
  const DenseWeights& dense_;
  Backend& backend_;
  ExchangeFactory& exchanges_;
  const std::function<void(FromWorker)> send_;
  const std::function<absl::Time()> now_;
  const int64_t expert_bytes_;  // One expert across all layers

  BoundedQueue<std::variant<ToWorker, LoadAnswer>> queue_;

  // The step thread's.
  Fence fence_;
  CellId cell_;
  Records records_;
  Lowering lowering_;
  LoweredStep step_;
  StepOutput output_;
  DeviceArray<float> rope_;  // RopeTable of rope_positions_
  int32_t rope_positions_ = 0;
  KvCache kv_cache_;
  BlockCounts blocks_;  // As last told to the coordinator
  std::unique_ptr<Activations> activations_;
  std::unique_ptr<EpochState> epoch_;  // Null outside of epochs
  StepResult last_result_;

  mutable absl::Mutex mutex_;
  // The epoch that the step thread is in or about to enter, for those who may end it.
  Term seen_term_ ABSL_GUARDED_BY(mutex_);
  CellId seen_cell_ ABSL_GUARDED_BY(mutex_);
  Epoch seen_epoch_ ABSL_GUARDED_BY(mutex_);
  Epoch ended_epoch_ ABSL_GUARDED_BY(mutex_);  // This one and all before it are over
  Exchange* exchange_ ABSL_GUARDED_BY(mutex_) = nullptr;
  bool is_making_exchange_ ABSL_GUARDED_BY(mutex_) = false;
  Beat beat_ ABSL_GUARDED_BY(mutex_);
  absl::Status fault_ ABSL_GUARDED_BY(mutex_);  // Of the device; stays

  std::unique_ptr<Holdings> holdings_;
  std::thread thread_;  // Last: starts when everything above exists
};

}  // namespace shoal
