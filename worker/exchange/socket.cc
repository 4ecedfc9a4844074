#include "worker/exchange/socket.h"

#include <errno.h>
#include <poll.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <sys/uio.h>

#include <algorithm>
#include <array>
#include <cstring>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"

#include "base/check.h"
#include "base/status_macros.h"
#include "worker/exchange/host_exchange.h"
#include "worker/exchange/mesh.h"
#include "worker/exchange/suspects.h"

namespace shoal {
namespace {

constexpr absl::Duration kGrace = absl::Milliseconds(100);

// A round starts sending to all peers before it waits for anybody, each rank beginning with its
// right neighbour, so that no receiver is everybody's first. Then one poll serves all directions.
// No thread of its own; nothing is sent or received outside AllToAll.
//
// A peer whose connection ends while a frame is due from it ends the round. If it owes nothing the
// round may still come to its end: a rank that finishes the last round first may leave first. Or it
// died and the others, having noticed in their own way, will send nothing more; so the round then
// has kGrace to end.
class SocketTransport final : public Transport {
 public:
  SocketTransport(Mesh mesh, Rank self, size_t max_bytes)
      : mesh_(std::move(mesh)),
        self_(static_cast<size_t>(self.value)),
        wake_(eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK)),
        max_bytes_(max_bytes),
        memory_(new std::byte[max_bytes]),
        sent_(mesh_.size()),
        received_(mesh_.size()),
        bodies_(mesh_.size()),
        polled_(mesh_.size() + 1),
        has_left_(mesh_.size()) {
    CHECK(wake_.is_open());
  }

  absl::Status AllToAll(Round* round) override;

  void Wake() override {
    const uint64_t one = 1;
    const ssize_t written = write(wake_.get(), &one, sizeof(one));
    CHECK(written == sizeof(one) || errno == EAGAIN);  // Full: it is readable already.
  }

 private:
  bool IsSent(const Round& round, size_t peer) const {
    return sent_[peer] == sizeof(FrameHeader) + round.out[peer].bytes();
  }

  bool IsReceived(const Round& round, size_t peer) const {
    return received_[peer] >= sizeof(FrameHeader) &&
           received_[peer] == sizeof(FrameHeader) + round.in[peer].header.bytes;
  }

  bool IsDone(const Round& round, size_t peer) const {
    return IsSent(round, peer) && IsReceived(round, peer);
  }

  void Begin(const Round& round);
  // Both go on as far as the socket lets them.
  absl::Status Send(const Round& round, size_t peer);
  absl::Status Receive(Round* round, size_t peer);
  // Fills polled_. False if there is nothing left to wait for.
  bool SelectWaits(const Round& round);
  absl::Status Wait(Round* round);
  absl::Status Ended(size_t peer, absl::string_view how) const;
  absl::Status Left() const;
  absl::Status Late(const Round& round) const;

