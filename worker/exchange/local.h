// The exchange between threads of one process: the specification, and what tests use. One mutex, no
// file descriptor, every frame copied once.
#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <utility>

#include "absl/base/thread_annotations.h"
#include "absl/synchronization/mutex.h"

#include "base/ids.h"
#include "worker/exchange/exchange.h"

namespace shoal {

struct LocalRoom;

// Where the ranks of one process meet: one room per epoch with somebody in it. Thread-safe; shared
// by its factories and their exchanges.
class LocalHub {
 public:
  LocalHub();
  ~LocalHub();

 private:
  friend class LocalTransport;
  friend class LocalExchangeFactory;

  absl::Mutex mutex_;
  std::map<std::pair<CellId, Epoch>, std::unique_ptr<LocalRoom>> rooms_ ABSL_GUARDED_BY(mutex_);
  int32_t num_factories_ ABSL_GUARDED_BY(mutex_) = 0;
};

// One per rank. Endpoint: "local:n", n counting the hub's factories.
std::unique_ptr<ExchangeFactory> MakeLocalExchangeFactory(std::shared_ptr<LocalHub> hub);

}  // namespace shoal
