// Brings the core's actions to the clients that read them. The loop's thread only drops an action
// into its seat's inbox; one thread of this class turns inboxes into messages and starts the
// writes; the readers' own threads only report what became of them. So nobody waits for a client,
// and all that a seat knows belongs to one thread.
//
// A reader that does not read is parked: when more than `max_unread_tokens` wait for it, its stream
// ends for the core (ClientGone, keep), and when it has read what was there it attaches again where
// it stopped. Nothing is lost or repeated, and nothing beyond the limit is kept. Tokens become
// messages only as the reader takes them, because as text they are a hundred times larger.
#pragma once

#include <cstddef>
#include <cstdint>
#include <deque>
#include <memory>
#include <optional>
#include <string>
#include <thread>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/container/flat_hash_map.h"
#include "absl/container/flat_hash_set.h"
#include "absl/status/status.h"
#include "absl/synchronization/mutex.h"
#include "absl/time/time.h"

#include "coordinator/events.h"
#include "coordinator/serve/event_loop.h"
#include "coordinator/serve/service_metrics.h"
#include "coordinator/serve/stream_reader.h"
#include "coordinator/serve/transcript.h"

namespace shoal {

struct DeliveryLimits {
  // Of what waits for one reader.
  int64_t max_unread_tokens = 512;
  int64_t max_unread_bytes = 32 << 10;
  // Of what becomes messages at once: as many tokens as make some 16 KiB of text.
  int64_t max_batch_bytes = 4 << 10;
  absl::Duration max_parked = absl::Seconds(30);
  // Logits are not kept anywhere, so their reader cannot be parked: beyond this it is refused.
  int64_t max_unread_logit_bytes = int64_t{1} << 30;
};

class Delivery {
 public:
  // `loop` and `metrics` outlive this.
  Delivery(EventLoop* loop, ServiceMetrics* metrics, const DeliveryLimits& limits);
  // REQUIRES: the servers are shut down, so every reader ends by itself.
  ~Delivery();

  Delivery(const Delivery&) = delete;
  Delivery& operator=(const Delivery&) = delete;

  // What is counted on a stream: a request's first reader stands for it.
  enum class Counting : uint8_t { kFirstReader, kLaterReader };

  // A new stream, which `reader` reads; that is destroyed after its end. Thread-safe.
  StreamId Add(absl::string_view method,
               Counting counting,
               std::unique_ptr<Transcript> transcript,
               std::unique_ptr<StreamReader> reader);

  // An action on a stream: Refuse, Accepted, Emit, EmitLogits or Finish. Unknown streams are those
  // whose reader left. Thread-safe; never waits for a reader.
  void Deliver(StreamId stream, Action action);

  // False if `deadline` passes first. Thread-safe.
  bool WaitUntilIdle(absl::Time deadline);

  struct Counters {
    int64_t readers = 0;  // Open
    int64_t parked = 0;   // Times that a reader was parked
    int64_t resumed = 0;
  };

  Counters counters() const;

 private:
  class Seat;
  struct Work;

  void Run();
  Seat* NextReady(Work* work);
  void Serve(Seat* seat, Work work);
  void Park(Seat* seat, const std::vector<StreamId>& streams);
  void MaybeResume(Seat* seat);
  void WriteNext(Seat* seat, bool has_more);
  void End(Seat* seat, const absl::Status& status);
  void DropStale();
  void Count(const Action& action, Seat* seat) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  void Enqueue(Seat* seat) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  void Retire(Seat* seat, std::vector<StreamId>* streams) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);

  EventLoop& loop_;
  ServiceMetrics& metrics_;
  const DeliveryLimits limits_;

  mutable absl::Mutex mutex_;
  absl::flat_hash_map<Seat*, std::unique_ptr<Seat>> seats_ ABSL_GUARDED_BY(mutex_);
  absl::flat_hash_map<StreamId, Seat*> streams_ ABSL_GUARDED_BY(mutex_);
  std::deque<Seat*> ready_ ABSL_GUARDED_BY(mutex_);  // Each at most once
  uint64_t last_stream_ ABSL_GUARDED_BY(mutex_) = 0;
  Counters counters_ ABSL_GUARDED_BY(mutex_);
  bool is_stopping_ ABSL_GUARDED_BY(mutex_) = false;

  absl::flat_hash_set<Seat*> parked_;  // Owned by thread_
  std::thread thread_;
};

}  // namespace shoal