  const Mesh mesh_;
  const size_t self_;
  const Descriptor wake_;  // eventfd: stays readable once Wake() was called
  const size_t max_bytes_;
  const std::unique_ptr<std::byte[]> memory_;  // [max_bytes] bodies of one round
  std::vector<size_t> sent_;                   // Bytes of the frame in work, header included
  std::vector<size_t> received_;               // Likewise
  std::vector<std::byte*> bodies_;             // Into memory_
  std::vector<pollfd> polled_;                 // wake_, then by rank
  std::vector<bool> has_left_;                 // [ranks] in this round, owing nothing
  absl::Time give_up_at_;                      // Because one has left
};

absl::Status SocketTransport::AllToAll(Round* round) {
  Begin(*round);
  absl::Status status;
  for (size_t i = 1; i < mesh_.size(); ++i) {  // The living get their frames if one is dead.
    status.Update(Send(*round, (self_ + i) % mesh_.size()));
  }
  while (status.ok() && SelectWaits(*round)) {
    RETURN_IF_ERROR(Wait(round));
    for (size_t i = 1; i < mesh_.size(); ++i) {
      const size_t peer = (self_ + i) % mesh_.size();
      if (polled_[peer + 1].revents == 0) continue;
      if (IsDone(*round, peer)) {
        give_up_at_ = std::min(give_up_at_, absl::Now() + kGrace);
        has_left_[peer] = true;
      }
      if (!IsReceived(*round, peer)) status.Update(Receive(round, peer));
      if (!IsSent(*round, peer)) status.Update(Send(*round, peer));
    }
  }
  return status;
}

void SocketTransport::Begin(const Round& round) {
  give_up_at_ = absl::InfiniteFuture();
  size_t offset = 0;
  for (size_t peer = 0; peer < mesh_.size(); ++peer) {
    sent_[peer] = 0;
    received_[peer] = 0;
    has_left_[peer] = false;
    bodies_[peer] = memory_.get() + offset;
    if (peer != self_) offset += round.in[peer].max_bytes;
  }
  CHECK_LE(offset, max_bytes_);
}

absl::Status SocketTransport::Send(const Round& round, size_t peer) {
  const OutFrame& frame = round.out[peer];
  while (!IsSent(round, peer)) {
    const std::array<std::span<const std::byte>, 3> pieces = {
        std::as_bytes(std::span(&frame.header, 1)), frame.parts[0], frame.parts[1]};
    std::array<iovec, 3> iov{};
    size_t skip = sent_[peer];
    for (size_t i = 0; i < pieces.size(); ++i) {
      const size_t skipped = std::min(skip, pieces[i].size());
      skip -= skipped;
      const std::span<const std::byte> rest = pieces[i].subspan(skipped);
      iov[i] = {.iov_base = const_cast<std::byte*>(rest.data()), .iov_len = rest.size()};
    }
    msghdr message{};
    message.msg_iov = iov.data();
    message.msg_iovlen = iov.size();
    const ssize_t n = sendmsg(mesh_[peer].get(), &message, MSG_NOSIGNAL | MSG_DONTWAIT);
    if (n < 0 && errno == EINTR) continue;
    if (n < 0 && errno == EAGAIN) return absl::OkStatus();
    if (n < 0) return Ended(peer, std::strerror(errno));
    sent_[peer] += static_cast<size_t>(n);
  }
  return absl::OkStatus();
}

absl::Status SocketTransport::Receive(Round* round, size_t peer) {
  InFrame& in = round->in[peer];
  while (!IsReceived(*round, peer)) {
    // Never beyond the frame: the peer may be one round ahead already.
    const bool has_header = received_[peer] >= sizeof(FrameHeader);
    std::byte* begin = has_header ? bodies_[peer] : reinterpret_cast<std::byte*>(&in.header);
    const size_t size = has_header ? in.header.bytes : sizeof(FrameHeader);
    const size_t done = has_header ? received_[peer] - sizeof(FrameHeader) : received_[peer];
    const ssize_t n = recv(mesh_[peer].get(), begin + done, size - done, MSG_DONTWAIT);
    if (n < 0 && errno == EINTR) continue;
    if (n < 0 && errno == EAGAIN) return absl::OkStatus();
    if (n < 0) return Ended(peer, std::strerror(errno));
    if (n == 0) return Ended(peer, done == 0 && !has_header ? "end" : "end inside a frame");
    received_[peer] += static_cast<size_t>(n);
    if (received_[peer] == sizeof(FrameHeader)) {
      RETURN_IF_ERROR(CheckHeader(in.header, round->out[peer].header, in.max_bytes));
    }
  }
  in.body = {bodies_[peer], in.header.bytes};
  return absl::OkStatus();
}

bool SocketTransport::SelectWaits(const Round& round) {
  polled_[0] = {.fd = wake_.get(), .events = POLLIN, .revents = 0};
  bool is_waiting = false;
  for (size_t peer = 0; peer < mesh_.size(); ++peer) {
    short events = POLLRDHUP;
    if (peer != self_ && !IsReceived(round, peer)) events |= POLLIN;
    if (peer != self_ && !IsSent(round, peer)) events |= POLLOUT;
    is_waiting |= events != POLLRDHUP;
    const int fd = has_left_[peer] ? -1 : mesh_[peer].get();  // -1: poll passes over it.
    polled_[peer + 1] = {.fd = fd, .events = events, .revents = 0};
  }
  return is_waiting;
}

absl::Status SocketTransport::Wait(Round* round) {
  const absl::Time start = absl::Now();
  const absl::Duration patience = std::clamp(
      std::min(round->deadline, give_up_at_) - start, absl::ZeroDuration(), absl::Hours(1));
  const timespec timeout = absl::ToTimespec(patience);
  const int num_ready = ppoll(polled_.data(), polled_.size(), &timeout, nullptr);
  CHECK(num_ready >= 0 || errno == EINTR);
  const absl::Time now = absl::Now();
  round->waited += now - start;
  if (num_ready > 0 && polled_[0].revents != 0) {
    return absl::AbortedError("the exchange was aborted");
  }
  if (num_ready > 0) return absl::OkStatus();
  if (now >= give_up_at_) return Left();
  return now >= round->deadline ? Late(*round) : absl::OkStatus();
}

absl::Status SocketTransport::Left() const {
  const auto first = std::ranges::find(has_left_, true) - has_left_.begin();
  return Ended(static_cast<size_t>(first), "end, and the others have stopped");
}

// The suspects are all peers whose connections have ended by now: when a rank dies, ranks that
// leave because of it look just like it, and the coordinator should know of both.
absl::Status SocketTransport::Ended(size_t peer, absl::string_view how) const {
  std::vector<Rank> gone = {Rank{static_cast<int32_t>(peer)}};
  for (size_t other = 0; other < mesh_.size(); ++other) {
    pollfd probe{.fd = mesh_[other].get(), .events = POLLRDHUP, .revents = 0};
    if (other == peer || other == self_ || poll(&probe, 1, 0) != 1) continue;
    gone.push_back(Rank{static_cast<int32_t>(other)});
  }
  return WithSuspects(
      absl::UnavailableError(absl::StrCat("the connection to rank ", peer, " ended: ", how)), gone);
}

absl::Status SocketTransport::Late(const Round& round) const {
  std::vector<Rank> silent;
  for (size_t peer = 0; peer < mesh_.size(); ++peer) {
    if (peer == self_ || IsDone(round, peer)) continue;
    silent.push_back(Rank{static_cast<int32_t>(peer)});
  }
  return WithSuspects(
      absl::DeadlineExceededError(absl::StrCat(silent.size(), " ranks were silent too long")),
      silent);
}

class SocketExchangeFactory final : public HostExchangeFactory {
 public:
  explicit SocketExchangeFactory(std::unique_ptr<Listener> listener)
      : builder_(std::move(listener)) {}

  std::string endpoint() const override { return builder_.endpoint(); }

 protected:
  absl::StatusOr<std::unique_ptr<Transport>> Connect(const Membership& membership,
                                                     const ExchangeLimits& limits,
                                                     absl::Time deadline) override {
    ASSIGN_OR_RETURN(Mesh mesh, builder_.Connect(membership, deadline));
    const size_t max_bytes = MaxRoundBytes(limits, membership.members.size()).all;
    return std::make_unique<SocketTransport>(std::move(mesh), membership.self, max_bytes);
  }

  void ArmConnect() override { builder_.Arm(); }

  void WakeConnect() override { builder_.Wake(); }

 private:
  MeshBuilder builder_;
};

}  // namespace

absl::StatusOr<std::unique_ptr<ExchangeFactory>> MakeSocketExchangeFactory(
    absl::string_view listen) {
  if (absl::StartsWith(listen, "shm:")) {
    return absl::InvalidArgumentError(
        absl::StrCat("a socket is reached by tcp:HOST:PORT or unix:PATH, not by ", listen));
  }
  ASSIGN_OR_RETURN(std::unique_ptr<Listener> listener, Listener::Create(listen));
  return std::make_unique<SocketExchangeFactory>(std::move(listener));
}

}  // namespace shoal
