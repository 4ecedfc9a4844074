#include "cli/http_door.h"

#include <sys/resource.h>

#include <algorithm>
#include <cstdio>
#include <fstream>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"

namespace shoal {
namespace {

constexpr rlim_t kMaxFiles = 65'536;

bool IsLoopback(absl::string_view address) {
  return absl::StartsWith(address, "127.") || absl::StartsWith(address, "localhost:") ||
         absl::StartsWith(address, "[::1]:");
}

void RaiseFileLimit() {
  rlimit limit{};
  if (getrlimit(RLIMIT_NOFILE, &limit) != 0) return;
  const rlim_t wanted = std::min(limit.rlim_max, kMaxFiles);
  if (limit.rlim_cur >= wanted) return;
  limit.rlim_cur = wanted;
  // Without it there is room for fewer clients, and the server says so to those who come.
  static_cast<void>(setrlimit(RLIMIT_NOFILE, &limit));
}

}  // namespace

void AddHttpOptions(CLI::App& app, HttpDoorOptions* options) {
  app.add_option("--http",
                 options->listen,
                 "HOST:PORT (port 0: any) of the OpenAI-compatible HTTP API; default: none");
  app.add_option("--api-keys",
                 options->api_keys,
                 "file of keys that the HTTP API asks for, a line each: TENANT KEY");
  app.add_option(
      "--http-address-file", options->address_file, "write the HTTP address there once it is open");
}

void SetHttpDoor(const HttpDoorOptions& options, CoordinatorServerOptions* server) {
  if (options.listen.empty()) return;
  RaiseFileLimit();
  server->http_listen = options.listen;
  server->api_keys = options.api_keys;
}

absl::Status AnnounceHttpDoor(const HttpDoorOptions& options, int port) {
  if (options.listen.empty()) return absl::OkStatus();
  const std::string address =
      absl::StrCat(options.listen.substr(0, options.listen.rfind(':')), ":", port);
  std::fprintf(stderr, "OpenAI-compatible API on http://%s/v1\n", address.c_str());
  if (options.api_keys.empty() && !IsLoopback(address)) {
    std::fprintf(stderr,
                 "WARNING: %s can be reached from other machines and asks for no key: whoever "
                 "reaches it uses this fleet. Give --api-keys FILE, or listen on 127.0.0.1.\n",
                 address.c_str());
  }
  if (!IsLoopback(address)) {
    std::fprintf(stderr,
                 "WARNING: %s speaks plain HTTP: keys and texts can be read on the way. Put a "
                 "proxy that speaks TLS before it.\n",
                 address.c_str());
  }
  if (options.address_file.empty()) return absl::OkStatus();
  std::ofstream file(options.address_file, std::ios::trunc);
  file << address << "\n";
  if (file.flush()) return absl::OkStatus();
  return absl::FailedPreconditionError(absl::StrCat("cannot write ", options.address_file));
}

}  // namespace shoal
