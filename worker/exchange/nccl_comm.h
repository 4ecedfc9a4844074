// One NCCL communicator, from its birth to its abort: makes the calls that NcclSession permits, one
// at a time, each with somebody watching that it comes back.
//
// Threads. The step thread connects, launches and waits. Any thread may call Fail(), which returns
// at once; the reaper's thread then calls ncclCommAbort, which may take seconds. Two locks: one
// around every call into NCCL, so that the abort meets no other call of the communicator, and one
// around the session, never held during a call, so that nobody who only asks or fails has to wait.
#pragma once

#include <cstddef>
#include <functional>
#include <span>
#include <string>
#include <thread>

#include "absl/base/thread_annotations.h"
#include "absl/status/status.h"
#include "absl/synchronization/mutex.h"
#include "absl/time/time.h"

#include "base/bounded_queue.h"
#include "worker/exchange/device_stream.h"
#include "worker/exchange/nccl_api.h"
#include "worker/exchange/nccl_session.h"
#include "worker/exchange/watchdog.h"

namespace shoal {

class NcclComm;

// The thread that calls ncclCommAbort. Outlives the communicators that are given to it.
class NcclReaper {
 public:
  NcclReaper();
  ~NcclReaper();

  NcclReaper(const NcclReaper&) = delete;
  NcclReaper& operator=(const NcclReaper&) = delete;

  // Thread-safe, never blocks. `comm` is aborted soon, and waits for that before it is destroyed.
  void Take(NcclComm* comm);

  // Thread-safe. From the call of ncclCommAbort to its return, the last time.
  absl::Duration last_abort() const;

 private:
  friend class NcclComm;

  mutable absl::Mutex mutex_;
  absl::Duration last_abort_ ABSL_GUARDED_BY(mutex_);
  BoundedQueue<NcclComm*> queue_;
  std::thread thread_;
};

// What a communicator needs of its surroundings. Everything pointed to outlives it.
struct NcclCommParts {
  const NcclApi* api = nullptr;
  DeviceStream* stream = nullptr;
  Watchdog* watchdog = nullptr;
  NcclReaper* reaper = nullptr;
  // The device has failed, which only a new process mends. Does not return in a worker.
  std::function<void(const std::string& why)> die;
  std::string name;  // "epoch 18 of cell 0", for errors
  // How long ncclCommAbort may take: it waits for kernels that look at the abort flag, and for
  // threads of its own.
  absl::Duration abort_patience = absl::Seconds(10);
};

// To or from one rank.
struct NcclTransfer {
  enum class Kind { kSend, kReceive };

  Kind kind = Kind::kSend;
  int rank = 0;
  void* data = nullptr;  // Device memory; not written by a send
  size_t bytes = 0;
};

class NcclComm {
 public:
  // How long a call into NCCL may take: with a non-blocking communicator it returns at once.
  static constexpr absl::Duration kCallPatience = absl::Seconds(10);

  explicit NcclComm(NcclCommParts parts);
  // Aborts what was connected, and waits until nothing of it is left: neither in NCCL nor on the
  // stream. The watchdog bounds that wait.
  ~NcclComm();

  NcclComm(const NcclComm&) = delete;
  NcclComm& operator=(const NcclComm&) = delete;

  // Collective: once. Polls until all ranks are there. Errors as in exchange.h.
  absl::Status Connect(const NcclUniqueId& id, int num_ranks, int rank, absl::Time deadline);

  // Collective: order and sizes, pair by pair of ranks. Puts the transfers on the stream as one
  // group; returns when they are there, not when they are done. `what` names it in errors.
  absl::Status Launch(std::span<const NcclTransfer> transfers,
                      const std::string& what,
                      absl::Time deadline);

  // Waits until the stream has done everything, and looks after NCCL meanwhile.
  absl::Status AwaitStream(const std::string& what, absl::Time deadline);

  // Thread-safe, idempotent, never blocks.
  void Fail(const absl::Status& cause);

  // Thread-safe. The sticky error, or OK.
  absl::Status status() const;

 private:
  friend class NcclReaper;

  // The reaper's thread.
  void Reap();
  // Hands the communicator to the reaper if the session wants it aborted.
  void HandOver();
  // Asks NCCL how it is; `is_done` as in NcclSession::Polled, measured after that.
  NcclSession::Next Poll(const std::string& what, const std::function<bool()>& is_done);
  absl::Status CallGroup(std::span<const NcclTransfer> transfers, const std::string& what);
  void Pause(int num_polls);

  const NcclCommParts parts_;
  const NcclApi& api_;

  absl::Mutex call_mutex_ ABSL_ACQUIRED_BEFORE(state_mutex_);
  NcclCommHandle comm_ ABSL_GUARDED_BY(call_mutex_) = nullptr;  // Null once the reaper has it

  mutable absl::Mutex state_mutex_;
  NcclSession session_ ABSL_GUARDED_BY(state_mutex_);
};

}  // namespace shoal
