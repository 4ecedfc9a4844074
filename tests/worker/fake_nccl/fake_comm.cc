#include "tests/worker/fake_nccl/fake_comm.h"

#include <errno.h>
#include <poll.h>
#include <sys/socket.h>
#include <sys/un.h>

#include <algorithm>
#include <array>
#include <cstdio>
#include <cstring>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"

#include "base/check.h"

namespace shoal {
namespace {

constexpr int kPollMs = 1;

// A name in the abstract namespace: gone with the socket.
sockaddr_un AddressOf(uint64_t token, int rank, socklen_t* size) {
  sockaddr_un address{};
  address.sun_family = AF_UNIX;
  const std::string name = absl::StrCat("fake-nccl-", absl::Hex(token), "-", rank);
  std::memcpy(address.sun_path + 1, name.data(), name.size());
  *size = static_cast<socklen_t>(offsetof(sockaddr_un, sun_path) + 1 + name.size());
  return address;
}

// What goes in front of a message, and has to be what the receiver expects.
uint64_t LengthAndRecord(size_t bytes, uint64_t record) {
  return record << 40 | bytes;
}

Descriptor NewSocket() {
  return Descriptor(socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0));
}

}  // namespace

FakeComm::FakeComm(uint64_t token, int num_ranks, int rank, bool meets, FakeGauges* gauges)
    : token_(token),
      num_ranks_(num_ranks),
      rank_(rank),
      meets_(meets),
      gauges_(gauges),
      sockets_(static_cast<size_t>(num_ranks)),
      thread_([this] { Run(); }) {
  ++gauges_->threads;
}

FakeComm::~FakeComm() {
  is_aborted_ = true;
  {
    absl::MutexLock lock(&mutex_);
    is_stopping_ = true;
  }
  thread_.join();
  --gauges_->threads;
  absl::MutexLock lock(&mutex_);
  const auto is_quiet = [this]() ABSL_SHARED_LOCKS_REQUIRED(mutex_) { return num_running_ == 0; };
  mutex_.Await(absl::Condition(&is_quiet));
  for (const Group* group : launches_) delete group;
  for (const Descriptor& socket : sockets_) gauges_->sockets -= socket.is_open() ? 1 : 0;
}

void FakeComm::SetAsync(NcclResult error) {
  NcclResult expected = NcclResult::kSuccess;
  if (async_.compare_exchange_strong(expected, error)) return;
  expected = NcclResult::kInProgress;
  async_.compare_exchange_strong(expected, error);
}

void FakeComm::BreakConnections() {
  if (is_connected_) {
    for (const Descriptor& socket : sockets_) {
      if (socket.is_open()) shutdown(socket.get(), SHUT_RDWR);
    }
  }
  SetAsync(NcclResult::kRemoteError);
}

void FakeComm::Launch(std::vector<FakeTransfer> transfers, bool arrives) {
  NcclResult expected = NcclResult::kSuccess;
  async_.compare_exchange_strong(expected, NcclResult::kInProgress);
  ShoalHostStream* const stream = transfers.front().stream;
  const bool is_recorded = stream->is_recording(stream) != 0;
  absl::MutexLock lock(&mutex_);
  if (is_recorded) ++num_recorded_;
  launches_.push_back(new Group{.comm = this,
                                .transfers = std::move(transfers),
                                .arrives = arrives,
                                .record = is_recorded ? num_recorded_ : 0});
}

void FakeComm::Run() {
  Connect();
  absl::MutexLock lock(&mutex_);
  const auto has_news = [this]() ABSL_SHARED_LOCKS_REQUIRED(mutex_) {
    return is_stopping_ || !launches_.empty();
  };
  while (true) {
    mutex_.Await(absl::Condition(&has_news));
    if (is_stopping_) return;
    Group* const group = launches_.front();
    launches_.pop_front();
    ++num_running_;
    ShoalHostStream* const stream = group->transfers.front().stream;
    stream->enqueue(stream, RunGroup, DropGroup, group);
    NcclResult expected = NcclResult::kInProgress;
    if (launches_.empty()) async_.compare_exchange_strong(expected, NcclResult::kSuccess);
  }
}

