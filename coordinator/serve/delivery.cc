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

constexpr auto kTokenBytes = static_cast<int64_t>(sizeof(OutputToken));
constexpr auto kAlternativeBytes = static_cast<int64_t>(sizeof(TopLogprob));

struct Size {
  int64_t tokens = 0;
  int64_t bytes = 0;
  int64_t logit_bytes = 0;

  Size& operator+=(const Size& other) {
    tokens += other.tokens;
    bytes += other.bytes;
    logit_bytes += other.logit_bytes;
    return *this;
  }

  Size& operator-=(const Size& other) {
    tokens -= other.tokens;
    bytes -= other.bytes;
    logit_bytes -= other.logit_bytes;
    return *this;
  }
};

int64_t BytesOf(const OutputToken& token) {
  return kTokenBytes + kAlternativeBytes * std::ssize(token.top);
}

Size SizeOf(const Action& action) {
  Size size;
  if (const auto* emit = std::get_if<Emit>(&action)) {
    size.tokens = std::ssize(emit->tokens);
    for (const OutputToken& token : emit->tokens) size.bytes += BytesOf(token);
  } else if (const auto* logits = std::get_if<EmitLogits>(&action)) {
    size.logit_bytes = std::ssize(logits->rows.values) * static_cast<int64_t>(sizeof(float));
  }
  return size;
}

// The waiting tokens that `emit` continues, if they are among the last of each choice.
Emit* Continued(const Emit& emit, std::deque<Action>* inbox) {
  int looked_at = 0;
  for (auto it = inbox->rbegin(); it != inbox->rend() && looked_at < kMaxChoices; ++it) {
    auto* const last = std::get_if<Emit>(&*it);
    if (last == nullptr) return nullptr;
    const auto end = last->first_index + static_cast<int32_t>(std::ssize(last->tokens));
    if (last->choice == emit.choice) return end == emit.first_index ? last : nullptr;
    ++looked_at;
  }
  return nullptr;
}

// An action of its own takes ten times the memory of the token in it.
void Append(Action action, std::deque<Action>* inbox) {
  auto* const emit = std::get_if<Emit>(&action);
  Emit* const last = emit == nullptr ? nullptr : Continued(*emit, inbox);
  if (last == nullptr) {
    inbox->push_back(std::move(action));
    return;
  }
  last->tokens.insert(last->tokens.end(),
                      std::make_move_iterator(emit->tokens.begin()),
                      std::make_move_iterator(emit->tokens.end()));
}

// Takes the first tokens of `emit` that have `max_bytes` together, at least one.
Emit TakeFront(int64_t max_bytes, Emit* emit) {
  auto end = emit->tokens.begin();
  for (int64_t bytes = 0; end != emit->tokens.end() && (bytes == 0 || bytes < max_bytes); ++end) {
    bytes += BytesOf(*end);
  }
  Emit front{.stream = emit->stream, .choice = emit->choice, .first_index = emit->first_index};
  front.tokens.assign(std::make_move_iterator(emit->tokens.begin()), std::make_move_iterator(end));
  emit->tokens.erase(emit->tokens.begin(), end);
  emit->first_index += static_cast<int32_t>(std::ssize(front.tokens));
  return front;
}

// The oldest actions, with tokens of `max_bytes` together, at least one action.
std::vector<Action> TakeBatch(int64_t max_bytes, std::deque<Action>* inbox) {
  std::vector<Action> batch;
  int64_t bytes = 0;
  while (!inbox->empty() && (bytes == 0 || bytes < max_bytes)) {
    auto* const emit = std::get_if<Emit>(&inbox->front());
    const int64_t size = SizeOf(inbox->front()).bytes;
    if (emit != nullptr && bytes + size > max_bytes) {
      batch.emplace_back(TakeFront(max_bytes - bytes, emit));
      if (!emit->tokens.empty()) break;
    } else {
      batch.push_back(std::move(inbox->front()));
    }
    inbox->pop_front();
    bytes += size;
  }
  return batch;
}

}  // namespace

