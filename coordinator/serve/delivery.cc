#include "coordinator/serve/delivery.h"

#include <algorithm>
#include <iterator>
#include <utility>
#include <variant>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"

#include "base/check.h"
#include "base/serve/log.h"

namespace shoal {
namespace {

constexpr int64_t kTokenBytes = 16;
constexpr int64_t kAlternativeBytes = 12;

struct Size {
  int64_t tokens = 0;
  int64_t bytes = 0;
  int64_t logit_bytes = 0;
};

Size SizeOf(const Action& action) {
  Size size;
  if (const auto* emit = std::get_if<Emit>(&action)) {
    size.tokens = std::ssize(emit->tokens);
    for (const OutputToken& token : emit->tokens) {
      size.bytes += kTokenBytes + kAlternativeBytes * std::ssize(token.top);
    }
  } else if (const auto* logits = std::get_if<EmitLogits>(&action)) {
    size.logit_bytes = std::ssize(logits->rows.values) * static_cast<int64_t>(sizeof(float));
  }
  return size;
}

grpc::Status ToGrpc(const absl::Status& status) {
  return grpc::Status(static_cast<grpc::StatusCode>(status.code()), std::string(status.message()));
}

}  // namespace

// What happened to a reader since it was served last.
struct Delivery::Work {
  std::vector<Action> actions;
  std::vector<StreamId> parked_streams;  // Just closed because too much waits
  bool is_writing = false;  // Then there are no actions: the inbox fills until that is done
  bool is_cancelled = false;
  bool overran = false;  // Logits only: more waits than may
};

class Delivery::Reader final : public Delivery::Reactor {
 public:
  Reader(Delivery* owner, absl::string_view method, std::unique_ptr<Transcript> transcript)
      : owner_(*owner), method_(method), transcript_(std::move(transcript)), began_(absl::Now()) {}

  void OnWriteDone(bool ok) override {
    absl::MutexLock lock(&owner_.mutex_);
    is_writing_ = false;
    if (!ok) is_cancelled_ = true;
    owner_.Enqueue(this);
  }

  void OnCancel() override {
    absl::MutexLock lock(&owner_.mutex_);
    is_cancelled_ = true;
    owner_.Enqueue(this);
  }

  void OnDone() override {
    absl::MutexLock lock(&owner_.mutex_);
    is_done_ = true;
    owner_.Enqueue(this);
  }

 private:
  friend class Delivery;

  Delivery& owner_;
  const std::string method_;

  // Guarded by owner_.mutex_.
  std::vector<StreamId> streams_;  // That the core writes to
  std::deque<Action> inbox_;
  Size unread_;                           // Of inbox_
  std::vector<StreamId> parked_streams_;  // Of these the core has not been told yet
  bool is_ready_ = false;                 // In owner_.ready_
  bool is_writing_ = false;
  bool is_cancelled_ = false;
  bool is_done_ = false;
  bool overran_ = false;