// Each rank listens for the higher ones and dials the lower ones, until all are there or nobody
// wants to know any more.
void FakeComm::Connect() {
  if (!meets_) {
    while (!is_aborted_) absl::SleepFor(absl::Milliseconds(kPollMs));
    return;
  }
  socklen_t size = 0;
  const sockaddr_un address = AddressOf(token_, rank_, &size);
  const Descriptor listener = NewSocket();
  if (!listener.is_open() ||
      bind(listener.get(), reinterpret_cast<const sockaddr*>(&address), size) != 0 ||
      listen(listener.get(), num_ranks_) != 0) {
    return SetAsync(NcclResult::kSystemError);
  }
  int missing = num_ranks_ - 1;
  while (missing > 0 && !is_aborted_) {
    int found = 0;
    for (int peer = 0; peer < rank_; ++peer) {
      if (!sockets_[static_cast<size_t>(peer)].is_open() && Dial(peer)) ++found;
    }
    while (Accept(listener)) ++found;
    missing -= found;
    if (found == 0) absl::SleepFor(absl::Microseconds(200));
  }
  if (missing > 0) return;
  is_connected_ = true;
  NcclResult expected = NcclResult::kInProgress;
  async_.compare_exchange_strong(expected, NcclResult::kSuccess);
}

bool FakeComm::Dial(int peer) {
  socklen_t size = 0;
  const sockaddr_un address = AddressOf(token_, peer, &size);
  Descriptor socket = NewSocket();
  const auto rank = static_cast<int32_t>(rank_);
  if (connect(socket.get(), reinterpret_cast<const sockaddr*>(&address), size) != 0 ||
      send(socket.get(), &rank, sizeof(rank), MSG_NOSIGNAL) != sizeof(rank)) {
    return false;
  }
  sockets_[static_cast<size_t>(peer)] = std::move(socket);
  ++gauges_->sockets;
  return true;
}

bool FakeComm::Accept(const Descriptor& listener) {
  Descriptor socket(accept4(listener.get(), nullptr, nullptr, SOCK_CLOEXEC | SOCK_NONBLOCK));
  if (!socket.is_open()) return false;
  int32_t peer = -1;
  while (!is_aborted_) {
    const ssize_t got = recv(socket.get(), &peer, sizeof(peer), 0);
    if (got == sizeof(peer)) break;
    if (got >= 0 || errno != EAGAIN) {
      SetAsync(NcclResult::kRemoteError);  // It died while it came.
      return false;
    }
    pollfd readable{.fd = socket.get(), .events = POLLIN, .revents = 0};
    poll(&readable, 1, kPollMs);
  }
  if (peer <= rank_ || peer >= num_ranks_) return false;
  sockets_[static_cast<size_t>(peer)] = std::move(socket);
  ++gauges_->sockets;
  return true;
}

void FakeComm::RunGroup(void* group) {
  const auto* const running = static_cast<const Group*>(group);
  running->comm->Move(*running);
}

void FakeComm::DropGroup(void* group) {
  const std::unique_ptr<Group> owned(static_cast<Group*>(group));
  absl::MutexLock lock(&owned->comm->mutex_);
  --owned->comm->num_running_;
}

// The kernel: spins until everything has moved, or the abort flag is up.
void FakeComm::Move(const Group& group) {
  std::vector<Channel> channels(static_cast<size_t>(num_ranks_));
  for (const FakeTransfer& transfer : group.transfers) {
    Channel& channel = channels[static_cast<size_t>(transfer.peer)];
    (transfer.is_send ? channel.sends : channel.receives).push_back(transfer);
  }
  if (group.arrives) Progress(group.record, &channels);
  const auto is_done = [&] {
    return group.arrives && std::ranges::all_of(channels, &Channel::is_done);
  };
  while (!is_done() && !is_aborted_) absl::SleepFor(absl::Microseconds(200));
}

