#include "worker/exchange/mesh.h"

#include <errno.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <sys/eventfd.h>
#include <sys/socket.h>

#include <algorithm>
#include <cstring>
#include <string>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"

#include "base/check.h"
#include "base/status_macros.h"
#include "worker/exchange/suspects.h"

namespace shoal {
namespace {

// Strangers included. When there are more, the oldest goes; who was serious dials again.
constexpr size_t kMaxGuests = 64;
constexpr absl::Duration kHelloWithin = absl::Seconds(5);
constexpr absl::Duration kFirstRetry = absl::Milliseconds(1);
constexpr absl::Duration kSlowestRetry = absl::Milliseconds(50);

enum class Progress { kWaiting, kComplete, kEnded };

// A message of fixed size that arrives in pieces.
template <typename Message>
struct Inbox {
  Message message{};
  size_t num_bytes = 0;

  Progress Read(int fd) {
    auto* bytes = reinterpret_cast<std::byte*>(&message);
    while (num_bytes < sizeof(Message)) {
      const ssize_t n = recv(fd, bytes + num_bytes, sizeof(Message) - num_bytes, 0);
      if (n < 0 && errno == EINTR) continue;
      if (n < 0 && errno == EAGAIN) return Progress::kWaiting;
      if (n <= 0) return Progress::kEnded;
      num_bytes += static_cast<size_t>(n);
    }
    return Progress::kComplete;
  }
};

// Fits into the send buffer of a fresh connection, so a short write is a broken connection.
template <typename Message>
bool Write(int fd, const Message& message) {
  return send(fd, &message, sizeof(message), MSG_NOSIGNAL) == static_cast<ssize_t>(sizeof(message));
}

// Rows wait for nobody's acknowledgement; a silent host is noticed in 4 to 5 seconds.
void Tune(int fd) {
  int domain = 0;
  socklen_t size = sizeof(domain);
  getsockopt(fd, SOL_SOCKET, SO_DOMAIN, &domain, &size);
  if (domain == AF_UNIX) return;
  const auto set = [fd](int level, int option, int value) {
    setsockopt(fd, level, option, &value, sizeof(value));
  };
  set(IPPROTO_TCP, TCP_NODELAY, 1);
  set(SOL_SOCKET, SO_KEEPALIVE, 1);
  set(IPPROTO_TCP, TCP_KEEPIDLE, 2);
  set(IPPROTO_TCP, TCP_KEEPINTVL, 1);
  set(IPPROTO_TCP, TCP_KEEPCNT, 3);
  set(IPPROTO_TCP, TCP_USER_TIMEOUT, 4000);
}

absl::Status StaleEpoch(int32_t peer, uint64_t theirs, Epoch ours) {
  return absl::FailedPreconditionError(
      absl::StrCat("rank ", peer, " is at epoch ", theirs, ", this rank at epoch ", ours.value));
}

// One Connect().
class Meeting {
 public:
  Meeting(const Membership& membership, int listener, int wake, std::vector<ParkedGuest>* parked)
      : membership_(membership),
        listener_(listener),
        wake_(wake),
        parked_(*parked),
        mesh_(membership.members.size()) {
    for (int32_t rank = 0; rank < membership.self.value; ++rank) {
      dials_.push_back({.to = Rank{rank}});
    }
  }

  absl::StatusOr<Mesh> Run(absl::Time deadline);

 private:
  // To a lower rank.
  struct Dial {
    Rank to;
    Descriptor fd;
    bool is_connected = false;
    Hello hello{};
    Inbox<Answer> answer{};
    absl::Time retry_at = absl::InfinitePast();
    absl::Duration pause = kFirstRetry;
    std::string problem = "no answer";
  };

  // Who has dialled us and is not a member yet.
  struct Visitor {
    Descriptor fd;
    absl::Time since;
    Inbox<Hello> hello{};
    bool is_answered = false;
    Answer answer{};
    Inbox<Proof> proof{};
  };

