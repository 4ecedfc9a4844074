#include "worker/exchange/listener.h"

#include <errno.h>
#include <netdb.h>
#include <netinet/in.h>
#include <stdlib.h>
#include <sys/un.h>
#include <unistd.h>

#include <cstdint>
#include <cstring>

#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"

#include "base/status_macros.h"

namespace shoal {
namespace {

struct Endpoint {
  bool is_tcp = false;
  std::string kind;  // "tcp", "unix" or "shm"
  std::string path;
  std::string host;
  std::string port;
};

absl::StatusOr<Endpoint> Parse(absl::string_view text) {
  const auto malformed = [text] {
    return absl::InvalidArgumentError(absl::StrCat(
        "exchange address \"", text, "\" is neither tcp:HOST:PORT nor unix:PATH nor shm:PATH"));
  };
  const size_t colon = text.find(':');
  if (colon == absl::string_view::npos) return malformed();
  Endpoint endpoint{.kind = std::string(text.substr(0, colon))};
  const absl::string_view rest = text.substr(colon + 1);
  if (endpoint.kind == "unix" || endpoint.kind == "shm") {
    endpoint.path = std::string(rest);
    return endpoint;
  }
  const size_t last_colon = rest.rfind(':');
  if (endpoint.kind != "tcp" || last_colon == absl::string_view::npos) return malformed();
  absl::string_view host = rest.substr(0, last_colon);
  if (absl::StartsWith(host, "[") && absl::EndsWith(host, "]")) {
    host = host.substr(1, host.size() - 2);
  }
  endpoint.is_tcp = true;
  endpoint.host = std::string(host);
  endpoint.port = std::string(rest.substr(last_colon + 1));
  uint32_t port = 0;  // getaddrinfo would take the rest modulo 65,536.
  if (endpoint.host.empty() || !absl::SimpleAtoi(endpoint.port, &port) || port > 65'535) {
    return malformed();
  }
  return endpoint;
}

absl::StatusOr<SocketAddress> PathAddress(const std::string& path) {
  SocketAddress address;
  auto* un = reinterpret_cast<sockaddr_un*>(&address.storage);
  if (path.empty() || path.size() >= sizeof(un->sun_path)) {
    return absl::InvalidArgumentError(absl::StrCat("path \"",
                                                   path,
                                                   "\" of a UNIX socket must have 1 to ",
                                                   sizeof(un->sun_path) - 1,
                                                   " bytes, it has ",
                                                   path.size()));
  }
  un->sun_family = AF_UNIX;
  std::memcpy(un->sun_path, path.c_str(), path.size() + 1);
  address.size = sizeof(sockaddr_un);
  return address;
}

absl::StatusOr<SocketAddress> HostAddress(const Endpoint& endpoint) {
  addrinfo hints{};
  hints.ai_family = AF_UNSPEC;
  hints.ai_socktype = SOCK_STREAM;
  hints.ai_flags = AI_NUMERICSERV;
  addrinfo* found = nullptr;
  const int error = getaddrinfo(endpoint.host.c_str(), endpoint.port.c_str(), &hints, &found);
  if (error != 0) {
    return absl::UnavailableError(
        absl::StrCat("host ", endpoint.host, " has no address: ", gai_strerror(error)));
  }
  SocketAddress address;
  std::memcpy(&address.storage, found->ai_addr, found->ai_addrlen);
  address.size = found->ai_addrlen;
  freeaddrinfo(found);
  return address;
}

// A socket file stays when its process is killed. Removes it if nobody answers there.
void RemoveDeadSocket(const SocketAddress& address, const std::string& path) {
  const Descriptor probe(socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0));
  if (connect(probe.get(), address.get(), address.size) == -1 && errno == ECONNREFUSED) {
    unlink(path.c_str());
  }
}

absl::StatusOr<Descriptor> Listen(const SocketAddress& address, absl::string_view endpoint) {
  Descriptor fd(socket(address.storage.ss_family, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0));
  const int on = 1;
  if (address.is_tcp()) setsockopt(fd.get(), SOL_SOCKET, SO_REUSEADDR, &on, sizeof(on));
  if (!fd.is_open() || bind(fd.get(), address.get(), address.size) != 0 ||
      listen(fd.get(), SOMAXCONN) != 0) {
    const int error = errno;
    return absl::UnavailableError(absl::StrCat(
        "cannot listen on ",
        endpoint,
        ": ",
        std::strerror(error),
        error == EADDRINUSE ? "; choose another, or port 0 (an empty path) for any free one" : ""));
  }
  return fd;
}

// What to tell peers after listening on a TCP address.
std::string ReachableEndpoint(const Endpoint& asked, int fd) {
  sockaddr_storage bound{};
  socklen_t size = sizeof(bound);
  getsockname(fd, reinterpret_cast<sockaddr*>(&bound), &size);
  bool is_wildcard = false;
  uint16_t port = 0;
  if (bound.ss_family == AF_INET6) {
    const auto* in6 = reinterpret_cast<const sockaddr_in6*>(&bound);
    is_wildcard = IN6_IS_ADDR_UNSPECIFIED(&in6->sin6_addr);
    port = ntohs(in6->sin6_port);
  } else {
    const auto* in = reinterpret_cast<const sockaddr_in*>(&bound);
    is_wildcard = in->sin_addr.s_addr == htonl(INADDR_ANY);
    port = ntohs(in->sin_port);
  }
  std::string host = asked.host;
  char name[256] = {};
  if (is_wildcard && gethostname(name, sizeof(name) - 1) == 0) host = name;
  if (host.find(':') != std::string::npos) host = absl::StrCat("[", host, "]");
  return absl::StrCat("tcp:", host, ":", port);
}

}  // namespace