void FakeComm::Progress(uint64_t record, std::vector<Channel>* channels) {
  while (!is_aborted_ && !std::ranges::all_of(*channels, &Channel::is_done)) {
    bool has_moved = false;
    std::vector<pollfd> waits;
    for (int peer = 0; peer < num_ranks_; ++peer) {
      Channel& channel = (*channels)[static_cast<size_t>(peer)];
      if (channel.is_done()) continue;
      while (Send(peer, record, &channel)) has_moved = true;
      while (Receive(peer, record, &channel)) has_moved = true;
      if (async_ > NcclResult::kSuccess && async_ != NcclResult::kInProgress) return;
      const bool sends = channel.send_index < channel.sends.size();
      const bool receives = channel.receive_index < channel.receives.size();
      waits.push_back(
          {.fd = sockets_[static_cast<size_t>(peer)].get(),
           .events = static_cast<short>((sends ? POLLOUT : 0) | (receives ? POLLIN : 0)),
           .revents = 0});
    }
    if (!has_moved) poll(waits.data(), waits.size(), kPollMs);
  }
}

// False: nothing could be moved. Sets the error that the peer's end is.
bool FakeComm::Transferred(ssize_t result) {
  if (result > 0) return true;
  const bool waits = result < 0 && (errno == EAGAIN || errno == EINTR);
  if (!waits) SetAsync(NcclResult::kRemoteError);
  return false;
}

bool FakeComm::Send(int peer, uint64_t record, Channel* channel) {
  if (channel->send_index == channel->sends.size()) return false;
  const FakeTransfer& transfer = channel->sends[channel->send_index];
  const uint64_t length = LengthAndRecord(transfer.bytes, record);
  const std::array<iovec, 2> parts = {
      {{.iov_base = const_cast<uint64_t*>(&length), .iov_len = sizeof(length)},
       {.iov_base = transfer.data, .iov_len = transfer.bytes}}};
  std::array<iovec, 2> rest = parts;
  const size_t in_length = std::min(channel->sent, sizeof(length));
  rest[0] = {.iov_base = static_cast<std::byte*>(parts[0].iov_base) + in_length,
             .iov_len = sizeof(length) - in_length};
  rest[1] = {.iov_base = transfer.data + (channel->sent - in_length),
             .iov_len = transfer.bytes - (channel->sent - in_length)};
  msghdr message{};
  message.msg_iov = rest.data();
  message.msg_iovlen = rest.size();
  const ssize_t sent =
      sendmsg(sockets_[static_cast<size_t>(peer)].get(), &message, MSG_NOSIGNAL | MSG_DONTWAIT);
  if (!Transferred(sent)) return false;
  channel->sent += static_cast<size_t>(sent);
  if (channel->sent == sizeof(length) + transfer.bytes) {
    ++channel->send_index;
    channel->sent = 0;
  }
  return true;
}

bool FakeComm::Receive(int peer, uint64_t record, Channel* channel) {
  if (channel->receive_index == channel->receives.size()) return false;
  const FakeTransfer& transfer = channel->receives[channel->receive_index];
  const int fd = sockets_[static_cast<size_t>(peer)].get();
  constexpr size_t kLengthBytes = sizeof(channel->incoming);
  const bool is_length = channel->received < kLengthBytes;
  std::byte* const place =
      is_length ? reinterpret_cast<std::byte*>(&channel->incoming) + channel->received
                : transfer.data + (channel->received - kLengthBytes);
  const size_t wanted = (is_length ? 0 : transfer.bytes) + kLengthBytes - channel->received;
  if (wanted > 0) {
    const ssize_t got = recv(fd, place, wanted, MSG_DONTWAIT);
    if (!Transferred(got)) return false;
    channel->received += static_cast<size_t>(got);
  }
  if (channel->received == kLengthBytes &&
      channel->incoming != LengthAndRecord(transfer.bytes, record)) {
    SetAsync(NcclResult::kInternalError);  // "Message truncated", or worse
    return false;
  }
  if (channel->received == kLengthBytes + transfer.bytes) {
    ++channel->receive_index;
    channel->received = 0;
  }
  return true;
}

}  // namespace shoal
