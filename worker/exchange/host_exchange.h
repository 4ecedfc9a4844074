// Dispatch and Combine over any Transport of host memory: frames, checks, and where rows go.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/synchronization/mutex.h"
#include "absl/time/time.h"

#include "worker/exchange/arrivals.h"
#include "worker/exchange/exchange.h"
#include "worker/exchange/transport.h"

namespace shoal {

// The most bytes that can arrive in one round from one rank, and from all of them together.
struct RoundBytes {
  size_t one = 0;
  size_t all = 0;
};

RoundBytes MaxRoundBytes(const ExchangeLimits& limits, size_t num_ranks);

// An Exchange whose rows lie in host memory. A cell of one rank has no transport: its rows are
// not copied on Dispatch.
class HostExchange final : public Exchange {
 public:
  HostExchange(Membership membership,
               const ExchangeLimits& limits,
               std::unique_ptr<Transport> transport);

  // Collective: first operation. All ranks are connected to all when it succeeds.
  absl::Status Open(absl::Time deadline);

  absl::StatusOr<Arrivals> Dispatch(const Route& route,
                                    const TensorView& outgoing,
                                    absl::Time deadline) override;
  absl::Status Combine(const Route& route,
                       const Arrivals& arrivals,
                       const TensorView& expert_out,
                       const TensorView& returned,
                       absl::Time deadline) override;
  void Abort(absl::Status cause) override;
  absl::Status Health() const override;
  std::vector<Rank> suspects() const override;
  absl::Duration TakeWaitTime() override;

 private:
  size_t num_ranks() const { return membership_.members.size(); }

  size_t self() const { return static_cast<size_t>(membership_.self.value); }

  absl::Status AllToAll(ExchangeOp op, absl::Time deadline);
  absl::Status Gather(const Route& route, const TensorView& outgoing, Arrivals* arrivals);
  absl::Status Scatter(const Route& route,
                       const Arrivals& arrivals,
                       const TensorView& expert_out,
                       const TensorView& returned) const;
  // Makes `status` the sticky error if it is the first one. Returns the sticky error.
  absl::Status Fail(absl::Status status) ABSL_LOCKS_EXCLUDED(mutex_);

  const Membership membership_;
  const ExchangeLimits limits_;
  const std::unique_ptr<Transport> transport_;

  // The calling thread's.
  const std::unique_ptr<std::byte[]> received_;  // [num_ranks * max_rows, hidden] bf16
  uint64_t next_seq_ = 0;
  std::vector<OutFrame> out_;  // By rank
  std::vector<InFrame> in_;    // By rank
  ArrivalsBuilder builder_;
  absl::Duration waited_;

  mutable absl::Mutex mutex_;
  absl::Status status_ ABSL_GUARDED_BY(mutex_);
};

// The part of an ExchangeFactory that does not depend on how ranks are reached.
class HostExchangeFactory : public ExchangeFactory {
 public:
  absl::StatusOr<std::unique_ptr<Exchange>> Create(const Membership& membership,
                                                   const ExchangeLimits& limits,
                                                   absl::Time deadline) final;
  void AbortCreate() final;

 protected:
  // Meets the other ranks; there is at least one. Errors as in exchange.h.
  virtual absl::StatusOr<std::unique_ptr<Transport>> Connect(const Membership& membership,
                                                             const ExchangeLimits& limits,
                                                             absl::Time deadline) = 0;
  // Before Connect(): forgets earlier calls of WakeConnect().
  virtual void ArmConnect() = 0;
  // Thread-safe: Connect() returns kAborted soon.
  virtual void WakeConnect() = 0;

 private:
  absl::Mutex mutex_;
  bool is_creating_ ABSL_GUARDED_BY(mutex_) = false;
  bool is_aborted_ ABSL_GUARDED_BY(mutex_) = false;
  HostExchange* opening_ ABSL_GUARDED_BY(mutex_) = nullptr;
};

}  // namespace shoal
