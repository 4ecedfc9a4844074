#include "worker/exchange/watchdog.h"

#include <algorithm>
#include <utility>
#include <vector>

#include "absl/time/clock.h"

namespace shoal {

Watchdog::Watchdog(std::function<void(const std::string&)> expired)
    : expired_(std::move(expired)), thread_([this] { Run(); }) {}

Watchdog::~Watchdog() {
  {
    absl::MutexLock lock(&mutex_);
    is_stopping_ = true;
  }
  thread_.join();
}

uint64_t Watchdog::Add(std::string what, absl::Time deadline) {
  absl::MutexLock lock(&mutex_);
  const uint64_t id = next_id_++;
  has_earlier_ = has_earlier_ || deadline < asleep_until_;
  entries_[id] = {.what = std::move(what), .deadline = deadline};
  return id;
}

void Watchdog::Remove(uint64_t id) {
  absl::MutexLock lock(&mutex_);
  entries_.erase(id);
}

void Watchdog::Run() {
  while (true) {
    std::vector<std::string> late;
    {
      absl::MutexLock lock(&mutex_);
      asleep_until_ = absl::InfiniteFuture();
      for (const auto& [id, entry] : entries_) {
        asleep_until_ = std::min(asleep_until_, entry.deadline);
      }
      has_earlier_ = false;
      // Calls come and go thousands of times a second; hardly one of them wakes this thread.
      const auto has_news = [this]() ABSL_SHARED_LOCKS_REQUIRED(mutex_) {
        return is_stopping_ || has_earlier_;
      };
      mutex_.AwaitWithDeadline(absl::Condition(&has_news), asleep_until_);
      if (is_stopping_) return;
      const absl::Time now = absl::Now();
      for (auto it = entries_.begin(); it != entries_.end();) {
        const bool is_late = it->second.deadline <= now;
        if (is_late) late.push_back(it->second.what);
        it = is_late ? entries_.erase(it) : std::next(it);
      }
    }
    for (const std::string& what : late) expired_(what);
  }
}

Watchdog::Guard::Guard(Watchdog* watchdog, std::string what, absl::Time deadline)
    : watchdog_(watchdog), id_(watchdog->Add(std::move(what), deadline)) {}

Watchdog::Guard::~Guard() {
  watchdog_->Remove(id_);
}

}  // namespace shoal
