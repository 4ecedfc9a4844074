#include "worker/exchange/local.h"

#include <algorithm>
#include <array>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"

#include "base/status_macros.h"
#include "worker/exchange/host_exchange.h"
#include "worker/exchange/suspects.h"

namespace shoal {

// Everything here is guarded by the hub's mutex, except the bytes of a mailbox: those belong to the
// sender until it sets `num_sent`, then to the receiver until it enters the next round.
struct LocalRoom {
  // From one rank to one other. Two boxes taken in turn are enough: who finished round n - 1 knows
  // that everybody has entered it and so is done with what round n - 2 brought.
  struct Mailbox {
    std::array<std::vector<std::byte>, 2> bytes;
    std::array<FrameHeader, 2> headers;
    uint64_t num_sent = 0;
  };

  enum class Presence { kAbsent, kHere, kLeft };

  explicit LocalRoom(const Membership& m)
      : membership(m), presence(m.members.size()), mailboxes(m.members.size() * m.members.size()) {}

  Mailbox& mailbox(size_t src, size_t dst) { return mailboxes[src * presence.size() + dst]; }

  bool Has(const Membership& other) const {
    return std::ranges::any_of(other.members, [&](const Member& member) {
      return std::ranges::any_of(membership.members, [&](const Member& ours) {
        return ours.incarnation == member.incarnation;
      });
    });
  }

  std::vector<Rank> Ranks(Presence wanted) const {
    std::vector<Rank> ranks;
    for (size_t rank = 0; rank < presence.size(); ++rank) {
      if (presence[rank] == wanted) ranks.push_back(Rank{static_cast<int32_t>(rank)});
    }
    return ranks;
  }

  const Membership membership;  // Of the rank that came first
  std::vector<Presence> presence;
  std::vector<Mailbox> mailboxes;  // [src, dst]
  Epoch superseded_by;             // Zero: by none
};

namespace {

using Presence = LocalRoom::Presence;

absl::Status StaleEpoch(Epoch peers, Epoch own) {
  return absl::FailedPreconditionError(
      absl::StrCat("a peer is at epoch ", peers.value, ", this rank at epoch ", own.value));
}

}  // namespace

// One rank's presence in a room; leaves it when destroyed.
class LocalTransport final : public Transport {
 public:
  LocalTransport(std::shared_ptr<LocalHub> hub, LocalRoom* room, Rank self)
      : hub_(std::move(hub)), room_(room), self_(static_cast<size_t>(self.value)) {}

  ~LocalTransport() override {
    absl::MutexLock lock(&hub_->mutex_);
    room_->presence[self_] = Presence::kLeft;
    if (!room_->Ranks(Presence::kHere).empty()) return;
    hub_->rooms_.erase({room_->membership.cell, room_->membership.epoch});
  }

  absl::Status AllToAll(Round* round) override;

  void Wake() override {
    absl::MutexLock lock(&hub_->mutex_);
    is_awake_ = true;
  }

  // Waits until all ranks are in the room. `is_aborted` is guarded by the hub's mutex.
  absl::Status AwaitAll(Epoch own, const bool* is_aborted, absl::Time deadline);

