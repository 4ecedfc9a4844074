#include "worker/exchange/nccl_comm.h"

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"

#include "base/check.h"
#include "base/status_macros.h"

namespace shoal {
namespace {

// Of one factory: the present epoch's, and perhaps the next one's.
constexpr size_t kMaxReaped = 16;

// While NCCL connects or launches there is nothing to wait on but its answers: look often at first,
// for a launch takes microseconds, then rarely, for an init takes seconds.
constexpr absl::Duration kLongestPause = absl::Milliseconds(2);
constexpr int kEagerPolls = 16;
// Between two looks at NCCL while the stream works.
constexpr absl::Duration kStreamLook = absl::Milliseconds(1);

using State = NcclSession::State;
using Next = NcclSession::Next;

}  // namespace

NcclReaper::NcclReaper()
    : queue_(kMaxReaped), thread_([this] {
        while (auto comm = queue_.Pop(absl::InfiniteFuture())) (*comm)->Reap();
      }) {}

NcclReaper::~NcclReaper() {
  queue_.Close();
  thread_.join();
}

void NcclReaper::Take(NcclComm* comm) {
  CHECK(queue_.TryPush(std::move(comm)));
}

absl::Duration NcclReaper::last_abort() const {
  absl::MutexLock lock(&mutex_);
  return last_abort_;
}

NcclComm::NcclComm(NcclCommParts parts) : parts_(std::move(parts)), api_(*parts_.api) {}

NcclComm::~NcclComm() {
  Fail(absl::AbortedError("the epoch was left"));
  {
    absl::MutexLock lock(&state_mutex_);
    const auto is_gone = [this]() ABSL_SHARED_LOCKS_REQUIRED(state_mutex_) {
      return session_.state() == State::kGone;
    };
    state_mutex_.Await(absl::Condition(&is_gone));
  }
  // The kernels have seen the abort flag; their buffers may be freed when they are gone.
  const Watchdog::Guard guard(parts_.watchdog,
                              absl::StrCat("the device's work of ", parts_.name, ", aborted,"),
                              absl::Now() + parts_.abort_patience);
  while (true) {
    const absl::StatusOr<bool> is_done = parts_.stream->Wait(kStreamLook);
    if (!is_done.ok()) parts_.die(std::string(is_done.status().message()));
    if (!is_done.ok() || *is_done) break;
  }
}

absl::Status NcclComm::Connect(const NcclUniqueId& id,
                               int num_ranks,
                               int rank,
                               absl::Time deadline) {
  const std::string what = absl::StrCat("the NCCL communicator of ", parts_.name);
  {
    absl::MutexLock lock(&state_mutex_);
    if (!session_.BeginInit(deadline)) {
      CHECK(!session_.status().ok());  // Else it is connected twice
      return session_.status();
    }
  }
  {
    absl::MutexLock call(&call_mutex_);
    const Watchdog::Guard guard(parts_.watchdog,
                                absl::StrCat("ncclCommInitRankConfig of ", parts_.name),
                                std::max(deadline, absl::Now()) + kCallPatience);
    NcclConfig config;
    config.blocking = 0;
    const NcclResult result = api_.comm_init_rank_config(&comm_, num_ranks, id, rank, &config);
    absl::MutexLock lock(&state_mutex_);
    session_.InitReturned(NcclStatus(api_, result, "ncclCommInitRankConfig"), comm_ != nullptr);
  }
  HandOver();
  for (int polls = 0;; ++polls) {
    const Next next = Poll(what, [] { return true; });
    if (next == Next::kGo) return absl::OkStatus();
    if (next == Next::kLeave) return status();
    Pause(polls);
  }
}

absl::Status NcclComm::Launch(std::span<const NcclTransfer> transfers,
                              const std::string& what,
                              absl::Time deadline) {
  {
    absl::MutexLock lock(&state_mutex_);
    if (!session_.BeginGroup(deadline)) {
      CHECK(!session_.status().ok());  // Else it is not connected
      return session_.status();
    }
  }
  const absl::Status called = CallGroup(transfers, what);
  {
    absl::MutexLock lock(&state_mutex_);
    session_.GroupReturned(called);
  }
  HandOver();
  for (int polls = 0;; ++polls) {
    const Next next = Poll(what, [] { return true; });
    if (next == Next::kGo) return absl::OkStatus();
    if (next == Next::kLeave) return status();
    Pause(polls);
  }
}

// What is begun is ended, whatever went wrong between: the calling thread's group would stay open
// and swallow the next communicator's calls.
absl::Status NcclComm::CallGroup(std::span<const NcclTransfer> transfers, const std::string& what) {
  absl::MutexLock call(&call_mutex_);
  if (comm_ == nullptr) return status();  // Aborted meanwhile
  const Watchdog::Guard guard(parts_.watchdog,
                              absl::StrCat("NCCL's calls for ", what, " of ", parts_.name),
                              absl::Now() + kCallPatience);
  RETURN_IF_ERROR(NcclStatus(api_, api_.group_start(), "ncclGroupStart"));
  absl::Status first;
  for (const NcclTransfer& transfer : transfers) {
    const bool is_send = transfer.kind == NcclTransfer::Kind::kSend;
    const auto call_nccl = [&] {
      void* const stream = parts_.stream->handle();
      return is_send ? api_.send(
                           transfer.data, transfer.bytes, kNcclUint8, transfer.rank, comm_, stream)
                     : api_.recv(
                           transfer.data, transfer.bytes, kNcclUint8, transfer.rank, comm_, stream);
    };
    first = NcclStatus(api_, call_nccl(), is_send ? "ncclSend" : "ncclRecv");
    if (!first.ok()) break;
  }
  first.Update(NcclStatus(api_, api_.group_end(), "ncclGroupEnd"));
  return first;
}

absl::Status NcclComm::AwaitStream(const std::string& what, absl::Time deadline) {
  {
    absl::MutexLock lock(&state_mutex_);
    session_.ExpectBy(deadline);
  }
  while (true) {
    bool has_fault = false;
    const Next next = Poll(what, [&] {
      const absl::StatusOr<bool> is_done = parts_.stream->Wait(kStreamLook);
      has_fault = !is_done.ok();
      if (has_fault) parts_.die(std::string(is_done.status().message()));
      return !has_fault && *is_done;
    });
    if (has_fault) Fail(absl::UnavailableError("the device has failed"));
    if (next == Next::kGo) return absl::OkStatus();
    if (next == Next::kLeave) return status();
  }
}

NcclSession::Next NcclComm::Poll(const std::string& what, const std::function<bool()>& is_done) {
  NcclResult async = NcclResult::kSuccess;
  absl::Status comm;
  {
    absl::MutexLock call(&call_mutex_);
    {
      absl::MutexLock lock(&state_mutex_);
      if (!session_.may_poll()) return Next::kLeave;
    }
    const Watchdog::Guard guard(parts_.watchdog,
                                absl::StrCat("ncclCommGetAsyncError of ", parts_.name),
                                absl::Now() + kCallPatience);
    comm = NcclStatus(api_, api_.comm_get_async_error(comm_, &async), "ncclCommGetAsyncError");
    if (comm.ok()) comm = NcclStatus(api_, async, what);
  }
  const bool is_in_progress = async == NcclResult::kInProgress;
  const bool done = comm.ok() && !is_in_progress && is_done();
  Next next;
  {
    absl::MutexLock lock(&state_mutex_);
    next = session_.Polled(comm, is_in_progress, done, absl::Now(), what);
  }
  if (next == Next::kLeave) HandOver();
  return next;
}

// Ends early when the session fails.
void NcclComm::Pause(int num_polls) {
  if (num_polls < kEagerPolls) {
    std::this_thread::yield();
    return;
  }
  const absl::Duration pause = std::min(absl::Microseconds(10) * num_polls, kLongestPause);
  absl::MutexLock lock(&state_mutex_);
  const auto has_failed = [this]() ABSL_SHARED_LOCKS_REQUIRED(state_mutex_) {
    return !session_.status().ok();
  };
  state_mutex_.AwaitWithTimeout(absl::Condition(&has_failed), pause);
}

void NcclComm::Fail(const absl::Status& cause) {
  {
    absl::MutexLock lock(&state_mutex_);
    session_.Fail(cause);
  }
  HandOver();
}

void NcclComm::HandOver() {
  {
    absl::MutexLock lock(&state_mutex_);
    if (!session_.TakeAbort()) return;
  }
  parts_.reaper->Take(this);
}

void NcclComm::Reap() {
  {
    const Watchdog::Guard guard(parts_.watchdog,
                                absl::StrCat("ncclCommAbort of ", parts_.name),
                                absl::Now() + parts_.abort_patience);
    NcclCommHandle comm = nullptr;
    {
      // A call that is under way comes to its end first: NCCL may not be left and entered at once.
      absl::MutexLock call(&call_mutex_);
      comm = std::exchange(comm_, nullptr);
    }
    // Its result says nothing that could be acted on: the communicator is gone either way.
    const absl::Time start = absl::Now();
    api_.comm_abort(comm);
    absl::MutexLock lock(&parts_.reaper->mutex_);
    parts_.reaper->last_abort_ = absl::Now() - start;
  }
  absl::MutexLock lock(&state_mutex_);
  session_.AbortReturned();
}

absl::Status NcclComm::status() const {
  absl::MutexLock lock(&state_mutex_);
  return session_.status();
}

}  // namespace shoal