// What happened at a seat since it was served last.
struct Delivery::Work {
  std::vector<Action> actions;
  bool has_more = false;                 // Waits in the inbox
  std::vector<StreamId> parked_streams;  // Just closed because too much waits
  bool is_writing = false;  // Then there are no actions: the inbox fills until that is done
  bool is_gone = false;
  bool overran = false;  // Logits only: more waits than may
};

class Delivery::Seat final : public StreamReader::Events {
 public:
  Seat(Delivery* owner,
       absl::string_view method,
       Counting counting,
       std::unique_ptr<Transcript> transcript,
       std::unique_ptr<StreamReader> reader)
      : owner_(*owner),
        method_(method),
        counting_(counting),
        transcript_(std::move(transcript)),
        reader_(std::move(reader)),
        began_(absl::Now()) {}

  void OnWritten(bool ok) override {
    absl::MutexLock lock(&owner_.mutex_);
    is_writing_ = false;
    if (!ok) is_gone_ = true;
    owner_.Enqueue(this);
  }

  void OnGone() override {
    absl::MutexLock lock(&owner_.mutex_);
    is_gone_ = true;
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
  const Counting counting_;

  // Guarded by owner_.mutex_.
  std::vector<StreamId> streams_;  // That the core writes to
  std::deque<Action> inbox_;
  Size unread_;                           // Of inbox_
  std::vector<StreamId> parked_streams_;  // Of these the core has not been told yet
  bool is_ready_ = false;                 // In owner_.ready_
  bool is_writing_ = false;
  bool is_gone_ = false;
  bool is_done_ = false;
  bool overran_ = false;
  std::vector<absl::Time> last_emit_;  // By choice

  // Owned by owner_.thread_.
  std::unique_ptr<Transcript> transcript_;
  std::unique_ptr<StreamReader> reader_;
  std::deque<std::string> outbox_;
  std::optional<absl::Status> end_;  // After outbox_
  absl::Time parked_since_ = absl::InfiniteFuture();
  bool is_finished_ = false;  // Finish was called
  const absl::Time began_;
};

Delivery::Delivery(EventLoop* loop, ServiceMetrics* metrics, const DeliveryLimits& limits)
    : loop_(*loop), metrics_(*metrics), limits_(limits), thread_([this] { Run(); }) {}

Delivery::~Delivery() {
  {
    absl::MutexLock lock(&mutex_);
    is_stopping_ = true;
  }
  thread_.join();
}

StreamId Delivery::Add(absl::string_view method,
                       Counting counting,
                       std::unique_ptr<Transcript> transcript,
                       std::unique_ptr<StreamReader> reader) {
  StreamReader* const started = reader.get();
  auto owned =
      std::make_unique<Seat>(this, method, counting, std::move(transcript), std::move(reader));
  Seat* const seat = owned.get();
  StreamId stream;
  {
    absl::MutexLock lock(&mutex_);
    stream = StreamId{++last_stream_};
    seat->streams_.push_back(stream);
    streams_.emplace(stream, seat);
    seats_.emplace(seat, std::move(owned));
  }
  started->Start(seat);
  return stream;
}

void Delivery::Deliver(StreamId stream, Action action) {
  const Size size = SizeOf(action);
  absl::MutexLock lock(&mutex_);
  const auto found = streams_.find(stream);
  if (found == streams_.end()) return;
  Seat* seat = found->second;
  if (seat->counting_ == Counting::kFirstReader) Count(action, seat);
  Size& unread = seat->unread_;
  // The first of the waiting messages is always taken, or one that is too large would never pass.
  const bool is_full =
      unread.tokens > 0 && (unread.tokens + size.tokens > limits_.max_unread_tokens ||
                            unread.bytes + size.bytes > limits_.max_unread_bytes);
  if (size.tokens > 0 && is_full) {
    Retire(seat, &seat->parked_streams_);
  } else if (unread.logit_bytes + size.logit_bytes > limits_.max_unread_logit_bytes) {
    seat->overran_ = true;
  } else {
    unread += size;
    Append(std::move(action), &seat->inbox_);
  }
  Enqueue(seat);
}

void Delivery::Count(const Action& action, Seat* seat) {
  if (const auto* finish = std::get_if<Finish>(&action)) return metrics_.OnFinish(*finish);
  const auto* const emit = std::get_if<Emit>(&action);
  if (emit == nullptr) return;
  const auto choice = static_cast<size_t>(emit->choice);
  if (seat->last_emit_.size() <= choice) {
    seat->last_emit_.resize(choice + 1, absl::InfiniteFuture());
  }
  const absl::Time now = absl::Now();
  const absl::Time last = std::exchange(seat->last_emit_[choice], now);
  // Several at once are what a reader that was parked has missed.
  if (last != absl::InfiniteFuture() && emit->tokens.size() == 1) metrics_.OnToken(now - last);
}

void Delivery::Enqueue(Seat* seat) {
  if (seat->is_ready_) return;
  seat->is_ready_ = true;
  ready_.push_back(seat);
}

// Its streams end: what the core still says on them is not for anybody.
void Delivery::Retire(Seat* seat, std::vector<StreamId>* streams) {
  for (const StreamId stream : seat->streams_) {
    streams_.erase(stream);
    streams->push_back(stream);
  }
  seat->streams_.clear();
}

bool Delivery::WaitUntilIdle(absl::Time deadline) {
  absl::MutexLock lock(&mutex_);
  const auto is_idle = [this]() ABSL_SHARED_LOCKS_REQUIRED(mutex_) { return seats_.empty(); };
  return mutex_.AwaitWithDeadline(absl::Condition(&is_idle), deadline);
}

Delivery::Counters Delivery::counters() const {
  absl::MutexLock lock(&mutex_);
  Counters counters = counters_;
  counters.readers = static_cast<int64_t>(seats_.size());
  return counters;
}

void Delivery::Run() {
  const absl::Duration period = std::min(absl::Seconds(1), limits_.max_parked / 4);
  absl::Time next_sweep = absl::Now() + period;
  while (true) {
    {
      absl::MutexLock lock(&mutex_);
      const auto has_news = [this]() ABSL_SHARED_LOCKS_REQUIRED(mutex_) {
        return !ready_.empty() || (is_stopping_ && seats_.empty());
      };
      mutex_.AwaitWithDeadline(absl::Condition(&has_news), next_sweep);
      if (ready_.empty() && is_stopping_ && seats_.empty()) return;
    }
    Work work;
    if (Seat* seat = NextReady(&work)) Serve(seat, std::move(work));
    if (absl::Now() < next_sweep) continue;
    DropStale();
    next_sweep = absl::Now() + period;
  }
}

// The next reader with news, and the news; nullptr if there is none, or if it was a reader's end.
Delivery::Seat* Delivery::NextReady(Work* work) {
  std::unique_ptr<Seat> ended;  // Destroyed after the lock is released.
  absl::MutexLock lock(&mutex_);
  if (ready_.empty()) return nullptr;
  Seat* seat = ready_.front();
  ready_.pop_front();
  seat->is_ready_ = false;
  if (seat->is_done_) {
    std::vector<StreamId> streams;
    Retire(seat, &streams);
    parked_.erase(seat);
    const auto node = seats_.find(seat);
    ended = std::move(node->second);
    seats_.erase(node);
    return nullptr;
  }
  // While messages are being written the inbox fills, and becomes fewer and larger ones.
  work->is_writing = seat->is_writing_;
  if (!seat->is_writing_ && seat->outbox_.empty()) {
    work->actions = TakeBatch(limits_.max_batch_bytes, &seat->inbox_);
    for (const Action& action : work->actions) seat->unread_ -= SizeOf(action);
  }
  work->has_more = !seat->inbox_.empty();
  work->parked_streams = std::exchange(seat->parked_streams_, {});
  work->is_gone = seat->is_gone_;
  work->overran = seat->overran_;
  return seat;
}

void Delivery::Serve(Seat* seat, Work work) {
  if (seat->is_finished_) return;
  if (!work.parked_streams.empty()) Park(seat, work.parked_streams);
  if (work.is_gone) {
    return End(seat, absl::CancelledError("the client went away"));
  }
  if (work.overran) {
    return End(seat,
               absl::ResourceExhaustedError(absl::StrCat("the client reads too slowly: more than ",
                                                         limits_.max_unread_logit_bytes,
                                                         " bytes of logits wait for it")));
  }
  if (work.is_writing) return;
  if (!work.actions.empty() && !seat->end_.has_value()) {
    Transcript::Output output = seat->transcript_->Write(work.actions);
    for (Event& event : output.events) loop_.Post(std::move(event));
    std::move(output.messages.begin(), output.messages.end(), std::back_inserter(seat->outbox_));
    seat->end_ = std::move(output.end);
  }
  WriteNext(seat, work.has_more);
}

// REQUIRES: no write is under way. `has_more`: waits in the inbox.
void Delivery::WriteNext(Seat* seat, bool has_more) {
  if (seat->outbox_.empty()) {
    if (seat->end_.has_value()) return End(seat, *seat->end_);
    if (!has_more) return MaybeResume(seat);
    absl::MutexLock lock(&mutex_);
    return Enqueue(seat);
  }
  {
    absl::MutexLock lock(&mutex_);
    seat->is_writing_ = true;
  }
  std::string message = std::move(seat->outbox_.front());
  seat->outbox_.pop_front();
  seat->reader_->Write(std::move(message));
}

void Delivery::Park(Seat* seat, const std::vector<StreamId>& streams) {
  for (const StreamId stream : streams) loop_.Post(ClientGone{.stream = stream, .keep = true});
  seat->parked_since_ = absl::Now();
  parked_.insert(seat);
  absl::MutexLock lock(&mutex_);
  ++counters_.parked;
}

void Delivery::MaybeResume(Seat* seat) {
  if (parked_.erase(seat) == 0) return;
  seat->parked_since_ = absl::InfiniteFuture();
  std::vector<ClientAttached> wishes = seat->transcript_->Resume();
  {
    absl::MutexLock lock(&mutex_);
    ++counters_.resumed;
    for (ClientAttached& wish : wishes) {
      wish.stream = StreamId{++last_stream_};
      seat->streams_.push_back(wish.stream);
      streams_.emplace(wish.stream, seat);
    }
  }
  for (ClientAttached& wish : wishes) loop_.Post(std::move(wish));
}

void Delivery::End(Seat* seat, const absl::Status& status) {
  std::vector<StreamId> streams;
  {
    absl::MutexLock lock(&mutex_);
    Retire(seat, &streams);
  }
  // For a stream that the core ended itself this means nothing to it.
  for (const StreamId stream : streams) loop_.Post(ClientGone{.stream = stream, .keep = false});
  if (parked_.erase(seat) > 0) {
    if (std::optional<Event> event = seat->transcript_->Abandon()) loop_.Post(*std::move(event));
  }
  seat->is_finished_ = true;
  Log(LogLevel::kInfo,
      "call",
      {{"method", seat->method_},
       {"id", seat->transcript_->request_id()},
       {"code", absl::StatusCodeToString(status.code())},
       {"tokens", seat->transcript_->num_tokens()},
       {"took", absl::Now() - seat->began_}});
  seat->reader_->Finish(status);
}

void Delivery::DropStale() {
  const absl::Time oldest = absl::Now() - limits_.max_parked;
  std::vector<Seat*> stale;
  for (Seat* seat : parked_) {
    if (seat->parked_since_ < oldest) stale.push_back(seat);
  }
  for (Seat* seat : stale) {
    End(seat,
        absl::ResourceExhaustedError(absl::StrCat("the client did not read for ",
                                                  absl::FormatDuration(limits_.max_parked))));
  }
}

}  // namespace shoal
