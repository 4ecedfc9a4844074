#include "coordinator/serve/worker_link.h"

#include <optional>
#include <variant>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/str_cat.h"

#include "base/serve/log.h"

namespace shoal {
namespace {

namespace pb = fleet::v1;

// A worker reads at once; this many messages wait only for one that is frozen.
constexpr size_t kMaxQueued = 8192;

}  // namespace

// One stream. Deletes itself when its call has ended; the reading half belongs to gRPC's threads,
// which call one at a time.
class WorkerLinks::Session final : public grpc::ServerBidiReactor<pb::FromWorker, pb::ToWorker> {
 public:
  Session(WorkerLinks* owner, grpc::CallbackServerContext* context)
      : owner_(*owner), context_(*context) {
    StartRead(&incoming_);
  }

  void OnReadDone(bool ok) override {
    if (!ok) return End(grpc::Status::OK, "its link ended");
    const absl::Status status = Take();
    if (!status.ok()) {
      return End(
          grpc::Status(static_cast<grpc::StatusCode>(status.code()), std::string(status.message())),
          std::string(status.message()));
    }
    StartRead(&incoming_);
  }

  void OnWriteDone(bool ok) override {
    absl::MutexLock lock(&owner_.mutex_);
    queue_.pop_front();
    is_writing_ = false;
    if (ok) WriteNext();
  }

  void OnCancel() override { End(grpc::Status::CANCELLED, "its link broke"); }

  // The worker may dial again as soon as its key is free, so the loss is told before that.
  void OnDone() override {
    if (enrolled_.has_value()) {
      owner_.loop_.Post(WorkerLost{
          .worker = enrolled_->first, .incarnation = enrolled_->second, .why = WhyEnded()});
    }
    {
      absl::MutexLock lock(&owner_.mutex_);
      if (enrolled_.has_value()) owner_.sessions_.erase(*enrolled_);
      --owner_.num_sessions_;
    }
    delete this;
  }

 private:
  friend class WorkerLinks;

  // The message in incoming_ becomes an event.
  absl::Status Take() {
    absl::StatusOr<std::optional<FromWorker>> message = reader_.Read(incoming_);
    if (!message.ok()) return message.status();
    if (!message->has_value()) return absl::OkStatus();  // Logits; their result follows.
    if (Enrol* enrol = std::get_if<Enrol>(&**message)) return TakeEnrol(std::move(*enrol));
    if (!enrolled_.has_value()) {
      return absl::InvalidArgumentError("the first message of a link must be `enrol`");
    }
    owner_.loop_.Post(WorkerSaid{.worker = enrolled_->first,
                                 .incarnation = enrolled_->second,
                                 .message = **std::move(message)});
    return absl::OkStatus();
  }

  absl::Status TakeEnrol(Enrol enrol) {
    if (enrolled_.has_value()) return absl::InvalidArgumentError("`enrol` was sent twice");
    const Key key{enrol.worker, enrol.incarnation};
    {
      absl::MutexLock lock(&owner_.mutex_);
      if (!owner_.sessions_.emplace(key, this).second) {
        return absl::UnavailableError(
            absl::StrCat("the link before of worker ", enrol.worker.value, " has not ended yet"));
      }
    }
    enrolled_ = key;
    Log(LogLevel::kInfo,
        "worker.enrolled",
        {{"worker", enrol.worker.value}, {"process", enrol.process}, {"host", enrol.host}});
    owner_.loop_.Post(WorkerEnrolled{.enrol = std::move(enrol)});
    return absl::OkStatus();
  }

  std::string WhyEnded() {
    absl::MutexLock lock(&owner_.mutex_);
    return why_;
  }

  void Enqueue(const ToWorker& message) ABSL_EXCLUSIVE_LOCKS_REQUIRED(owner_.mutex_) {
    if (is_ended_ || is_closing_) return;
    if (queue_.size() >= kMaxQueued) return context_.TryCancel();
    queue_.push_back(ToProto(message));
    WriteNext();
  }

  void WriteNext() ABSL_EXCLUSIVE_LOCKS_REQUIRED(owner_.mutex_) {
    if (is_writing_ || is_ended_) return;
    if (!queue_.empty()) {
      is_writing_ = true;
      StartWrite(&queue_.front());
    } else if (is_closing_) {
      is_ended_ = true;
      Finish(grpc::Status(grpc::StatusCode::ABORTED, "the coordinator closed the link"));
    }
  }

  void End(const grpc::Status& status, const std::string& why) {
    absl::MutexLock lock(&owner_.mutex_);
    if (is_ended_) return;
    is_ended_ = true;
    why_ = why;
    Finish(status);
  }

  WorkerLinks& owner_;
  grpc::CallbackServerContext& context_;

  // Owned by the reading half.
  pb::FromWorker incoming_;
  FromWorkerReader reader_;
  std::optional<Key> enrolled_;  // In owner_.sessions_

  std::deque<pb::ToWorker> queue_ ABSL_GUARDED_BY(owner_.mutex_);
  bool is_writing_ ABSL_GUARDED_BY(owner_.mutex_) = false;  // queue_.front()
  bool is_closing_ ABSL_GUARDED_BY(owner_.mutex_) = false;  // After queue_
  bool is_ended_ ABSL_GUARDED_BY(owner_.mutex_) = false;    // Finish was called
  std::string why_ ABSL_GUARDED_BY(owner_.mutex_) = "the coordinator closed its link";
};

grpc::ServerBidiReactor<pb::FromWorker, pb::ToWorker>* WorkerLinks::Link(
    grpc::CallbackServerContext* context) {
  {
    absl::MutexLock lock(&mutex_);
    ++num_sessions_;
  }
  return new Session(this, context);
}

void WorkerLinks::Send(SendToWorker action) {
  absl::MutexLock lock(&mutex_);
  const auto found = sessions_.find(Key{action.worker, action.incarnation});
  if (found == sessions_.end()) return;
  Session& session = *found->second;
  session.owner_.mutex_.AssertHeld();  // It is ours, which the analysis cannot know.
  session.Enqueue(action.message);
}

void WorkerLinks::Close(const CloseLink& action) {
  absl::MutexLock lock(&mutex_);
  const auto found = sessions_.find(Key{action.worker, action.incarnation});
  if (found == sessions_.end()) return;
  Session& session = *found->second;
  session.owner_.mutex_.AssertHeld();
  session.is_closing_ = true;
  session.WriteNext();
}

bool WorkerLinks::WaitUntilIdle(absl::Time deadline) {
  absl::MutexLock lock(&mutex_);
  const auto is_idle = [this]() ABSL_SHARED_LOCKS_REQUIRED(mutex_) { return num_sessions_ == 0; };
  return mutex_.AwaitWithDeadline(absl::Condition(&is_idle), deadline);
}

}  // namespace shoal
