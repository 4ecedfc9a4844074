// Brings the core's actions to the clients that read them. The loop's thread only drops an action
// into its reader's inbox; one thread of this class turns inboxes into messages and starts the
// writes; gRPC's threads only report what became of them. So nobody waits for a client, and all
// that a reader knows belongs to one thread.
//
// A reader that does not read is parked: when more than `max_unread_tokens` wait for it, its stream
// ends for the core (ClientGone, keep), and when it has read what was there it attaches again where
// it stopped. Nothing is lost or repeated, and nothing beyond the limit is kept.
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
#include "grpcpp/grpcpp.h"

#include "coordinator/events.h"
#include "coordinator/serve/answer.h"
#include "coordinator/serve/event_loop.h"

namespace shoal {

struct DeliveryLimits {
  // Of the messages that wait for one reader. A token takes 16 bytes, and 12 for each alternative.
  int64_t max_unread_tokens = 4096;
  int64_t max_unread_bytes = 64 << 10;
  absl::Duration max_parked = absl::Seconds(30);
  // Logits are not kept anywhere, so their reader cannot be parked: beyond this it is refused.
  int64_t max_unread_logit_bytes = int64_t{1} << 30;
};

class Delivery {
 public:
  // `loop` outlives this.
  Delivery(EventLoop* loop, const DeliveryLimits& limits);
  // REQUIRES: the gRPC server is shut down, so every reader ends by itself.
  ~Delivery();

  Delivery(const Delivery&) = delete;
  Delivery& operator=(const Delivery&) = delete;

  using Reactor = grpc::ServerWriteReactor<grpc::ByteBuffer>;

  // A reader of a new stream. Deletes itself after its call has ended. Thread-safe.
  Reactor* NewReader(absl::string_view method,
                     std::unique_ptr<Transcript> transcript,
                     StreamId* stream);

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
  class Reader;
  struct Work;

  void Run();
  Reader* NextReady(Work* work);
  void Serve(Reader* reader, Work work);
  void Park(Reader* reader, const std::vector<StreamId>& streams);
  void MaybeResume(Reader* reader);
  void WriteNext(Reader* reader);
  void End(Reader* reader, const absl::Status& status);
  void DropStale();
  void Enqueue(Reader* reader) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  void Retire(Reader* reader, std::vector<StreamId>* streams) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);

  EventLoop& loop_;
  const DeliveryLimits limits_;

  mutable absl::Mutex mutex_;
  absl::flat_hash_map<Reader*, std::unique_ptr<Reader>> readers_ ABSL_GUARDED_BY(mutex_);
  absl::flat_hash_map<StreamId, Reader*> streams_ ABSL_GUARDED_BY(mutex_);
  std::deque<Reader*> ready_ ABSL_GUARDED_BY(mutex_);  // Each at most once
  uint64_t last_stream_ ABSL_GUARDED_BY(mutex_) = 0;
  Counters counters_ ABSL_GUARDED_BY(mutex_);
  bool is_stopping_ ABSL_GUARDED_BY(mutex_) = false;

  absl::flat_hash_set<Reader*> parked_;  // Owned by thread_
  std::thread thread_;
};

}  // namespace shoal
