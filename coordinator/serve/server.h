// The coordinator as a running thing: core, loop, services and listeners.
#pragma once

#include <memory>
#include <string>

#include "absl/status/statusor.h"
#include "absl/time/time.h"

#include "base/serve/http_server.h"
#include "coordinator/coordinator.h"
#include "coordinator/serve/delivery.h"
#include "coordinator/text/tokenizer.h"
#include "model/config.h"

namespace shoal {

struct CoordinatorServerOptions {
  // "host:port" (port 0: any free one) or "unix:/path". Plain text: loopback, or a network that is
  // trusted as a whole.
  std::string listen = "127.0.0.1:0";
  // For the workers' links. Empty: the same as `listen`.
  std::string worker_listen;
  CoordinatorOptions coordinator;
  std::string model_name;
  ModelConfig config;
  const Tokenizer* tokenizer = nullptr;  // May be null: token ids only. Outlives the server
  std::string version;                   // Of the program
  DeliveryLimits delivery;
  // "host:port" of the HTTP door; empty: there is none. `api_keys`: a file of them (api_keys.h);
  // empty: whoever reaches the address may ask.
  std::string http_listen;
  std::string api_keys;
  HttpLimits http;
};

class CoordinatorServer {
 public:
  // kUnavailable: an address is in use; kInvalidArgument: it cannot be one.
  static absl::StatusOr<std::unique_ptr<CoordinatorServer>> Start(
      const CoordinatorServerOptions& options);
  // Shuts down at once, if that was not done before.
  ~CoordinatorServer();

  CoordinatorServer(const CoordinatorServer&) = delete;
  CoordinatorServer& operator=(const CoordinatorServer&) = delete;

  // Of the listeners; 0 for a UNIX socket. `worker_port` is that of `listen` where they share it.
  int port() const;
  int worker_port() const;
  int http_port() const;  // 0 without an HTTP door

  // Refuses new requests, lets the others end until `deadline`, then ends them with kUnavailable's
  // kin and closes the links. Thread-safe; the second call waits for the first.
  void Shutdown(absl::Time deadline);
  // Until Shutdown has returned.
  void Wait();

  FleetStatus Status();
  Delivery::Counters delivery_counters() const;

 private:
  class Impl;
  explicit CoordinatorServer(std::unique_ptr<Impl> impl);

  std::unique_ptr<Impl> impl_;
};

}  // namespace shoal
