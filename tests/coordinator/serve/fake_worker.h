// A worker that holds no weights: a function says which token comes next. It dials a real link,
// speaks the real protocol, and takes a step only when the test allows it.
#pragma once

#include <atomic>
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <thread>

#include "absl/base/thread_annotations.h"
#include "absl/status/status.h"
#include "absl/synchronization/mutex.h"
#include "grpcpp/grpcpp.h"

#include "base/ids.h"
#include "proto/cluster.grpc.pb.h"
#include "proto/wire.h"

namespace shoal {

class FakeWorker {
 public:
  // The output token at `index` (0: the first after the prompt) of the sequence that `record`
  // began.
  using Next = std::function<TokenId(const KeepRecord& record, int32_t index)>;

  struct Options {
    std::string address;
    WorkerId worker{1};
    Incarnation incarnation{1};
    Next next;
    std::string digest = "digest";
    int32_t vocab = 64;
    int32_t num_full_blocks = 4096;
  };

  explicit FakeWorker(Options options);
  // Breaks the link off.
  ~FakeWorker();

  // Output tokens from `index` on are not sampled until a later call allows them.
  void Hold(int32_t index);
  // Waits until the link has ended, however it does; returns the reason of a Dismiss, else how the
  // call ended.
  absl::Status WaitForEnd();

 private:
  struct Record {
    KeepRecord first;
    std::vector<TokenId> tokens;
  };

  void Read();
  void SendBeats();
  void Send(const FromWorker& message);
  void Do(const ToWorker& message);
  void Run(const StepPlan& plan);
  void Sample(const PlanEntry& entry, StepResult* result);

  const Options options_;
  std::unique_ptr<fleet::v1::WorkerLink::Stub> stub_;
  grpc::ClientContext context_;
  std::unique_ptr<grpc::ClientReaderWriter<fleet::v1::FromWorker, fleet::v1::ToWorker>> stream_;

  std::map<SequenceId, Record> records_;  // Owned by reader_

  absl::Mutex mutex_;
  int32_t held_from_ ABSL_GUARDED_BY(mutex_) = 0x7fffffff;
  bool is_stopping_ ABSL_GUARDED_BY(mutex_) = false;
  absl::Status dismissal_ ABSL_GUARDED_BY(mutex_);
  absl::Status end_ ABSL_GUARDED_BY(mutex_);
  bool has_ended_ ABSL_GUARDED_BY(mutex_) = false;
  absl::Mutex write_mutex_;

  std::thread reader_;
  std::thread beats_;
};

}  // namespace shoal
