// A whole fleet on this host: a coordinator in this process and its workers, as child processes
// (or, with the local exchange, as threads). `shoal serve` is one; generate, logits and bench start
// one for themselves when they are given a model instead of a server.
#pragma once

#include <sys/types.h>

#include <memory>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "cli/http_door.h"
#include "cli/options.h"

#include "coordinator/coordinator.h"
#include "model/config.h"

namespace shoal {

struct LocalFleetOptions {
  ClusterOptions cluster;
  // Where clients are served: "host:port" (port 0: any) or "unix:/path"; empty: a private UNIX
  // socket.
  std::string listen;
  HttpDoorOptions http;
  // Read the checkpoint's tokenizer.json; without it streams carry token ids only.
  bool with_tokenizer = true;
  // The program that has the subcommand `worker`; empty: this one.
  std::string program;
  // Workers' own logs: false sends them nowhere but to errors.
  bool is_quiet = false;
};

// Thread-safe.
class LocalFleet {
 public:
  // Opens the checkpoint, loads the dense weights once into shared memory, listens, starts the
  // workers.
  static absl::StatusOr<std::unique_ptr<LocalFleet>> Start(const LocalFleetOptions& options);

  virtual ~LocalFleet() = default;

  // Where a client finds it: "127.0.0.1:41234" or "unix:/path".
  virtual std::string address() const = 0;
  // The port of the HTTP door; 0: there is none.
  virtual int http_port() const = 0;
  // Until steps can run. Fails if a worker gave up, or at `deadline`.
  virtual absl::Status WaitReady(absl::Time deadline) = 0;
  virtual FleetStatus Status() = 0;
  // Ends a worker without a warning, by SIGKILL to its process; it is started again. A worker that
  // is a thread is stopped instead. False: it was down already. One thread at a time.
  virtual bool KillWorker(int index) = 0;
  // Current process of a worker; 0 while it is down or a thread.
  virtual pid_t WorkerPid(int index) const = 0;
  virtual const ModelConfig& config() const = 0;
  // Whether streams carry text.
  virtual bool has_tokenizer() const = 0;
  // Why a worker gave up, if one did.
  virtual absl::Status Health() const = 0;
};

}  // namespace shoal