 private:
  const std::shared_ptr<LocalHub> hub_;
  LocalRoom* const room_;
  const size_t self_;
  uint64_t num_rounds_ = 0;  // The calling thread's
  bool is_awake_ = false;    // Guarded by the hub's mutex
};

absl::Status LocalTransport::AwaitAll(Epoch own, const bool* is_aborted, absl::Time deadline) {
  absl::MutexLock lock(&hub_->mutex_);
  const auto has_news = [&] {
    return room_->Ranks(Presence::kAbsent).empty() || !room_->Ranks(Presence::kLeft).empty() ||
           room_->superseded_by > own || *is_aborted;
  };
  const bool in_time = hub_->mutex_.AwaitWithDeadline(absl::Condition(&has_news), deadline);
  if (*is_aborted) return absl::AbortedError("the creation of the exchange was aborted");
  if (room_->superseded_by > own) return StaleEpoch(room_->superseded_by, own);
  if (const std::vector<Rank> left = room_->Ranks(Presence::kLeft); !left.empty()) {
    return WithSuspects(absl::UnavailableError("a rank has left the exchange"), left);
  }
  if (in_time) return absl::OkStatus();
  const std::vector<Rank> absent = room_->Ranks(Presence::kAbsent);
  return WithSuspects(
      absl::DeadlineExceededError(absl::StrCat(absent.size(), " ranks did not come")), absent);
}

absl::Status LocalTransport::AllToAll(Round* round) {
  const size_t num_ranks = room_->presence.size();
  const size_t box = num_rounds_ % 2;
  for (size_t dst = 0; dst < num_ranks; ++dst) {
    if (dst == self_) continue;
    LocalRoom::Mailbox& mailbox = room_->mailbox(self_, dst);
    mailbox.headers[box] = round->out[dst].header;
    mailbox.bytes[box].clear();
    for (const auto& part : round->out[dst].parts) {
      mailbox.bytes[box].insert(mailbox.bytes[box].end(), part.begin(), part.end());
    }
  }
  ++num_rounds_;

  std::vector<Rank> missing;
  std::vector<Rank> gone;
  const absl::Time start = absl::Now();
  {
    absl::MutexLock lock(&hub_->mutex_);
    for (size_t dst = 0; dst < num_ranks; ++dst) {
      if (dst != self_) room_->mailbox(self_, dst).num_sent = num_rounds_;
    }
    const auto is_due = [&](size_t src) {
      return src != self_ && room_->mailbox(src, self_).num_sent < num_rounds_;
    };
    const auto has_news = [&] {
      bool is_complete = true;
      for (size_t src = 0; src < num_ranks; ++src) {
        if (!is_due(src)) continue;
        is_complete = false;
        if (room_->presence[src] == Presence::kLeft) return true;
      }
      return is_complete || is_awake_;
    };
    hub_->mutex_.AwaitWithDeadline(absl::Condition(&has_news), round->deadline);
    if (is_awake_) return absl::AbortedError("the exchange was aborted");
    for (size_t src = 0; src < num_ranks; ++src) {
      if (!is_due(src)) continue;
      const Rank rank{static_cast<int32_t>(src)};
      missing.push_back(rank);
      if (room_->presence[src] == Presence::kLeft) gone.push_back(rank);
    }
  }
  round->waited = absl::Now() - start;
  if (!gone.empty()) {
    return WithSuspects(absl::UnavailableError("a rank has left the exchange"), gone);
  }
  if (!missing.empty()) {
    return WithSuspects(
        absl::DeadlineExceededError(absl::StrCat(missing.size(), " ranks were silent")), missing);
  }
  for (size_t src = 0; src < num_ranks; ++src) {
    if (src == self_) continue;
    const LocalRoom::Mailbox& mailbox = room_->mailbox(src, self_);
    InFrame& in = round->in[src];
    RETURN_IF_ERROR(CheckHeader(mailbox.headers[box], round->out[src].header, in.max_bytes));
    in.header = mailbox.headers[box];
    in.body = mailbox.bytes[box];
  }
  return absl::OkStatus();
}

class LocalExchangeFactory final : public HostExchangeFactory {
 public:
  explicit LocalExchangeFactory(std::shared_ptr<LocalHub> hub) : hub_(std::move(hub)) {
    absl::MutexLock lock(&hub_->mutex_);
    endpoint_ = absl::StrCat("local:", hub_->num_factories_++);
  }

  std::string endpoint() const override { return endpoint_; }

 protected:
  absl::StatusOr<std::unique_ptr<Transport>> Connect(const Membership& membership,
                                                     const ExchangeLimits& /*limits*/,
                                                     absl::Time deadline) override {
    std::unique_ptr<LocalTransport> transport;
    {
      absl::MutexLock lock(&hub_->mutex_);
      ASSIGN_OR_RETURN(LocalRoom * room, Enter(membership));
      transport = std::make_unique<LocalTransport>(hub_, room, membership.self);
    }
    RETURN_IF_ERROR(transport->AwaitAll(membership.epoch, &is_aborted_, deadline));
    return transport;
  }

  void ArmConnect() override {
    absl::MutexLock lock(&hub_->mutex_);
    is_aborted_ = false;
  }

  void WakeConnect() override {
    absl::MutexLock lock(&hub_->mutex_);
    is_aborted_ = true;
  }

 private:
  absl::StatusOr<LocalRoom*> Enter(const Membership& membership)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(hub_->mutex_);

  const std::shared_ptr<LocalHub> hub_;
  std::string endpoint_;
  bool is_aborted_ = false;  // Guarded by the hub's mutex
};

absl::StatusOr<LocalRoom*> LocalExchangeFactory::Enter(const Membership& membership) {
  for (const auto& [key, other] : hub_->rooms_) {
    if (key.first != membership.cell || !other->Has(membership)) continue;
    if (key.second > membership.epoch) return StaleEpoch(key.second, membership.epoch);
    if (key.second < membership.epoch) other->superseded_by = membership.epoch;
  }
  std::unique_ptr<LocalRoom>& room = hub_->rooms_[{membership.cell, membership.epoch}];
  if (room == nullptr) room = std::make_unique<LocalRoom>(membership);
  Presence& presence = room->presence[static_cast<size_t>(membership.self.value)];
  if (room->membership.members != membership.members || room->membership.key != membership.key ||
      presence != Presence::kAbsent) {
    return absl::FailedPreconditionError(absl::StrCat("epoch ",
                                                      membership.epoch.value,
                                                      " has other members or another key here, or ",
                                                      "rank ",
                                                      membership.self.value,
                                                      " has been in it"));
  }
  presence = Presence::kHere;
  return room.get();
}

LocalHub::LocalHub() = default;
LocalHub::~LocalHub() = default;

std::unique_ptr<ExchangeFactory> MakeLocalExchangeFactory(std::shared_ptr<LocalHub> hub) {
  return std::make_unique<LocalExchangeFactory>(std::move(hub));
}

}  // namespace shoal