absl::StatusOr<SocketAddress> ResolveAddress(absl::string_view endpoint) {
  ASSIGN_OR_RETURN(const Endpoint parsed, Parse(endpoint));
  return parsed.is_tcp ? HostAddress(parsed) : PathAddress(parsed.path);
}

absl::StatusOr<std::unique_ptr<Listener>> Listener::Create(absl::string_view endpoint) {
  ASSIGN_OR_RETURN(Endpoint parsed, Parse(endpoint));
  if (parsed.is_tcp) {
    ASSIGN_OR_RETURN(const SocketAddress address, HostAddress(parsed));
    ASSIGN_OR_RETURN(Descriptor fd, Listen(address, endpoint));
    std::string reachable = ReachableEndpoint(parsed, fd.get());
    return std::unique_ptr<Listener>(new Listener(std::move(fd), std::move(reachable), "", ""));
  }

  std::string folder;
  if (parsed.path.empty()) {
    const char* temporary = getenv("TMPDIR");
    folder = absl::StrCat(temporary == nullptr ? "/tmp" : temporary, "/shoal-XXXXXX");
    if (mkdtemp(folder.data()) == nullptr) {
      return absl::UnavailableError(
          absl::StrCat("cannot make a folder ", folder, ": ", std::strerror(errno)));
    }
    parsed.path = absl::StrCat(folder, "/exchange");
  }
  ASSIGN_OR_RETURN(const SocketAddress address, PathAddress(parsed.path));
  RemoveDeadSocket(address, parsed.path);
  ASSIGN_OR_RETURN(Descriptor fd, Listen(address, endpoint));
  std::string reachable = absl::StrCat(parsed.kind, ":", parsed.path);
  return std::unique_ptr<Listener>(
      new Listener(std::move(fd), std::move(reachable), parsed.path, folder));
}

Listener::~Listener() {
  if (!path_.empty()) unlink(path_.c_str());
  if (!folder_.empty()) rmdir(folder_.c_str());
}

}  // namespace shoal
