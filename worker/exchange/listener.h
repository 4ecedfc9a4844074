// Addresses of the exchange, and the socket on which a worker waits for its peers.
#pragma once

#include <sys/socket.h>

#include <memory>
#include <string>
#include <utility>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"

#include "worker/exchange/descriptor.h"

namespace shoal {

struct SocketAddress {
  sockaddr_storage storage{};
  socklen_t size = 0;

  const sockaddr* get() const { return reinterpret_cast<const sockaddr*>(&storage); }

  bool is_tcp() const { return storage.ss_family != AF_UNIX; }
};

// "tcp:HOST:PORT" (an IPv6 HOST in brackets) or "KIND:PATH" of a UNIX socket, KIND being unix or
// shm. May ask the name service. Errors: kInvalidArgument for malformed text; kUnavailable for a
// host that has no address.
absl::StatusOr<SocketAddress> ResolveAddress(absl::string_view endpoint);

// A non-blocking listening socket. Outlives epochs, so that a peer that is early finds it.
class Listener {
 public:
  // `endpoint` as for ResolveAddress; with port 0 any port, with an empty path a path in a private
  // folder that the destructor removes. A socket file that nobody listens on is replaced.
  static absl::StatusOr<std::unique_ptr<Listener>> Create(absl::string_view endpoint);
  ~Listener();

  Listener(const Listener&) = delete;
  Listener& operator=(const Listener&) = delete;

  int fd() const { return fd_.get(); }

  // Where peers reach it: the real port, and this host's name if it listens on all addresses.
  const std::string& endpoint() const { return endpoint_; }

 private:
  Listener(Descriptor fd, std::string endpoint, std::string path, std::string folder)
      : fd_(std::move(fd)),
        endpoint_(std::move(endpoint)),
        path_(std::move(path)),
        folder_(std::move(folder)) {}

  const Descriptor fd_;
  const std::string endpoint_;
  const std::string path_;    // Of a UNIX socket; else empty
  const std::string folder_;  // Made for it; else empty
};

}  // namespace shoal
