// Calls that have to come back: who guards one says until when, and if it is still out by then the
// process is ended, for a thread inside a library cannot be.
#pragma once

#include <cstdint>
#include <functional>
#include <map>
#include <string>
#include <thread>

#include "absl/base/thread_annotations.h"
#include "absl/synchronization/mutex.h"
#include "absl/time/time.h"

namespace shoal {

// Owns one thread, which sleeps until the earliest deadline. Thread-safe.
class Watchdog {
 public:
  // `expired` is called on the watchdog's thread, once for each guard that is late, and not under a
  // lock. In a worker it does not return.
  explicit Watchdog(std::function<void(const std::string& what)> expired);
  ~Watchdog();

  Watchdog(const Watchdog&) = delete;
  Watchdog& operator=(const Watchdog&) = delete;

  class Guard {
   public:
    Guard(Watchdog* watchdog, std::string what, absl::Time deadline);
    ~Guard();

    Guard(const Guard&) = delete;
    Guard& operator=(const Guard&) = delete;

   private:
    Watchdog* const watchdog_;
    const uint64_t id_;
  };

 private:
  struct Entry {
    std::string what;
    absl::Time deadline;
  };

  uint64_t Add(std::string what, absl::Time deadline);
  void Remove(uint64_t id);
  void Run();

  const std::function<void(const std::string&)> expired_;
  absl::Mutex mutex_;
  std::map<uint64_t, Entry> entries_ ABSL_GUARDED_BY(mutex_);
  uint64_t next_id_ ABSL_GUARDED_BY(mutex_) = 0;
  absl::Time asleep_until_ ABSL_GUARDED_BY(mutex_) = absl::InfiniteFuture();
  bool has_earlier_ ABSL_GUARDED_BY(mutex_) = false;  // A deadline before that
  bool is_stopping_ ABSL_GUARDED_BY(mutex_) = false;
  std::thread thread_;
};

}  // namespace shoal
