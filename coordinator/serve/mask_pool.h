// Makes the masks that the core asks for, on threads of its own, while steps without the sequences
// that wait go on. Keeps each sequence's constraint between two questions; one that it does not
// have is made again from the envelope and the tokens, which is all that a question needs to hold.
#pragma once

#include <cstddef>
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <thread>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/synchronization/mutex.h"
#include "absl/time/time.h"

#include "base/bounded_queue.h"
#include "coordinator/events.h"
#include "coordinator/text/constraint.h"
#include "coordinator/text/token_index.h"

namespace shoal {

class MaskPool {
 public:
  // Called on the pool's threads.
  using OnMask = std::function<void(MaskReady mask)>;

  // `index` may be null: then no request is constrained. It outlives this.
  MaskPool(const TokenIndex* index, int num_threads, OnMask on_mask);
  ~MaskPool();

  MaskPool(const MaskPool&) = delete;
  MaskPool& operator=(const MaskPool&) = delete;

  // Never waits: beyond its capacity a question is forgotten, and asked again by the core.
  // Thread-safe.
  void Ask(AskMask ask);

  // Later questions are forgotten. Returns when the threads have ended.
  void Stop();

 private:
  // A sequence's constraint after `num_output` tokens. The rules do not move when this does.
  struct Progress {
    std::unique_ptr<ConstraintRules> rules;
    Constraint constraint;
    size_t num_output = 0;
    absl::Time last_use;
  };

  void Run();
  MaskReady Answer(const AskMask& ask);
  absl::StatusOr<Progress> Begin(const AskMask& ask) const;
  // Taken out, so that two threads never work on one.
  std::optional<Progress> Take(SequenceId sequence);
  void Keep(SequenceId sequence, Progress progress);

  const TokenIndex* const index_;
  const OnMask on_mask_;
  BoundedQueue<AskMask> queue_;

  absl::Mutex mutex_;
  std::map<SequenceId, Progress> progress_ ABSL_GUARDED_BY(mutex_);
  absl::Time next_sweep_ ABSL_GUARDED_BY(mutex_) = absl::InfinitePast();

  std::vector<std::thread> threads_;
};

}  // namespace shoal
