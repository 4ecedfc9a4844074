// A TCP client that does exactly what a test says: half a request, no reading, two requests at
// once. No HTTP library would.
#pragma once

#include <arpa/inet.h>
#include <netinet/in.h>
#include <poll.h>
#include <sys/socket.h>
#include <unistd.h>

#include <string>
#include <utility>

#include "absl/strings/numbers.h"
#include "absl/strings/string_view.h"
#include "absl/time/clock.h"
#include "absl/time/time.h"
#include "gtest/gtest.h"

namespace shoal {

class RawClient {
 public:
  // To this host. `receive_buffer` of 0: the system's.
  explicit RawClient(int port, int receive_buffer = 0)
      : fd_(socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0)) {
    if (receive_buffer > 0) {
      setsockopt(fd_, SOL_SOCKET, SO_RCVBUF, &receive_buffer, sizeof(receive_buffer));
    }
    sockaddr_in address{};
    address.sin_family = AF_INET;
    address.sin_port = htons(static_cast<uint16_t>(port));
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    EXPECT_EQ(connect(fd_, reinterpret_cast<const sockaddr*>(&address), sizeof(address)), 0);
  }

  ~RawClient() { Close(); }

  RawClient(const RawClient&) = delete;
  RawClient& operator=(const RawClient&) = delete;

  // False once the other side has closed.
  bool Send(absl::string_view bytes) {
    while (!bytes.empty()) {
      const ssize_t sent = send(fd_, bytes.data(), bytes.size(), MSG_NOSIGNAL);
      if (sent <= 0) return false;
      bytes.remove_prefix(static_cast<size_t>(sent));
    }
    return true;
  }

  // Until what was received holds `end`, or the other side has closed, or patience is over.
  std::string ReadUntil(const std::string& end) {
    const absl::Time deadline = absl::Now() + absl::Seconds(20);
    while (received_.find(end) == std::string::npos && ReadSome(deadline)) {
    }
    const size_t found = received_.find(end);
    const size_t size = found == std::string::npos ? received_.size() : found + end.size();
    std::string text = received_.substr(0, size);
    received_.erase(0, size);
    return text;
  }

  // One whole answer with a content-length: head and body.
  std::string ReadResponse() {
    std::string text = ReadUntil("\r\n\r\n");
    const std::string name = "content-length: ";
    const size_t begin = text.find(name);
    size_t length = 0;
    if (begin == std::string::npos) return text;
    const size_t value = begin + name.size();
    EXPECT_TRUE(absl::SimpleAtoi(text.substr(value, text.find("\r\n", value) - value), &length));
    const absl::Time deadline = absl::Now() + absl::Seconds(20);
    while (received_.size() < length && ReadSome(deadline)) {
    }
    text += received_.substr(0, length);
    received_.erase(0, length);
    return text;
  }

  // All that comes until the other side closes. Empty and false patience: it never did.
  std::string ReadToEnd() {
    const absl::Time deadline = absl::Now() + absl::Seconds(20);
    while (ReadSome(deadline)) {
    }
    EXPECT_TRUE(is_ended_) << "the other side never closed";
    return std::exchange(received_, "");
  }

  // As if the request were complete.
  void EndSending() { shutdown(fd_, SHUT_WR); }

  void Close() {
    if (fd_ >= 0) close(fd_);
    fd_ = -1;
  }

 private:
  bool ReadSome(absl::Time deadline) {
    pollfd wait{.fd = fd_, .events = POLLIN, .revents = 0};
    const int64_t left = absl::ToInt64Milliseconds(deadline - absl::Now());
    if (left <= 0 || poll(&wait, 1, static_cast<int>(left)) <= 0) return false;
    char buffer[16384];
    const ssize_t size = recv(fd_, buffer, sizeof(buffer), 0);
    is_ended_ = size <= 0;
    if (size > 0) received_.append(buffer, static_cast<size_t>(size));
    return size > 0;
  }

  int fd_;
  bool is_ended_ = false;
  std::string received_;
};

}  // namespace shoal
