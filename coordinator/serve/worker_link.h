// The coordinator's end of the worker links: one gRPC stream for each worker. A message becomes an
// event, in order; what the core wants sent is queued and written by gRPC, so that a worker that
// does not read holds up nobody. A link whose queue overflows is broken off: its worker is lost.
#pragma once

#include <cstddef>
#include <deque>
#include <memory>
#include <string>
#include <utility>

#include "absl/base/thread_annotations.h"
#include "absl/container/flat_hash_map.h"
#include "absl/synchronization/mutex.h"
#include "absl/time/time.h"
#include "grpcpp/grpcpp.h"

#include "coordinator/events.h"
#include "coordinator/serve/event_loop.h"
#include "proto/cluster.grpc.pb.h"
#include "proto/wire.h"

namespace shoal {

class WorkerLinks final : public fleet::v1::WorkerLink::CallbackService {
 public:
  explicit WorkerLinks(EventLoop* loop) : loop_(*loop) {}

  // To the worker's present link; dropped if there is none. Called by the loop; never waits.
  void Send(SendToWorker action);
  // After what was sent before. Called by the loop; never waits.
  void Close(const CloseLink& action);

  // False if `deadline` passes first. Thread-safe.
  bool WaitUntilIdle(absl::Time deadline);

  grpc::ServerBidiReactor<fleet::v1::FromWorker, fleet::v1::ToWorker>* Link(
      grpc::CallbackServerContext* context) override;

 private:
  class Session;
  using Key = std::pair<WorkerId, Incarnation>;

  EventLoop& loop_;
  absl::Mutex mutex_;
  absl::flat_hash_map<Key, Session*> sessions_ ABSL_GUARDED_BY(mutex_);  // That enrolled
  int num_sessions_ ABSL_GUARDED_BY(mutex_) = 0;                         // All
};

}  // namespace shoal
