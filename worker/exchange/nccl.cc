#include "worker/exchange/nccl.h"

#include <algorithm>
#include <cstring>
#include <span>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"

#include "base/check.h"
#include "base/status_macros.h"
#include "worker/exchange/suspects.h"

namespace shoal {
namespace {

size_t Size(int64_t count) {
  CHECK_GE(count, 0);
  return static_cast<size_t>(count);
}

constexpr auto kDevice = DeviceBuffer::Place::kDevice;
constexpr auto kHost = DeviceBuffer::Place::kHost;

NcclTransfer SendTo(size_t rank, const std::byte* data, size_t bytes) {
  return {.kind = NcclTransfer::Kind::kSend,
          .rank = static_cast<int>(rank),
          .data = const_cast<std::byte*>(data),
          .bytes = bytes};
}

NcclTransfer ReceiveFrom(size_t rank, std::byte* data, size_t bytes) {
  return {.kind = NcclTransfer::Kind::kReceive,
          .rank = static_cast<int>(rank),
          .data = data,
          .bytes = bytes};
}

}  // namespace

NcclExchange::NcclExchange(const Membership& membership,
                           const ExchangeLimits& limits,
                           NcclCommParts parts)
    : membership_(membership),
      limits_(limits),
      stream_(*parts.stream),
      row_bytes_(Size(limits.row_bytes)),
      out_(parts.stream, kDevice, num_ranks() * DispatchHeaderBytes(limits.max_rows, limits)),
      in_(parts.stream, kDevice, out_.bytes()),
      received_(parts.stream, kDevice, num_ranks() * Size(limits.max_rows) * row_bytes_),
      home_(parts.stream,
            kDevice,
            Size(limits.max_rows) * Size(limits.experts_per_token) * row_bytes_),
      headers_out_(parts.stream, kHost, out_.bytes()),
      headers_in_(parts.stream, kHost, in_.bytes()),
      guard_(parts.stream, kDevice, sizeof(SlotGuard)),
      guard_read_(parts.stream, kHost, sizeof(SlotGuard)),
      comm_(std::move(parts)),
      rows_from_(num_ranks()),
      builder_(membership, limits) {
  BeginStep(limits.max_rows);
}

NcclExchange::~NcclExchange() = default;

absl::Status NcclExchange::Open(const NcclUniqueId& id, absl::Time deadline) {
  for (const DeviceBuffer* buffer :
       {&out_, &in_, &received_, &home_, &headers_out_, &headers_in_, &guard_, &guard_read_}) {
    if (buffer->data() != nullptr) continue;
    return absl::ResourceExhaustedError(
        absl::StrCat("no ", buffer->bytes(), " bytes of device memory for the exchange"));
  }
  const SlotGuard guard{.epoch = membership_.epoch.value};
  std::memcpy(guard_read_.data(), &guard, sizeof(guard));
  stream_.Write(guard_.data(), guard_read_.data(), sizeof(guard));
  absl::Status status =
      comm_.Connect(id, static_cast<int>(num_ranks()), membership_.self.value, deadline);
  if (!status.ok()) return Annotate(status);
  connected_ = absl::Now();
  Route nothing;
  nothing.rank_rows.assign(num_ranks() + 1, 0);
  nothing.rank_pairs.assign(num_ranks() + 1, 0);
  FillHeaders(nothing);
  status = ExchangeHeaders("the first message", deadline);
  if (absl::IsDeadlineExceeded(status)) {
    return WithSuspects(
        absl::DeadlineExceededError(absl::StrCat(
            "all ranks have met, but what they send does not arrive: a firewall that drops NCCL's "
            "connections between workers? They use any port; `shoal doctor` names the interface (",
            status.message(),
            ")")),
        SuspectsOf(status));
  }
  RETURN_IF_ERROR(status);
  Arrivals none;
  return ReadHeaders(&none);
}

ExchangeShape NcclExchange::BeginStep(int32_t most_rows) {
  most_rows_ = most_rows;
  header_bytes_ = DispatchHeaderBytes(most_rows, limits_);
  return ChooseExchangeShape(most_rows, limits_.max_rows);
}

absl::StatusOr<Arrivals> NcclExchange::Dispatch(const Route& route,
                                                const TensorView& outgoing,
                                                absl::Time deadline) {
  RETURN_IF_ERROR(Health());
  const absl::Status checked = CheckRoute(route, outgoing, limits_, most_rows_, num_ranks());
  if (!checked.ok()) return Fail(checked);
  FillHeaders(route);
  RETURN_IF_ERROR(ExchangeHeaders("a dispatch", deadline));
  Arrivals arrivals;
  RETURN_IF_ERROR(ReadHeaders(&arrivals));
  RETURN_IF_ERROR(MoveRows(route, outgoing, deadline));
  return arrivals;
}

// Header and pairs of each message; the own rank's are only read here.
void NcclExchange::FillHeaders(const Route& route) {
  for (size_t rank = 0; rank < num_ranks(); ++rank) {
    const size_t first_pair = Size(route.rank_pairs[rank]);
    const size_t num_pairs = Size(route.rank_pairs[rank + 1]) - first_pair;
    const int32_t num_rows = route.rank_rows[rank + 1] - route.rank_rows[rank];
    const DispatchHeader header{.rows = static_cast<uint32_t>(num_rows),
                                .pairs = static_cast<uint32_t>(num_pairs),
                                .src = membership_.self.value,
                                .epoch = membership_.epoch.value,
                                .seq = next_seq_};
    std::byte* const place =
        (rank == self() ? headers_in_ : headers_out_).data() + rank * header_bytes_;
    std::memcpy(place, &header, sizeof(header));
    if (num_pairs > 0) {
      std::memcpy(place + sizeof(header), &route.pairs[first_pair], num_pairs * sizeof(RoutedPair));
    }
    if (rank == self()) continue;
    stream_.Write(
        out_.data() + rank * header_bytes_, place, sizeof(header) + num_pairs * sizeof(RoutedPair));
  }
}

absl::Status NcclExchange::ExchangeHeaders(const std::string& what, absl::Time deadline) {
  std::vector<NcclTransfer> transfers;
  for (size_t rank = 0; rank < num_ranks(); ++rank) {
    if (rank == self()) continue;
    const size_t at = rank * header_bytes_;
    transfers.push_back(SendTo(rank, out_.data() + at, header_bytes_));
    transfers.push_back(ReceiveFrom(rank, in_.data() + at, header_bytes_));
  }
  RETURN_IF_ERROR(Launch(transfers, what, deadline));
  for (size_t rank = 0; rank < num_ranks(); ++rank) {
    const size_t at = rank * header_bytes_;
    if (rank != self()) stream_.Read(headers_in_.data() + at, in_.data() + at, header_bytes_);
  }
  return Await(what, deadline);
}

// What headers_in_ says, into `arrivals` and rows_from_.
absl::Status NcclExchange::ReadHeaders(Arrivals* arrivals) {
  builder_.Begin(arrivals);
  for (size_t rank = 0; rank < num_ranks(); ++rank) {
    const std::byte* const place = headers_in_.data() + rank * header_bytes_;
    DispatchHeader header;
    std::memcpy(&header, place, sizeof(header));
    const size_t pairs_bytes = header.pairs * sizeof(RoutedPair);
    if (header.magic != DispatchHeader::kMagic || header.src != static_cast<int32_t>(rank) ||
        header.epoch != membership_.epoch.value || header.seq != next_seq_ ||
        pairs_bytes > header_bytes_ - sizeof(header)) {
      const Rank source{static_cast<int32_t>(rank)};
      return Fail(WithSuspects(
          absl::FailedPreconditionError(absl::StrCat("rank ",
                                                     rank,
                                                     " dispatched as number ",
                                                     header.seq,
                                                     " of epoch ",
                                                     header.epoch,
                                                     " with ",
                                                     header.pairs,
                                                     " pairs, this rank expects number ",
                                                     next_seq_,
                                                     " of epoch ",
                                                     membership_.epoch.value)),
          {&source, 1}));
    }
    rows_from_[rank] = header.rows;
    const absl::Status added =
        builder_.Add(header.rows, {place + sizeof(header), pairs_bytes}, arrivals);
    if (!added.ok()) return Fail(added);
  }
  ++next_seq_;
  builder_.Finish(arrivals);
  arrivals->rows = MakeTensor(received_.data(),
                              DType::kBf16,
                              static_cast<int64_t>(builder_.num_rows()),
                              limits_.row_bytes / DTypeBytes(DType::kBf16));
  return absl::OkStatus();
}

// Brings the rows of all sources side by side into received_.
absl::Status NcclExchange::MoveRows(const Route& route,
                                    const TensorView& outgoing,
                                    absl::Time deadline) {
  const auto* sent = static_cast<const std::byte*>(outgoing.data);
  std::vector<NcclTransfer> transfers;
  std::byte* place = received_.data();
  for (size_t rank = 0; rank < num_ranks(); ++rank) {
    const size_t bytes = size_t{rows_from_[rank]} * row_bytes_;
    const size_t first = Size(route.rank_rows[rank]) * row_bytes_;
    const size_t sent_bytes = Size(route.rank_rows[rank + 1]) * row_bytes_ - first;
    if (rank == self()) {
      stream_.Copy(place, sent + first, bytes);
    } else {
      if (sent_bytes > 0) transfers.push_back(SendTo(rank, sent + first, sent_bytes));
      if (bytes > 0) transfers.push_back(ReceiveFrom(rank, place, bytes));
    }
    place += bytes;
  }
  RETURN_IF_ERROR(Launch(transfers, "the rows of a dispatch", deadline));
  return HandToBackend("the rows of a dispatch", deadline);
}

// Both sides know the numbers from the dispatch, so the messages have the exact size.
absl::Status NcclExchange::Combine(const Route& route,
                                   const Arrivals& arrivals,
                                   const TensorView& expert_out,
                                   const TensorView& returned,
                                   absl::Time deadline) {
  RETURN_IF_ERROR(Health());
  CHECK_EQ(arrivals.source_pairs.size(), num_ranks() + 1);
  CHECK_GE(expert_out.rows, arrivals.num_pairs());
  CHECK_GE(returned.rows, static_cast<int64_t>(route.return_rows.size()));
  const auto* results = static_cast<const std::byte*>(expert_out.data);
  std::vector<NcclTransfer> transfers;
  for (size_t rank = 0; rank < num_ranks(); ++rank) {
    const size_t first = Size(arrivals.source_pairs[rank]) * row_bytes_;
    const size_t bytes = Size(arrivals.source_pairs[rank + 1]) * row_bytes_ - first;
    const size_t home_first = Size(route.rank_pairs[rank]) * row_bytes_;
    const size_t home_bytes = Size(route.rank_pairs[rank + 1]) * row_bytes_ - home_first;
    if (rank == self()) {
      CHECK_EQ(bytes, home_bytes);
      stream_.Copy(home_.data() + home_first, results + first, bytes);
      continue;
    }
    if (bytes > 0) transfers.push_back(SendTo(rank, results + first, bytes));
    if (home_bytes > 0) {
      transfers.push_back(ReceiveFrom(rank, home_.data() + home_first, home_bytes));
    }
  }
  RETURN_IF_ERROR(Launch(transfers, "a combine", deadline));
  home_index_.assign(route.return_rows.size(), -1);
  for (size_t i = 0; i < route.return_rows.size(); ++i) {
    const size_t place = Size(route.return_rows[i]);
    CHECK_LT(place, home_index_.size());
    home_index_[place] = static_cast<int32_t>(i);
  }
  stream_.Gather(returned.data,
                 home_.data(),
                 home_index_.data(),
                 static_cast<int64_t>(home_index_.size()),
                 limits_.row_bytes);
  return HandToBackend("a combine", deadline);
}

absl::Status NcclExchange::LaunchSlots(const void* send,
                                       void* receive,
                                       int64_t slot_bytes,
                                       absl::Time deadline) {
  const size_t bytes = Size(slot_bytes);
  std::vector<NcclTransfer> transfers;
  for (size_t rank = 0; rank < num_ranks(); ++rank) {
    const auto* const from = static_cast<const std::byte*>(send) + rank * bytes;
    auto* const to = static_cast<std::byte*>(receive) + rank * bytes;
    if (rank == self()) {
      stream_.Copy(to, from, bytes);
      continue;
    }
    transfers.push_back(SendTo(rank, from, bytes));
    transfers.push_back(ReceiveFrom(rank, to, bytes));
  }
  RETURN_IF_ERROR(Launch(transfers, "a round of slots", deadline));
  return HandToBackend("a round of slots", deadline);
}

absl::Status NcclExchange::Settle(absl::Time deadline) {
  stream_.Read(guard_read_.data(), guard_.data(), sizeof(SlotGuard));
  RETURN_IF_ERROR(Await("the slots of a step", deadline));
  SlotGuard guard;
  std::memcpy(&guard, guard_read_.data(), sizeof(guard));
  if (guard.fault == 0) return absl::OkStatus();
  const Rank source{guard.fault - 1};
  return Fail(WithSuspects(
      absl::FailedPreconditionError(absl::StrCat("a slot of rank ",
                                                 source.value,
                                                 " was not of its round, or for an expert that is "
                                                 "not held here: before round ",
                                                 guard.seq,
                                                 " of epoch ",
                                                 guard.epoch)),
      {&source, 1}));
}

absl::Status NcclExchange::Launch(const std::vector<NcclTransfer>& transfers,
                                  const std::string& what,
                                  absl::Time deadline) {
  if (transfers.empty()) return Health();
  const absl::Time start = absl::Now();
  const absl::Status status = comm_.Launch(transfers, what, deadline);
  waited_ += absl::Now() - start;
  return status.ok() ? status : Annotate(status);
}

absl::Status NcclExchange::HandToBackend(const std::string& what, absl::Time deadline) {
  return stream_.is_compute_stream() ? Health() : Await(what, deadline);
}

absl::Status NcclExchange::Await(const std::string& what, absl::Time deadline) {
  const absl::Time start = absl::Now();
  const absl::Status status = comm_.AwaitStream(what, deadline);
  waited_ += absl::Now() - start;
  return status.ok() ? status : Annotate(status);
}

void NcclExchange::Abort(absl::Status cause) {
  comm_.Fail(cause.ok() ? absl::AbortedError("the exchange was aborted") : cause);
}

absl::Status NcclExchange::Health() const {
  const absl::Status status = comm_.status();
  return status.ok() ? status : Annotate(status);
}

std::vector<Rank> NcclExchange::suspects() const {
  return SuspectsOf(Health());
}

absl::Duration NcclExchange::TakeWaitTime() {
  return std::exchange(waited_, absl::ZeroDuration());
}

absl::Status NcclExchange::Fail(const absl::Status& status) {
  comm_.Fail(status);
  return Health();
}

// NCCL does not say which rank it misses. In a cell of two it can only be the other one.
absl::Status NcclExchange::Annotate(const absl::Status& status) const {
  const bool is_peers_fault = absl::IsUnavailable(status) || absl::IsDeadlineExceeded(status);
  if (!is_peers_fault || num_ranks() != 2 || !SuspectsOf(status).empty()) return status;
  const Rank other{1 - membership_.self.value};
  return WithSuspects(status, {&other, 1});
}

}  // namespace shoal