  // Owned by owner_.thread_.
  std::unique_ptr<Transcript> transcript_;
  std::deque<grpc::ByteBuffer> outbox_;
  bool has_started_front_ = false;   // Of outbox_: it is being written, or is written
  std::optional<absl::Status> end_;  // After outbox_
  absl::Time parked_since_ = absl::InfiniteFuture();
  bool is_finished_ = false;  // Finish was called
  const absl::Time began_;
};

Delivery::Delivery(EventLoop* loop, const DeliveryLimits& limits)
    : loop_(*loop), limits_(limits), thread_([this] { Run(); }) {}

Delivery::~Delivery() {
  {
    absl::MutexLock lock(&mutex_);
    is_stopping_ = true;
  }
  thread_.join();
}

Delivery::Reactor* Delivery::NewReader(absl::string_view method,
                                       std::unique_ptr<Transcript> transcript,
                                       StreamId* stream) {
  auto owned = std::make_unique<Reader>(this, method, std::move(transcript));
  Reader* reader = owned.get();
  absl::MutexLock lock(&mutex_);
  *stream = StreamId{++last_stream_};
  reader->streams_.push_back(*stream);
  streams_.emplace(*stream, reader);
  readers_.emplace(reader, std::move(owned));
  return reader;
}

void Delivery::Deliver(StreamId stream, Action action) {
  const Size size = SizeOf(action);
  absl::MutexLock lock(&mutex_);
  const auto found = streams_.find(stream);
  if (found == streams_.end()) return;
  Reader* reader = found->second;
  Size& unread = reader->unread_;
  // The first of the waiting messages is always taken, or one that is too large would never pass.
  const bool is_full =
      unread.tokens > 0 && (unread.tokens + size.tokens > limits_.max_unread_tokens ||
                            unread.bytes + size.bytes > limits_.max_unread_bytes);
  if (size.tokens > 0 && is_full) {
    Retire(reader, &reader->parked_streams_);
  } else if (unread.logit_bytes + size.logit_bytes > limits_.max_unread_logit_bytes) {
    reader->overran_ = true;
  } else {
    unread.tokens += size.tokens;
    unread.bytes += size.bytes;
    unread.logit_bytes += size.logit_bytes;
    reader->inbox_.push_back(std::move(action));
  }
  Enqueue(reader);
}

void Delivery::Enqueue(Reader* reader) {
  if (reader->is_ready_) return;
  reader->is_ready_ = true;
  ready_.push_back(reader);
}

// Its streams end: what the core still says on them is not for anybody.
void Delivery::Retire(Reader* reader, std::vector<StreamId>* streams) {
  for (const StreamId stream : reader->streams_) {
    streams_.erase(stream);
    streams->push_back(stream);
  }
  reader->streams_.clear();
}

bool Delivery::WaitUntilIdle(absl::Time deadline) {
  absl::MutexLock lock(&mutex_);
  const auto is_idle = [this]() ABSL_SHARED_LOCKS_REQUIRED(mutex_) { return readers_.empty(); };
  return mutex_.AwaitWithDeadline(absl::Condition(&is_idle), deadline);
}

Delivery::Counters Delivery::counters() const {
  absl::MutexLock lock(&mutex_);
  Counters counters = counters_;
  counters.readers = static_cast<int64_t>(readers_.size());
  return counters;
}

void Delivery::Run() {
  const absl::Duration period = std::min(absl::Seconds(1), limits_.max_parked / 4);
  absl::Time next_sweep = absl::Now() + period;
  while (true) {
    {
      absl::MutexLock lock(&mutex_);
      const auto has_news = [this]() ABSL_SHARED_LOCKS_REQUIRED(mutex_) {
        return !ready_.empty() || (is_stopping_ && readers_.empty());
      };
      mutex_.AwaitWithDeadline(absl::Condition(&has_news), next_sweep);
      if (ready_.empty() && is_stopping_ && readers_.empty()) return;
    }
    Work work;
    if (Reader* reader = NextReady(&work)) Serve(reader, std::move(work));
    if (absl::Now() < next_sweep) continue;
    DropStale();
    next_sweep = absl::Now() + period;
  }
}

// The next reader with news, and the news; nullptr if there is none, or if it was a reader's end.
Delivery::Reader* Delivery::NextReady(Work* work) {
  std::unique_ptr<Reader> ended;  // Destroyed after the lock is released.
  absl::MutexLock lock(&mutex_);
  if (ready_.empty()) return nullptr;
  Reader* reader = ready_.front();
  ready_.pop_front();
  reader->is_ready_ = false;
  if (reader->is_done_) {
    std::vector<StreamId> streams;
    Retire(reader, &streams);
    parked_.erase(reader);
    const auto node = readers_.find(reader);
    ended = std::move(node->second);
    readers_.erase(node);
    return nullptr;
  }
  // While a message is being written the inbox fills, and becomes fewer and larger messages.
  work->is_writing = reader->is_writing_;
  if (!reader->is_writing_) {
    work->actions.assign(std::make_move_iterator(reader->inbox_.begin()),
                         std::make_move_iterator(reader->inbox_.end()));
    reader->inbox_.clear();
    reader->unread_ = Size{};
  }
  work->parked_streams = std::exchange(reader->parked_streams_, {});
  work->is_cancelled = reader->is_cancelled_;
  work->overran = reader->overran_;
  return reader;
}

void Delivery::Serve(Reader* reader, Work work) {
  if (reader->is_finished_) return;
  if (!work.parked_streams.empty()) Park(reader, work.parked_streams);
  if (work.is_cancelled) {
    return End(reader, absl::CancelledError("the client went away"));
  }
  if (work.overran) {
    return End(reader,
               absl::ResourceExhaustedError(absl::StrCat("the client reads too slowly: more than ",
                                                         limits_.max_unread_logit_bytes,
                                                         " bytes of logits wait for it")));
  }
  if (work.is_writing) return;
  if (!work.actions.empty() && !reader->end_.has_value()) {
    Transcript::Output output = reader->transcript_->Write(work.actions);
    for (Event& event : output.events) loop_.Post(std::move(event));
    std::move(output.messages.begin(), output.messages.end(), std::back_inserter(reader->outbox_));
    reader->end_ = std::move(output.end);
  }
  WriteNext(reader);
}

// REQUIRES: no write is under way.
void Delivery::WriteNext(Reader* reader) {
  if (std::exchange(reader->has_started_front_, false)) reader->outbox_.pop_front();
  if (reader->outbox_.empty()) {
    if (reader->end_.has_value()) return End(reader, *reader->end_);
    return MaybeResume(reader);
  }
  {
    absl::MutexLock lock(&mutex_);
    reader->is_writing_ = true;
  }
  reader->has_started_front_ = true;
  reader->StartWrite(&reader->outbox_.front());
}

void Delivery::Park(Reader* reader, const std::vector<StreamId>& streams) {
  for (const StreamId stream : streams) loop_.Post(ClientGone{.stream = stream, .keep = true});
  reader->parked_since_ = absl::Now();
  parked_.insert(reader);
  absl::MutexLock lock(&mutex_);
  ++counters_.parked;
}

void Delivery::MaybeResume(Reader* reader) {
  if (parked_.erase(reader) == 0) return;
  reader->parked_since_ = absl::InfiniteFuture();
  std::vector<ClientAttached> wishes = reader->transcript_->Resume();
  {
    absl::MutexLock lock(&mutex_);
    ++counters_.resumed;
    for (ClientAttached& wish : wishes) {
      wish.stream = StreamId{++last_stream_};
      reader->streams_.push_back(wish.stream);
      streams_.emplace(wish.stream, reader);
    }
  }
  for (ClientAttached& wish : wishes) loop_.Post(std::move(wish));
}

void Delivery::End(Reader* reader, const absl::Status& status) {
  std::vector<StreamId> streams;
  {
    absl::MutexLock lock(&mutex_);
    Retire(reader, &streams);
  }
  // For a stream that the core ended itself this means nothing to it.
  for (const StreamId stream : streams) loop_.Post(ClientGone{.stream = stream, .keep = false});
  if (parked_.erase(reader) > 0) {
    if (std::optional<Event> event = reader->transcript_->Abandon()) loop_.Post(*std::move(event));
  }
  reader->is_finished_ = true;
  Log(LogLevel::kInfo,
      "call",
      {{"method", reader->method_},
       {"id", reader->transcript_->request_id()},
       {"code", absl::StatusCodeToString(status.code())},
       {"tokens", reader->transcript_->num_tokens()},
       {"took", absl::Now() - reader->began_}});
  reader->Finish(ToGrpc(status));
}

void Delivery::DropStale() {
  const absl::Time oldest = absl::Now() - limits_.max_parked;
  std::vector<Reader*> stale;
  for (Reader* reader : parked_) {
    if (reader->parked_since_ < oldest) stale.push_back(reader);
  }
  for (Reader* reader : stale) {
    End(reader,
        absl::ResourceExhaustedError(absl::StrCat("the client did not read for ",
                                                  absl::FormatDuration(limits_.max_parked))));
  }
}

}  // namespace shoal
