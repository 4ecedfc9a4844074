#include "worker/exchange/shm.h"

#include <errno.h>
#include <linux/futex.h>
#include <poll.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
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
#include "worker/exchange/segment.h"
#include "worker/exchange/suspects.h"

namespace shoal {
namespace {

// A sleeper looks this often at what rings no bell: a dead peer, Wake(), its deadline. Costs under
// 0.2 % of a core while asleep.
constexpr absl::Duration kLook = absl::Milliseconds(2);

// Sleeps until *word is not `seen`, somebody wakes it or `patience` is over.
void FutexWait(const std::atomic<uint32_t>* word, uint32_t seen, absl::Duration patience) {
  const timespec timeout = absl::ToTimespec(patience);
  syscall(SYS_futex, word, FUTEX_WAIT, seen, &timeout, nullptr, 0);
}

void FutexWake(const std::atomic<uint32_t>* word) {
  syscall(SYS_futex, word, FUTEX_WAKE, 1, nullptr, nullptr, 0);
}

// Frames are written into the receiver's slots and read there. A receiver sleeps until its bell
// has rung once for each peer: whoever rings last wakes it, so a round costs it one wake-up.
class ShmTransport final : public Transport {
 public:
  ShmTransport(Mesh mesh, std::unique_ptr<Segment> segment, Rank self)
      : mesh_(std::move(mesh)),
        segment_(std::move(segment)),
        self_(static_cast<size_t>(self.value)) {}

  absl::Status AllToAll(Round* round) override;

  void Wake() override {
    // Relaxed: nothing else is read because of it. The sleeper looks again within kLook even if
    // it falls asleep after these calls.
    is_awake_.store(true, std::memory_order_relaxed);
    FutexWake(&segment_->doorbell(self_, 0).num_rung);
    FutexWake(&segment_->doorbell(self_, 1).num_rung);
  }

 private:
  void Publish(const OutFrame& frame, size_t dst);

  bool HasCome(size_t src) const {
    // Acquire: pairs with the release in the sender's Publish().
    return segment_->slot(src, self_, round_).num_published.load(std::memory_order_acquire) ==
           round_ + 1;
  }

  std::vector<Rank> Missing() const;
  absl::Status AwaitAll(Round* round);
  // Why to stop waiting although ranks are missing; OK if there is no reason.
  absl::Status Look(const Round& round) const;

