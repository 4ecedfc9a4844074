// What one communicator may be asked next, and what its answers mean. A value: no call, thread or
// clock; NcclComm (nccl_comm.h) makes the calls that this permits.
//
//   new --init--> connecting --settled--> ready <--group, settled--> launching
//                      \____________________|___________________________/
//                                 first error, deadline or Abort
//                                           v
//                     failed --TakeAbort (once)--> aborting --returned--> gone
//
// Rules of NCCL 2.28 that it keeps: the first error is final; after it nothing but ncclCommAbort is
// called, once; nothing at all after that; ncclCommDestroy and ncclCommFinalize never, since both
// wait for peers that may be dead.
#pragma once

#include <string>

#include "absl/status/status.h"
#include "absl/time/time.h"

namespace shoal {

class NcclSession {
 public:
  enum class State { kNew, kConnecting, kReady, kLaunching, kFailed, kAborting, kGone };

  // What the owner of the communicator does next.
  enum class Next {
    kWait,   // Poll again
    kGo,     // What was begun has come to its end
    kLeave,  // status() is an error: leave; somebody takes the abort
  };

  // ---- The calls. False: not permitted, and status() says why.

  // ncclCommInitRankConfig may be called. It and what follows from it end by `deadline`.
  bool BeginInit(absl::Time deadline);
  // A group of sends and receives may be called.
  bool BeginGroup(absl::Time deadline);

  // What is on the stream, by whatever way it came there, ends by `deadline`.
  void ExpectBy(absl::Time deadline) { deadline_ = deadline; }

  // ncclCommGetAsyncError may be called.
  bool may_poll() const {
    return state_ == State::kConnecting || state_ == State::kLaunching || state_ == State::kReady;
  }

  // ---- Their answers.

  // `result`: OK, also for ncclInProgress. `has_comm`: there is something to abort.
  void InitReturned(const absl::Status& result, bool has_comm);
  void GroupReturned(const absl::Status& result);
  // What ncclCommGetAsyncError said; `is_in_progress` is its ncclInProgress. `is_done`: that is all
  // that the caller waits for, or what else there is (the stream's work) was found done after that
  // call; before NCCL has settled nothing need be on the stream, so an idle one says nothing.
  // `what` names the operation in the error of a passed deadline.
  Next Polled(const absl::Status& comm,
              bool is_in_progress,
              bool is_done,
              absl::Time now,
              const std::string& what);

  // ---- Ends.

  // The first cause stays.
  void Fail(const absl::Status& cause);
  // True, once, when the caller has to call ncclCommAbort.
  bool TakeAbort();
  void AbortReturned();

  State state() const { return state_; }

  const absl::Status& status() const { return status_; }

 private:
  State state_ = State::kNew;
  absl::Status status_;  // Sticky
  absl::Time deadline_;
  bool is_init_in_call_ = false;  // Whether there is a communicator is not known yet
  bool has_comm_ = false;
};

}  // namespace shoal
