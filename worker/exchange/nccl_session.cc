#include "worker/exchange/nccl_session.h"

#include "absl/strings/str_cat.h"

#include "base/check.h"

namespace shoal {

bool NcclSession::BeginInit(absl::Time deadline) {
  if (state_ != State::kNew) return false;
  state_ = State::kConnecting;
  deadline_ = deadline;
  is_init_in_call_ = true;
  return true;
}

void NcclSession::InitReturned(const absl::Status& result, bool has_comm) {
  CHECK(is_init_in_call_);
  is_init_in_call_ = false;
  has_comm_ = has_comm;
  if (!result.ok()) Fail(result);
  // Failed while the call ran, by Abort() say: the abort was put off until here.
  if (state_ == State::kFailed && !has_comm_) state_ = State::kGone;
}

bool NcclSession::BeginGroup(absl::Time deadline) {
  if (state_ != State::kReady) return false;
  state_ = State::kLaunching;
  deadline_ = deadline;
  return true;
}

void NcclSession::GroupReturned(const absl::Status& result) {
  if (!result.ok()) Fail(result);
}

NcclSession::Next NcclSession::Polled(const absl::Status& comm,
                                      bool is_in_progress,
                                      bool is_done,
                                      absl::Time now,
                                      const std::string& what) {
  if (!may_poll()) return Next::kLeave;
  if (!comm.ok()) {
    Fail(comm);
    return Next::kLeave;
  }
  if (!is_in_progress) state_ = State::kReady;
  if (!is_in_progress && is_done) return Next::kGo;
  if (now < deadline_) return Next::kWait;
  Fail(absl::DeadlineExceededError(absl::StrCat(what, " passed its deadline")));
  return Next::kLeave;
}

void NcclSession::Fail(const absl::Status& cause) {
  CHECK(!cause.ok());
  if (!status_.ok()) return;
  status_ = cause;
  // Nothing to abort before init, nor after one that made no communicator.
  state_ = is_init_in_call_ || has_comm_ ? State::kFailed : State::kGone;
}

bool NcclSession::TakeAbort() {
  if (state_ != State::kFailed || is_init_in_call_) return false;
  CHECK(has_comm_);
  state_ = State::kAborting;
  return true;
}

void NcclSession::AbortReturned() {
  CHECK(state_ == State::kAborting);
  has_comm_ = false;
  state_ = State::kGone;
}

}  // namespace shoal
