// One worker, from options to a running process or thread: opens the model, loads or maps the dense
// weights, makes backend, exchange and Worker, dials the coordinators.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <thread>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/status/status.h"
#include "absl/synchronization/mutex.h"
#include "absl/time/time.h"

#include "model/config.h"
#include "worker/exchange/local.h"
#include "worker/load/loader.h"

namespace shoal {

struct WorkerProcessOptions {
  uint32_t id = 0;
  std::vector<std::string> coordinators;  // "host:port" or "unix:/path"
  std::string version;                    // Of the program
  std::string host;                       // Failure domain; empty: this host's name

  // The model: a checkpoint folder, or a geometry whose weights are made by formula.
  std::string model;
  Bf16Experts bf16_experts = Bf16Experts::kPackIfExact;
  std::optional<ModelConfig> dummy;

  // Dense weights: of this process (they outlive the worker), of another one (a descriptor of its
  // segment), or, with neither, loaded here.
  const DenseSegment* dense = nullptr;
  int dense_fd = -1;

  std::string exchange = "unix:";  // As MakeExchangeFactory takes it
  std::shared_ptr<LocalHub> hub;   // For "local:": shared by the workers of the process

  std::string backend = "cpu";  // cpu, cuda or cuda:INDEX
  int threads = 1;
  std::vector<int> cpus;  // If not empty: thread i is pinned to cpus[i]
  std::string isa;        // scalar, avx2, avx512; empty: the best there is

  int64_t memory_bytes = 0;  // For weights and K/V; 0: what the host has available
  int64_t kv_tokens = 0;     // Positions of K/V; 0: what the memory leaves room for

  bool exit_with_parent = false;  // End when the process that started this one is gone
  bool is_quiet = false;          // Only errors on stderr
};

// Runs until SIGTERM or SIGINT (OK), until a coordinator dismisses the worker (then it is
// kFailedPrecondition, or kUnavailable if its id is in use), or until something that will not go
// away keeps it from starting. REQUIRES: called before any other thread exists, since it blocks
// those signals.
absl::Status RunWorker(const WorkerProcessOptions& options);

// The same on a thread of this process, for `--exchange local` and tests: same code, same link.
// Thread-safe.
class WorkerProcess {
 public:
  static std::unique_ptr<WorkerProcess> StartInThread(WorkerProcessOptions options);
  // Stops it.
  ~WorkerProcess();

  WorkerProcess(const WorkerProcess&) = delete;
  WorkerProcess& operator=(const WorkerProcess&) = delete;

  // Asks it to end, and waits until it has.
  void Stop();

  // Why it ended by itself; OK while it runs and after Stop().
  absl::Status Health() const;

  // True: it has ended, by itself or by Stop(). False: `deadline` passed.
  bool AwaitEnd(absl::Time deadline) const;

 private:
  explicit WorkerProcess(WorkerProcessOptions options);

  const WorkerProcessOptions options_;
  mutable absl::Mutex mutex_;
  bool is_stopping_ ABSL_GUARDED_BY(mutex_) = false;
  bool has_ended_ ABSL_GUARDED_BY(mutex_) = false;
  absl::Status health_ ABSL_GUARDED_BY(mutex_);
  std::thread thread_;
};

}  // namespace shoal
