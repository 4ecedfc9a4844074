// The worker's side of one worker link: dials a coordinator, enrols, beats every second, and dials
// again when the stream ends. What the worker holds is not touched by that: the same incarnation
// enrols again.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <thread>

#include "absl/base/thread_annotations.h"
#include "absl/status/status.h"
#include "absl/synchronization/mutex.h"
#include "absl/time/time.h"

#include "base/prng.h"
#include "proto/cluster.h"

namespace shoal {

struct CoordinatorLinkOptions {
  std::string address;       // "host:port" or "unix:/path"
  uint64_t jitter_seed = 0;  // Workers that lost one coordinator must not dial in step
  std::function<Enrol()> enrol;
  std::function<Beat()> beat;
  // A coordinator's message, in order, from one thread. False: it cannot be taken; the stream ends.
  std::function<bool(ToWorker)> deliver;
  // The coordinator will not have this worker: the link has ended and does not dial again.
  std::function<void(const absl::Status& reason)> dismissed;
};

// Owns one thread that dials and writes and, while there is a stream, one that reads. Thread-safe.
class CoordinatorLink {
 public:
  static constexpr absl::Duration kBeatInterval = absl::Seconds(1);

  explicit CoordinatorLink(CoordinatorLinkOptions options);
  // Cancels the stream.
  ~CoordinatorLink();

  CoordinatorLink(const CoordinatorLink&) = delete;
  CoordinatorLink& operator=(const CoordinatorLink&) = delete;

  // Queues `message` for the stream of this moment; waits at most a few seconds for room. Without a
  // stream it is dropped: the coordinator asks again for what it misses.
  void Send(FromWorker message);

 private:
  struct Stream;

  void Run();
  absl::Status Converse();
  void ReadUntilEnd(Stream* stream);
  void WriteUntilEnd(Stream* stream);
  bool Open(const std::shared_ptr<Stream>& stream);
  bool WaitForStop(absl::Duration timeout);

  const CoordinatorLinkOptions options_;
  Prng jitter_;  // The dialling thread's

  absl::Mutex mutex_;
  std::shared_ptr<Stream> stream_ ABSL_GUARDED_BY(mutex_);  // Null while there is none
  bool is_stopping_ ABSL_GUARDED_BY(mutex_) = false;
  std::thread thread_;
};

}  // namespace shoal