  bool IsComplete() const { return num_connected_ + 1 == mesh_.size(); }

  void Join(Rank rank, Descriptor fd);
  absl::Status ReadmitParked();
  void StartDue(absl::Time now);
  void Start(Dial* dial, absl::Time now);
  void Retry(Dial* dial, absl::string_view problem);
  absl::Status Continue(Dial* dial);
  void Accept(absl::Time now);
  // False when the visitor is finished with: joined, parked or gone.
  absl::StatusOr<bool> Continue(Visitor* visitor);
  absl::StatusOr<bool> Receive(Visitor* visitor);
  absl::Status Await(absl::Time deadline);
  absl::Time WakeUpTime(absl::Time deadline) const;
  absl::Status Late() const;

  const Membership& membership_;
  const int listener_;
  const int wake_;
  std::vector<ParkedGuest>& parked_;
  Mesh mesh_;
  size_t num_connected_ = 0;
  std::vector<Dial> dials_;        // Those not yet in the mesh have a descriptor or a retry_at
  std::vector<Visitor> visitors_;  // Oldest first
  std::vector<pollfd> polled_;
};

absl::StatusOr<Mesh> Meeting::Run(absl::Time deadline) {
  RETURN_IF_ERROR(ReadmitParked());
  while (!IsComplete()) {
    StartDue(absl::Now());
    RETURN_IF_ERROR(Await(deadline));
  }
  return std::move(mesh_);
}

void Meeting::Join(Rank rank, Descriptor fd) {
  Descriptor& place = mesh_[static_cast<size_t>(rank.value)];
  if (!place.is_open()) ++num_connected_;
  place = std::move(fd);
}

// Guests of this epoch go on where they were; if one is still early, this epoch is over, too.
absl::Status Meeting::ReadmitParked() {
  absl::Status result;
  for (ParkedGuest& guest : std::exchange(parked_, {})) {
    Visitor visitor{.fd = std::move(guest.fd), .since = absl::Now()};
    visitor.hello = {.message = guest.hello, .num_bytes = sizeof(Hello)};
    const absl::StatusOr<bool> stays = Continue(&visitor);
    result.Update(stays.status());
    if (stays.ok() && *stays) visitors_.push_back(std::move(visitor));
  }
  return result;
}

void Meeting::StartDue(absl::Time now) {
  for (Dial& dial : dials_) {
    const bool is_idle = !dial.fd.is_open() && !mesh_[static_cast<size_t>(dial.to.value)].is_open();
    if (is_idle && dial.retry_at <= now) Start(&dial, now);
  }
}

void Meeting::Start(Dial* dial, absl::Time now) {
  dial->retry_at = now + dial->pause;
  dial->pause = std::min(2 * dial->pause, kSlowestRetry);
  dial->is_connected = false;
  dial->answer = {};
  const Member& peer = membership_.members[static_cast<size_t>(dial->to.value)];
  const absl::StatusOr<SocketAddress> address = ResolveAddress(peer.exchange_endpoint);
  if (!address.ok()) return Retry(dial, address.status().message());
  dial->fd =
      Descriptor(socket(address->storage.ss_family, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0));
  if (!dial->fd.is_open()) return Retry(dial, std::strerror(errno));
  Tune(dial->fd.get());
  if (connect(dial->fd.get(), address->get(), address->size) != 0 && errno != EINPROGRESS) {
    Retry(dial, std::strerror(errno));
  }
}

void Meeting::Retry(Dial* dial, absl::string_view problem) {
  dial->problem = std::string(problem);
  dial->fd.Close();
}

absl::Status Meeting::Continue(Dial* dial) {
  const int fd = dial->fd.get();
  if (!dial->is_connected) {
    int error = 0;
    socklen_t size = sizeof(error);
    getsockopt(fd, SOL_SOCKET, SO_ERROR, &error, &size);
    dial->hello = MakeHello(membership_, dial->to);
    if (error != 0 || !Write(fd, dial->hello)) {
      Retry(dial, std::strerror(error != 0 ? error : errno));
      return absl::OkStatus();
    }
    dial->is_connected = true;
  }
  switch (dial->answer.Read(fd)) {
    case Progress::kWaiting:
      return absl::OkStatus();
    case Progress::kEnded:
      Retry(dial, "it ended the connection");
      return absl::OkStatus();
    case Progress::kComplete:
      break;
  }
  const Answer& answer = dial->answer.message;
  if (answer.magic == Hello::kMagic && answer.code == Answer::kStale &&
      answer.epoch > membership_.epoch.value) {
    return WithSuspects(StaleEpoch(dial->to.value, answer.epoch, membership_.epoch),
                        {&dial->to, 1});
  }
  if (!IsWelcome(answer, dial->hello, membership_.key)) {
    Retry(dial, "its answer is not authentic: another key or another program");
  } else if (!Write(fd, MakeProof(dial->hello, answer, membership_.key))) {
    Retry(dial, "it ended the connection");
  } else {
    Join(dial->to, std::move(dial->fd));
  }
  return absl::OkStatus();
}

void Meeting::Accept(absl::Time now) {
  while (true) {
    Descriptor fd(accept4(listener_, nullptr, nullptr, SOCK_CLOEXEC | SOCK_NONBLOCK));
    if (!fd.is_open() && errno == EINTR) continue;
    if (!fd.is_open()) return;
    Tune(fd.get());
    if (visitors_.size() == kMaxGuests) visitors_.erase(visitors_.begin());
    Visitor& visitor = visitors_.emplace_back();
    visitor.fd = std::move(fd);
    visitor.since = now;
  }
}

absl::StatusOr<bool> Meeting::Continue(Visitor* visitor) {
  const int fd = visitor->fd.get();
  if (!visitor->is_answered) {
    const Progress progress = visitor->hello.Read(fd);
    if (progress != Progress::kComplete) return progress == Progress::kWaiting;
    return Receive(visitor);
  }
  switch (visitor->proof.Read(fd)) {
    case Progress::kWaiting:
      return true;
    case Progress::kEnded:
      return false;
    case Progress::kComplete:
      break;
  }
  const Hello& hello = visitor->hello.message;
  if (IsProven(visitor->proof.message, hello, visitor->answer, membership_.key)) {
    Join(Rank{hello.src}, std::move(visitor->fd));
  }
  return false;
}

absl::StatusOr<bool> Meeting::Receive(Visitor* visitor) {
  const Hello& hello = visitor->hello.message;
  switch (Judge(hello, membership_)) {
    case Guest::kStranger:
      return false;
    case Guest::kLate:
      Write(visitor->fd.get(), MakeStale(membership_));
      return false;
    case Guest::kEarly:
      if (parked_.size() == kMaxGuests) parked_.erase(parked_.begin());
      parked_.push_back({std::move(visitor->fd), hello});
      if (IsKnown(hello, membership_)) return StaleEpoch(hello.src, hello.epoch, membership_.epoch);
      return false;
    case Guest::kMember:
      visitor->answer = MakeWelcome(hello, membership_);
      visitor->is_answered = true;
      return Write(visitor->fd.get(), visitor->answer);
  }
  return false;
}

absl::Time Meeting::WakeUpTime(absl::Time deadline) const {
  absl::Time next = deadline;
  for (const Dial& dial : dials_) {
    const bool is_idle = !dial.fd.is_open() && !mesh_[static_cast<size_t>(dial.to.value)].is_open();
    if (is_idle) next = std::min(next, dial.retry_at);
  }
  for (const Visitor& visitor : visitors_) next = std::min(next, visitor.since + kHelloWithin);
  return next;
}

absl::Status Meeting::Late() const {
  std::vector<Rank> missing;
  std::string details;
  for (size_t rank = 0; rank < mesh_.size(); ++rank) {
    const Rank who{static_cast<int32_t>(rank)};
    if (mesh_[rank].is_open() || who == membership_.self) continue;
    missing.push_back(who);
    const std::string& problem = rank < dials_.size() ? dials_[rank].problem : "did not call";
    absl::StrAppend(&details,
                    "; rank ",
                    rank,
                    " at ",
                    membership_.members[rank].exchange_endpoint,
                    ": ",
                    problem);
  }
  return WithSuspects(absl::DeadlineExceededError(absl::StrCat(
                          "epoch ", membership_.epoch.value, " did not come together", details)),
                      missing);
}

// Waits for something to happen and takes it one step further.
absl::Status Meeting::Await(absl::Time deadline) {
  polled_.clear();
  polled_.push_back({.fd = wake_, .events = POLLIN, .revents = 0});
  polled_.push_back({.fd = listener_, .events = POLLIN, .revents = 0});
  for (const Descriptor& peer : mesh_) {  // Closed ones are -1, which poll passes over.
    polled_.push_back({.fd = peer.get(), .events = POLLRDHUP, .revents = 0});
  }
  for (const Dial& dial : dials_) {
    const short events = dial.is_connected ? POLLIN : POLLOUT;
    polled_.push_back({.fd = dial.fd.get(), .events = events, .revents = 0});
  }
  for (const Visitor& visitor : visitors_) {
    polled_.push_back({.fd = visitor.fd.get(), .events = POLLIN, .revents = 0});
  }
  const absl::Duration patience =
      std::clamp(WakeUpTime(deadline) - absl::Now(), absl::ZeroDuration(), absl::Hours(1));
  const timespec timeout = absl::ToTimespec(patience);
  const int num_ready = ppoll(polled_.data(), polled_.size(), &timeout, nullptr);
  CHECK(num_ready >= 0 || errno == EINTR);
  if (num_ready < 0) return absl::OkStatus();

  if (polled_[0].revents != 0) {
    return absl::AbortedError("the creation of the exchange was aborted");
  }
  const pollfd* next = polled_.data() + 2;
  for (size_t rank = 0; rank < mesh_.size(); ++rank, ++next) {
    if (next->revents == 0) continue;
    const Rank gone{static_cast<int32_t>(rank)};
    return WithSuspects(absl::UnavailableError(absl::StrCat("rank ", rank, " has left again")),
                        {&gone, 1});
  }
  for (Dial& dial : dials_) {
    if ((next++)->revents != 0) RETURN_IF_ERROR(Continue(&dial));
  }
  const absl::Time now = absl::Now();
  std::vector<Visitor> staying;
  for (Visitor& visitor : visitors_) {
    absl::StatusOr<bool> stays = now - visitor.since < kHelloWithin;
    if ((next++)->revents != 0) stays = Continue(&visitor);
    RETURN_IF_ERROR(stays.status());
    if (*stays) staying.push_back(std::move(visitor));
  }
  visitors_ = std::move(staying);
  if (polled_[1].revents != 0) Accept(now);
  return now < deadline || IsComplete() ? absl::OkStatus() : Late();
}

}  // namespace

MeshBuilder::MeshBuilder(std::unique_ptr<Listener> listener)
    : listener_(std::move(listener)), wake_(eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK)) {
  CHECK(wake_.is_open());
}

absl::StatusOr<Mesh> MeshBuilder::Connect(const Membership& membership, absl::Time deadline) {
  Meeting meeting(membership, listener_->fd(), wake_.get(), &parked_);
  return meeting.Run(deadline);
}

void MeshBuilder::Arm() {
  uint64_t count = 0;
  while (read(wake_.get(), &count, sizeof(count)) > 0) continue;
}

void MeshBuilder::Wake() {
  const uint64_t one = 1;
  const ssize_t written = write(wake_.get(), &one, sizeof(one));
  CHECK(written == sizeof(one) || errno == EAGAIN);  // Full: it is readable already.
}

}  // namespace shoal