  const Mesh mesh_;  // Silent; says who has died
  const std::unique_ptr<Segment> segment_;
  const size_t self_;
  uint64_t round_ = 0;  // The one in work
  std::atomic<bool> is_awake_ = false;
};

absl::Status ShmTransport::AllToAll(Round* round) {
  for (size_t i = 1; i < mesh_.size(); ++i) {
    const size_t dst = (self_ + i) % mesh_.size();
    Publish(round->out[dst], dst);
  }
  RETURN_IF_ERROR(AwaitAll(round));
  for (size_t src = 0; src < mesh_.size(); ++src) {
    if (src == self_) continue;
    InFrame& in = round->in[src];
    in.header = segment_->slot(src, self_, round_).header;
    RETURN_IF_ERROR(CheckHeader(in.header, round->out[src].header, in.max_bytes));
    in.body = {segment_->body(src, self_, round_), in.header.bytes};
  }
  ++round_;
  return absl::OkStatus();
}

void ShmTransport::Publish(const OutFrame& frame, size_t dst) {
  CHECK_LE(frame.bytes(), segment_->max_body());
  Slot& slot = segment_->slot(self_, dst, round_);
  slot.header = frame.header;
  std::byte* body = segment_->body(self_, dst, round_);
  for (const std::span<const std::byte> part : frame.parts) {
    if (!part.empty()) std::memcpy(body, part.data(), part.size());
    body += part.size();
  }
  slot.num_published.store(round_ + 1, std::memory_order_release);

  // Sequentially consistent, as the receiver's store to is_asleep and load of num_rung: either it
  // sees this ring before it sleeps, or this rank sees that it is asleep.
  Doorbell& bell = segment_->doorbell(dst, round_);
  const uint32_t num_rung = bell.num_rung.fetch_add(1) + 1;
  const auto num_peers = static_cast<uint32_t>(mesh_.size() - 1);
  if (num_rung % num_peers == 0 && bell.is_asleep.load() != 0) FutexWake(&bell.num_rung);
}

std::vector<Rank> ShmTransport::Missing() const {
  std::vector<Rank> missing;
  for (size_t src = 0; src < mesh_.size(); ++src) {
    if (src != self_ && !HasCome(src)) missing.push_back(Rank{static_cast<int32_t>(src)});
  }
  return missing;
}

absl::Status ShmTransport::AwaitAll(Round* round) {
  if (Missing().empty()) return absl::OkStatus();
  const absl::Time start = absl::Now();
  Doorbell& bell = segment_->doorbell(self_, round_);
  absl::Status status;
  bell.is_asleep.store(1);
  while (status.ok()) {
    const uint32_t num_rung = bell.num_rung.load();
    if (Missing().empty()) break;
    const absl::Time now = absl::Now();
    const absl::Duration patience = std::min(kLook, round->deadline - now);
    if (patience > absl::ZeroDuration()) FutexWait(&bell.num_rung, num_rung, patience);
    const bool has_looked_long = absl::Now() - now >= kLook / 2;
    if (has_looked_long || is_awake_.load(std::memory_order_relaxed) ||
        patience <= absl::ZeroDuration()) {
      status = Look(*round);
    }
  }
  bell.is_asleep.store(0);
  round->waited += absl::Now() - start;
  return status;
}

absl::Status ShmTransport::Look(const Round& round) const {
  if (is_awake_.load(std::memory_order_relaxed)) {
    return absl::AbortedError("the exchange was aborted");
  }
  std::vector<pollfd> polled;
  for (const Descriptor& peer : mesh_) {
    polled.push_back({.fd = peer.get(), .events = POLLRDHUP, .revents = 0});
  }
  poll(polled.data(), polled.size(), 0);
  // After the poll: what a rank sent before it ended counts, as it would over a socket.
  const std::vector<Rank> missing = Missing();
  std::vector<Rank> gone;
  for (const Rank rank : missing) {
    if (polled[static_cast<size_t>(rank.value)].revents != 0) gone.push_back(rank);
  }
  if (!gone.empty()) {
    return WithSuspects(
        absl::UnavailableError(absl::StrCat("rank ", gone.front().value, " has ended")), gone);
  }
  if (missing.empty() || absl::Now() < round.deadline) return absl::OkStatus();
  return WithSuspects(
      absl::DeadlineExceededError(absl::StrCat(missing.size(), " ranks were silent too long")),
      missing);
}

// Rank 0 to another rank: the segment, on the connection between them.
absl::Status SendSegment(int peer, const Descriptor& segment, Rank rank) {
  char byte = 's';
  iovec iov{.iov_base = &byte, .iov_len = 1};
  alignas(cmsghdr) char control[CMSG_SPACE(sizeof(int))] = {};
  msghdr message{};
  message.msg_iov = &iov;
  message.msg_iovlen = 1;
  message.msg_control = control;
  message.msg_controllen = sizeof(control);
  cmsghdr* rights = CMSG_FIRSTHDR(&message);
  rights->cmsg_level = SOL_SOCKET;
  rights->cmsg_type = SCM_RIGHTS;
  rights->cmsg_len = CMSG_LEN(sizeof(int));
  const int fd = segment.get();
  std::memcpy(CMSG_DATA(rights), &fd, sizeof(fd));
  if (sendmsg(peer, &message, MSG_NOSIGNAL) == 1) return absl::OkStatus();
  return WithSuspects(absl::UnavailableError(absl::StrCat(
                          "the connection to rank ", rank.value, " ended: ", std::strerror(errno))),
                      {&rank, 1});
}

// Another rank from rank 0; the connection is readable.
absl::StatusOr<Descriptor> ReceiveSegment(int rank_zero) {
  char byte = 0;
  iovec iov{.iov_base = &byte, .iov_len = 1};
  alignas(cmsghdr) char control[CMSG_SPACE(sizeof(int))] = {};
  msghdr message{};
  message.msg_iov = &iov;
  message.msg_iovlen = 1;
  message.msg_control = control;
  message.msg_controllen = sizeof(control);
  const ssize_t n = recvmsg(rank_zero, &message, MSG_CMSG_CLOEXEC);
  const cmsghdr* rights = CMSG_FIRSTHDR(&message);
  if (n != 1 || rights == nullptr || rights->cmsg_type != SCM_RIGHTS ||
      rights->cmsg_len != CMSG_LEN(sizeof(int))) {
    const Rank zero{0};
    return WithSuspects(absl::UnavailableError("rank 0 ended before it had handed out the segment"),
                        {&zero, 1});
  }
  int fd = -1;
  std::memcpy(&fd, CMSG_DATA(rights), sizeof(fd));
  return Descriptor(fd);
}

class ShmExchangeFactory final : public HostExchangeFactory {
 public:
  explicit ShmExchangeFactory(std::unique_ptr<Listener> listener) : builder_(std::move(listener)) {}

