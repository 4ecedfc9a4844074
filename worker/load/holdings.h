// The experts that this rank holds, loaded by a thread of their own: a step never waits for a file,
// and a rank can read one more expert while it serves with the others.
#pragma once

#include <cstdint>
#include <deque>
#include <functional>
#include <memory>
#include <span>
#include <thread>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/synchronization/mutex.h"

#include "base/ids.h"
#include "worker/load/loader.h"
#include "worker/weights.h"

namespace shoal {

// Views of experts in memory; immutable.
struct HeldExperts {
  std::vector<ExpertId> ids;         // Rising
  std::vector<ExpertLayer> layers;   // [num_layers]
  std::vector<int32_t> local_index;  // [num_experts], -1: not held
};

// The part of `held` that `ids` (rising) name. kFailedPrecondition names the first that is missing.
absl::StatusOr<HeldExperts> SelectExperts(const HeldExperts& held, std::span<const ExpertId> ids);

// Owns the loading thread, which alone uses the ExpertSet and its backend. Thread-safe.
//
// What stays in memory: the experts in use, those of the newest request, and those of requests that
// are not done yet. Everything else goes with the next load.
class Holdings {
 public:
  struct Progress {
    bool is_loading = false;
    int64_t done_bytes = 0;
    int64_t total_bytes = 0;
    int64_t resident_bytes = 0;
  };

  // Called from the loading thread. After a failure the rank holds what it held before.
  using Done = std::function<void(absl::Status status)>;

  explicit Holdings(std::unique_ptr<ExpertSet> experts);
  // Cancels what is under way; what has not begun is never done.
  ~Holdings();

  Holdings(const Holdings&) = delete;
  Holdings& operator=(const Holdings&) = delete;

  // Reads `experts` (rising) as far as they are missing. `done` is called once for each Load(), in
  // order.
  void Load(std::vector<ExpertId> experts, Done done);

  // The experts of an epoch, in use until the next call. kFailedPrecondition: one is not here.
  absl::StatusOr<HeldExperts> Use(std::vector<ExpertId> experts);

  Progress progress() const;

 private:
  struct Request {
    std::vector<ExpertId> experts;
    Done done;
  };

  void Run();
  absl::Status Hold(std::span<const ExpertId> experts);
  void Prune() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);

  const std::unique_ptr<ExpertSet> experts_;  // The loading thread's

  mutable absl::Mutex mutex_;
  std::deque<Request> requests_ ABSL_GUARDED_BY(mutex_);  // Not done; the first is being loaded
  std::vector<ExpertId> newest_ ABSL_GUARDED_BY(mutex_);  // Of the newest request
  std::vector<ExpertId> in_use_ ABSL_GUARDED_BY(mutex_);
  // What Use() may give away: no load drops any of it.
  HeldExperts held_ ABSL_GUARDED_BY(mutex_);
  Progress progress_ ABSL_GUARDED_BY(mutex_);
  bool is_stopping_ ABSL_GUARDED_BY(mutex_) = false;

  std::thread thread_;  // Last: starts when everything above exists
};

}  // namespace shoal
