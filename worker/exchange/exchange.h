// Rows to their experts and back: the data plane between the ranks of a cell.
//
// One object serves exactly one epoch of one cell. Every rank issues the same operations in the
// same order (Dispatch, Combine, Dispatch, ... one pair per part, layer and step), with rows of its
// own or not. The first error is final for the epoch (sticky) and nothing is retried; `suspects()`
// are hints, the coordinator decides who is dead.
//
//   code               means
//   kUnavailable       a peer's connection ended (suspects name it)
//   kDeadlineExceeded  a peer was silent too long, maybe alive
//   kAborted           Abort() was called here
//   kFailedPrecondition  a peer is at another epoch, or operations came in another order
//
// What is passed to an operation that fails may be read and written until the exchange is
// destroyed: a device goes on with what it has begun, and the error is worth more at once.
//
// Threads: one thread calls the operations; Abort() and Health() may come from any thread.
// Next: worker/exchange/route.h
#pragma once

#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"

#include "base/ids.h"
#include "kernels/route_math.h"
#include "kernels/tensor.h"
#include "proto/cluster.h"
#include "worker/exchange/route.h"

namespace shoal {

// The ranks of one epoch, as one of them sees it.
struct Membership {
  CellId cell;
  Epoch epoch;
  Rank self;
  std::vector<Member> members;  // By rank
  EpochKey key{};               // Handshakes are authenticated with it
  // [num_experts] -> this rank's index of the expert, -1: not held. Arrivals are grouped by it.
  std::vector<int32_t> local_index;
};

// Buffers are sized by these once, at Create.
struct ExchangeLimits {
  int32_t max_rows = 0;  // Rows of one rank in a step
  int32_t experts_per_token = 0;
  int64_t row_bytes = 0;  // hidden * 2
};

// How the rows of one step are to be exchanged, the same on all ranks. No choice changes a bit:
// each row meets the same experts, and its results are summed in the same order.
struct ExchangeShape {
  // Rows of any rank at most, and what SlotExchange's slots have room for; 0: by Dispatch and
  // Combine.
  int32_t slot_rows = 0;
  // In which Dispatch and Combine take each layer's rows, one travelling while another is computed.
  int32_t num_parts = 1;

  friend bool operator==(const ExchangeShape&, const ExchangeShape&) = default;
};

// What an exchange may offer besides: rounds of fixed size, in which the host plans nothing and
// waits for nothing, so that a device may queue, record and replay whole steps of them. Backend's
// FillSlots and GroupSlots make and read what travels. Threads and errors as Exchange.
class SlotExchange {
 public:
  virtual ~SlotExchange() = default;

  // Of this epoch, in the memory of the backend.
  virtual SlotGuard* guard() = 0;

  // Collective: order and `slot_bytes`. Slot d of `send` goes to rank d, slot s of `receive` comes
  // from rank s; both are device memory of [ranks, slot_bytes]. What arrives is there for
  // operations of the backend that follow. Where those take their place in the queue of the
  // exchange this only queues, and Backend::Replay may keep it, if all ranks keep and repeat the
  // same; elsewhere (host memory) it waits.
  virtual absl::Status LaunchSlots(const void* send,
                                   void* receive,
                                   int64_t slot_bytes,
                                   absl::Time deadline) = 0;

  // Waits for all that was launched, once a step. kFailedPrecondition: a message was not of its
  // round, so that nothing which the step computed may be used.
  virtual absl::Status Settle(absl::Time deadline) = 0;
};

class Exchange {
 public:
  virtual ~Exchange() = default;

  // Null: Dispatch and Combine are all there is.
  virtual SlotExchange* slots() { return nullptr; }

  // Collective: the argument and the order. A step begins in which no rank has more than
  // `most_rows` rows: what is of fixed size may be small. Without it, the step has
  // ExchangeLimits::max_rows.
  virtual ExchangeShape BeginStep(int32_t /*most_rows*/) { return {}; }

  // Collective: operation order. Sends outgoing rows (bf16 [route.send_rows.size(), hidden],
  // already picked in route order) to their ranks. Returns what arrived here from all ranks, this
  // one included, by source rank rising. The view is valid until the next Dispatch.
  virtual absl::StatusOr<Arrivals> Dispatch(const Route& route,
                                            const TensorView& outgoing,
                                            absl::Time deadline) = 0;

  // Collective: operation order. expert_out [arrivals.num_pairs(), hidden] bf16, in arrival order
  // of the pairs. Writes each result to row route.return_rows[...] = row * k + slot of `returned`
  // [rows * k, hidden].
  virtual absl::Status Combine(const Route& route,
                               const Arrivals& arrivals,
                               const TensorView& expert_out,
                               const TensorView& returned,
                               absl::Time deadline) = 0;

  // Thread-safe, idempotent, never blocks. Wakes every waiter; later calls return `cause`.
  virtual void Abort(absl::Status cause) = 0;

  // Thread-safe. The sticky error, or OK.
  virtual absl::Status Health() const = 0;

  // After an error: ranks that may be dead.
  virtual std::vector<Rank> suspects() const = 0;

  // Time spent waiting for other ranks since the last call; for slow-rank reports. Of an exchange
  // in the queue of a device: for that queue, whose own work counts, too.
  virtual absl::Duration TakeWaitTime() = 0;
};

// How long the parts of the last Create took, for operators.
struct ExchangeTimings {
  Epoch epoch;             // Zero: none yet
  absl::Duration leave;    // Getting rid of the exchange before it
  absl::Duration find;     // Until this rank knew where to meet (NCCL's unique id)
  absl::Duration connect;  // Until all ranks had met
  absl::Duration talk;     // Until each had heard from each

  friend bool operator==(const ExchangeTimings&, const ExchangeTimings&) = default;
};

// Makes exchanges for successive epochs over one kind of transport. Owns what outlives an epoch
// (the listener). Threads: one thread calls Create.
class ExchangeFactory {
 public:
  virtual ~ExchangeFactory() = default;

  // What the other ranks need to reach this one; goes into Enrol.
  virtual std::string endpoint() const = 0;

  // The largest ExchangeShape::slot_rows of its exchanges; 0: they have no slots. Buffers are sized
  // by it.
  virtual int32_t max_slot_rows() const { return 0; }

  // Whether its rows lie in a GPU's own memory. Otherwise the host reads and writes them.
  virtual bool takes_device_memory() const { return false; }

  // Collective over the members of the epoch: all succeed, or each gets an error by `deadline`.
  // Destroy the previous epoch's exchange first.
  virtual absl::StatusOr<std::unique_ptr<Exchange>> Create(const Membership& membership,
                                                           const ExchangeLimits& limits,
                                                           absl::Time deadline) = 0;

  // Thread-safe: makes a Create in progress return kAborted soon.
  virtual void AbortCreate() = 0;

  // For exchanges whose ranks find each other by something that one of them makes for the epoch
  // (NCCL's unique id): Create of rank 0 calls `publish`, and the other ranks' Create waits for the
  // Deliver that follows from it. The term is not set. REQUIRES: set before the first Create.
  virtual void SetPublisher(std::function<void(Bootstrap)> /*publish*/) {}

  // Thread-safe; may come before the Create of its epoch.
  virtual void Deliver(const Bootstrap& /*bootstrap*/) {}

  // Thread-safe. Of the last Create that succeeded; empty where nobody measures.
  virtual ExchangeTimings timings() const { return {}; }
};

}  // namespace shoal