  std::string endpoint() const override { return builder_.endpoint(); }

 protected:
  absl::StatusOr<std::unique_ptr<Transport>> Connect(const Membership& membership,
                                                     const ExchangeLimits& limits,
                                                     absl::Time deadline) override {
    ASSIGN_OR_RETURN(Mesh mesh, builder_.Connect(membership, deadline));
    const size_t num_ranks = mesh.size();
    const size_t max_body = MaxRoundBytes(limits, num_ranks).one;
    ASSIGN_OR_RETURN(const Descriptor fd, ShareSegment(mesh, membership.self, max_body, deadline));
    ASSIGN_OR_RETURN(std::unique_ptr<Segment> segment, Segment::Map(fd, num_ranks, max_body));
    return std::make_unique<ShmTransport>(std::move(mesh), std::move(segment), membership.self);
  }

  void ArmConnect() override { builder_.Arm(); }

  void WakeConnect() override { builder_.Wake(); }

 private:
  absl::StatusOr<Descriptor> ShareSegment(const Mesh& mesh,
                                          Rank self,
                                          size_t max_body,
                                          absl::Time deadline) const;

  MeshBuilder builder_;
};

absl::StatusOr<Descriptor> ShmExchangeFactory::ShareSegment(const Mesh& mesh,
                                                            Rank self,
                                                            size_t max_body,
                                                            absl::Time deadline) const {
  if (self.value == 0) {
    ASSIGN_OR_RETURN(Descriptor fd, Segment::Create(mesh.size(), max_body));
    for (size_t rank = 1; rank < mesh.size(); ++rank) {
      RETURN_IF_ERROR(SendSegment(mesh[rank].get(), fd, Rank{static_cast<int32_t>(rank)}));
    }
    return fd;
  }
  while (true) {
    pollfd polled[2] = {{.fd = builder_.wake_fd(), .events = POLLIN, .revents = 0},
                        {.fd = mesh[0].get(), .events = POLLIN, .revents = 0}};
    const absl::Duration patience =
        std::clamp(deadline - absl::Now(), absl::ZeroDuration(), absl::Hours(1));
    const timespec timeout = absl::ToTimespec(patience);
    const int num_ready = ppoll(polled, 2, &timeout, nullptr);
    CHECK(num_ready >= 0 || errno == EINTR);
    if (num_ready > 0 && polled[0].revents != 0) {
      return absl::AbortedError("the creation of the exchange was aborted");
    }
    if (num_ready > 0) return ReceiveSegment(mesh[0].get());
    if (absl::Now() < deadline) continue;
    const Rank zero{0};
    return WithSuspects(absl::DeadlineExceededError("rank 0 did not hand out the segment"),
                        {&zero, 1});
  }
}

}  // namespace

absl::StatusOr<std::unique_ptr<ExchangeFactory>> MakeShmExchangeFactory(absl::string_view listen) {
  if (!absl::StartsWith(listen, "shm:")) {
    return absl::InvalidArgumentError(
        absl::StrCat("shared memory is reached by shm:PATH, not by ", listen));
  }
  ASSIGN_OR_RETURN(std::unique_ptr<Listener> listener, Listener::Create(listen));
  return std::make_unique<ShmExchangeFactory>(std::move(listener));
}

}  // namespace shoal
