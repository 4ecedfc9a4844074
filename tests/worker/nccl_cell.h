// The ranks of a NCCL cell as threads of one process, over the fake NCCL: what a worker has around
// its exchange, with a coordinator that only hands on unique ids.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/synchronization/mutex.h"

#include "tests/worker/exchange_cell.h"
#include "tests/worker/fake_nccl/fake_nccl.h"
#include "worker/exchange/nccl.h"

namespace shoal {

class NcclCell {
 public:
  static constexpr absl::Duration kAbortPatience = absl::Seconds(2);

  // versions: of the NCCL that each rank believes to have; empty: the usual. stream: what each rank
  // exchanges on; empty: a host stream.
  explicit NcclCell(int32_t num_ranks,
                    const std::vector<int>& versions = {},
                    const std::function<std::unique_ptr<DeviceStream>(int32_t)>& stream = nullptr);
  ~NcclCell();

  NcclCell(const NcclCell&) = delete;
  NcclCell& operator=(const NcclCell&) = delete;

  // Replaces the rank's exchange.
  absl::Status Create(const CellShape& shape,
                      const Traffic& traffic,
                      int32_t rank,
                      uint64_t epoch,
                      absl::Time deadline);
  // All ranks at once; the first error.
  absl::Status CreateAll(const CellShape& shape, const Traffic& traffic, uint64_t epoch);

  void Leave(int32_t rank) { exchanges_[static_cast<size_t>(rank)] = nullptr; }

  NcclExchange* exchange(int32_t rank) {
    return static_cast<NcclExchange*>(exchanges_[static_cast<size_t>(rank)].get());
  }

  ExchangeFactory* factory(int32_t rank) { return factories_[static_cast<size_t>(rank)].get(); }

  // Unique ids are handed on. Thread-safe.
  void SetHandsOn(bool hands_on) {
    absl::MutexLock lock(&mutex_);
    hands_on_ = hands_on;
  }

  // Why processes would have ended, had they been processes. Thread-safe.
  std::vector<std::string> deaths() const {
    absl::MutexLock lock(&mutex_);
    return deaths_;
  }

 private:
  std::vector<std::string> endpoints_;
  mutable absl::Mutex mutex_;
  bool hands_on_ ABSL_GUARDED_BY(mutex_) = true;
  std::vector<std::string> deaths_ ABSL_GUARDED_BY(mutex_);
  std::vector<std::unique_ptr<ExchangeFactory>> factories_;
  std::vector<std::unique_ptr<Exchange>> exchanges_;
};

}  // namespace shoal
