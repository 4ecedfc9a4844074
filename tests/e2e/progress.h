// How many tokens clients have seen, for those who wait for a moment in the middle of streams.
#pragma once

#include <cstdint>

#include "absl/base/thread_annotations.h"
#include "absl/synchronization/mutex.h"
#include "absl/time/time.h"

namespace shoal {

// Thread-safe.
class Progress {
 public:
  void Add(int64_t tokens) {
    absl::MutexLock lock(&mutex_);
    tokens_ += tokens;
  }

  int64_t tokens() const {
    absl::MutexLock lock(&mutex_);
    return tokens_;
  }

  // No more will come: whoever waits goes on.
  void End() {
    absl::MutexLock lock(&mutex_);
    has_ended_ = true;
  }

  // False: `deadline` passed first.
  bool AwaitTokens(int64_t tokens, absl::Time deadline) const {
    absl::MutexLock lock(&mutex_);
    const auto is_there = [&]() ABSL_SHARED_LOCKS_REQUIRED(mutex_) {
      return has_ended_ || tokens_ >= tokens;
    };
    return mutex_.AwaitWithDeadline(absl::Condition(&is_there), deadline);
  }

 private:
  mutable absl::Mutex mutex_;
  int64_t tokens_ ABSL_GUARDED_BY(mutex_) = 0;
  bool has_ended_ ABSL_GUARDED_BY(mutex_) = false;
};

}  // namespace shoal
