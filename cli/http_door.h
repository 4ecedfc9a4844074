// The options of the HTTP door, which `serve` and `coordinator` share, and what the host must allow
// for it.
#pragma once

#include <string>

#include "absl/status/status.h"
#include "cli/options.h"

#include "coordinator/serve/server.h"

namespace shoal {

struct HttpDoorOptions {
  std::string listen;  // Empty: there is no such door
  std::string api_keys;
  std::string address_file;
};

void AddHttpOptions(CLI::App& app, HttpDoorOptions* options);

// Before the server is started. Lets the process have as many connections as the host permits.
void SetHttpDoor(const HttpDoorOptions& options, CoordinatorServerOptions* server);

// After it was started on `port`: says where it is, also in the address file, and warns about a
// door that is open to everybody.
absl::Status AnnounceHttpDoor(const HttpDoorOptions& options, int port);

}  // namespace shoal
