#include "worker/exchange/host_exchange.h"

#include <algorithm>
#include <cstring>
#include <span>
#include <utility>

#include "absl/strings/str_cat.h"

#include "base/check.h"
#include "base/status_macros.h"
#include "worker/exchange/suspects.h"

namespace shoal {
namespace {

size_t Size(int64_t count) {
  CHECK_GE(count, 0);
  return static_cast<size_t>(count);
}

// Rows [first, last) of a dense matrix of `row_bytes` wide rows.
std::span<const std::byte> RowBytes(const TensorView& rows,
                                    int32_t first,
                                    int32_t last,
                                    size_t row_bytes) {
  if (first == last) return {};
  const auto* data = static_cast<const std::byte*>(rows.data);
  return {data + Size(first) * row_bytes, Size(last - first) * row_bytes};
}

void CheckDense(const TensorView& rows, const ExchangeLimits& limits) {
  if (rows.rows == 0) return;
  CHECK_EQ(rows.cols * DTypeBytes(rows.dtype), limits.row_bytes);
  CHECK_EQ(rows.stride, rows.cols);
}

}  // namespace

// Dispatch: each rank may send all its rows, each with k pairs. Combine: each may hold all k
// experts of all rows here, but rows * k results come home in total.
RoundBytes MaxRoundBytes(const ExchangeLimits& limits, size_t num_ranks) {
  const size_t rows = Size(limits.max_rows);
  const size_t k = Size(limits.experts_per_token);
  const size_t row_bytes = Size(limits.row_bytes);
  const size_t dispatch = rows * (row_bytes + k * sizeof(RoutedPair));
  const size_t combine = rows * k * row_bytes;
  return {.one = std::max(dispatch, combine), .all = std::max(num_ranks * dispatch, combine)};
}

HostExchange::HostExchange(Membership membership,
                           const ExchangeLimits& limits,
                           std::unique_ptr<Transport> transport)
    : membership_(std::move(membership)),
      limits_(limits),
      transport_(std::move(transport)),
      // Not initialised: pages that no row ever reaches cost nothing.
      received_(transport_ == nullptr
                    ? nullptr
                    : new std::byte[num_ranks() * Size(limits.max_rows) * Size(limits.row_bytes)]),
      out_(num_ranks()),
      in_(num_ranks()),
      builder_(membership_, limits) {
  CHECK_EQ(transport_ == nullptr, num_ranks() == 1);
}

absl::Status HostExchange::Open(absl::Time deadline) {
  return AllToAll(ExchangeOp::kOpen, deadline);
}

absl::StatusOr<Arrivals> HostExchange::Dispatch(const Route& route,
                                                const TensorView& outgoing,
                                                absl::Time deadline) {
  RETURN_IF_ERROR(Health());
  absl::Status checked = CheckRoute(route, outgoing, limits_, limits_.max_rows, num_ranks());
  if (!checked.ok()) return Fail(std::move(checked));
  const size_t row_bytes = Size(limits_.row_bytes);
  const size_t k = Size(limits_.experts_per_token);
  for (size_t rank = 0; rank < num_ranks(); ++rank) {
    const int32_t first_pair = route.rank_pairs[rank];
    const auto pairs =
        std::span(route.pairs)
            .subspan(Size(first_pair), Size(route.rank_pairs[rank + 1] - first_pair));
    out_[rank].parts = {
        std::as_bytes(pairs),
        RowBytes(outgoing, route.rank_rows[rank], route.rank_rows[rank + 1], row_bytes)};
    out_[rank].header.rows =
        static_cast<uint32_t>(route.rank_rows[rank + 1] - route.rank_rows[rank]);
    out_[rank].header.pairs = static_cast<uint32_t>(pairs.size());
    in_[rank].max_bytes = Size(limits_.max_rows) * (row_bytes + k * sizeof(RoutedPair));
  }
  RETURN_IF_ERROR(AllToAll(ExchangeOp::kDispatch, deadline));
  Arrivals arrivals;
  if (absl::Status status = Gather(route, outgoing, &arrivals); !status.ok()) return Fail(status);
  return arrivals;
}

absl::Status HostExchange::Combine(const Route& route,
                                   const Arrivals& arrivals,
                                   const TensorView& expert_out,
                                   const TensorView& returned,
                                   absl::Time deadline) {
  RETURN_IF_ERROR(Health());
  CheckDense(expert_out, limits_);
  CheckDense(returned, limits_);
  CHECK_EQ(arrivals.source_pairs.size(), num_ranks() + 1);
  CHECK_GE(expert_out.rows, arrivals.num_pairs());
  CHECK_GE(returned.rows, static_cast<int64_t>(route.return_rows.size()));
  const size_t row_bytes = Size(limits_.row_bytes);
  for (size_t rank = 0; rank < num_ranks(); ++rank) {
    const int32_t first = arrivals.source_pairs[rank];
    const int32_t last = arrivals.source_pairs[rank + 1];
    out_[rank].parts = {RowBytes(expert_out, first, last, row_bytes)};
    out_[rank].header.rows = static_cast<uint32_t>(last - first);
    out_[rank].header.pairs = 0;
    in_[rank].max_bytes = Size(route.rank_pairs[rank + 1] - route.rank_pairs[rank]) * row_bytes;
  }
  RETURN_IF_ERROR(AllToAll(ExchangeOp::kCombine, deadline));
  absl::Status status = Scatter(route, arrivals, expert_out, returned);
  return status.ok() ? status : Fail(std::move(status));
}

absl::Status HostExchange::AllToAll(ExchangeOp op, absl::Time deadline) {
  RETURN_IF_ERROR(Health());
  const uint64_t seq = next_seq_++;
  if (transport_ == nullptr) return absl::OkStatus();
  for (size_t rank = 0; rank < num_ranks(); ++rank) {
    FrameHeader& header = out_[rank].header;
    header.op = op;
    header.epoch = membership_.epoch.value;
    header.seq = seq;
    header.bytes = out_[rank].bytes();
    header.src = membership_.self.value;
    header.dst = static_cast<int32_t>(rank);
  }
  Round round{.out = out_, .in = in_, .deadline = deadline, .waited = absl::ZeroDuration()};
  absl::Status status = transport_->AllToAll(&round);
  waited_ += round.waited;
  return status.ok() ? status : Fail(std::move(status));
}

// Rows of all sources side by side, sources rising, and their pairs by local expert.
absl::Status HostExchange::Gather(const Route& route,
                                  const TensorView& outgoing,
                                  Arrivals* arrivals) {
  const size_t row_bytes = Size(limits_.row_bytes);
  builder_.Begin(arrivals);
  for (size_t rank = 0; rank < num_ranks(); ++rank) {
    const bool is_self = rank == self();
    const FrameHeader& header = is_self ? out_[rank].header : in_[rank].header;
    std::span<const std::byte> pairs = out_[rank].parts[0];
    std::span<const std::byte> rows = out_[rank].parts[1];
    if (!is_self) {
      const size_t pairs_bytes = header.pairs * sizeof(RoutedPair);
      if (in_[rank].body.size() != pairs_bytes + header.rows * row_bytes) {
        const Rank source{static_cast<int32_t>(rank)};
        return WithSuspects(absl::FailedPreconditionError(absl::StrCat("rank ",
                                                                       rank,
                                                                       " dispatched ",
                                                                       in_[rank].body.size(),
                                                                       " bytes with ",
                                                                       header.rows,
                                                                       " rows and ",
                                                                       header.pairs,
                                                                       " pairs")),
                            {&source, 1});
      }
      pairs = in_[rank].body.first(pairs_bytes);
      rows = in_[rank].body.subspan(pairs_bytes);
    }
    const size_t first_row = builder_.num_rows();
    RETURN_IF_ERROR(builder_.Add(header.rows, pairs, arrivals));
    if (transport_ != nullptr && !rows.empty()) {
      std::memcpy(received_.get() + first_row * row_bytes, rows.data(), rows.size());
    }
  }
  arrivals->rows = MakeTensor(transport_ == nullptr ? outgoing.data : received_.get(),
                              DType::kBf16,
                              static_cast<int64_t>(builder_.num_rows()),
                              limits_.row_bytes / DTypeBytes(DType::kBf16));
  builder_.Finish(arrivals);
  CHECK_EQ(Size(route.rank_rows[self() + 1] - route.rank_rows[self()]),
           size_t{out_[self()].header.rows});
  return absl::OkStatus();
}

absl::Status HostExchange::Scatter(const Route& route,
                                   const Arrivals& arrivals,
                                   const TensorView& expert_out,
                                   const TensorView& returned) const {
  const size_t row_bytes = Size(limits_.row_bytes);
  auto* home = static_cast<std::byte*>(returned.data);
  for (size_t rank = 0; rank < num_ranks(); ++rank) {
    const size_t first = Size(route.rank_pairs[rank]);
    const size_t count = Size(route.rank_pairs[rank + 1]) - first;
    std::span<const std::byte> rows = rank == self() ? RowBytes(expert_out,
                                                                arrivals.source_pairs[rank],
                                                                arrivals.source_pairs[rank + 1],
                                                                row_bytes)
                                                     : in_[rank].body;
    if (rows.size() != count * row_bytes) {
      const Rank source{static_cast<int32_t>(rank)};
      return WithSuspects(
          absl::FailedPreconditionError(absl::StrCat(
              "rank ", rank, " returned ", rows.size(), " bytes for ", count, " pairs")),
          {&source, 1});
    }
    for (size_t i = 0; i < count; ++i) {
      const size_t place = Size(route.return_rows[first + i]);
      CHECK_LT(place, Size(returned.rows));
      std::memcpy(home + place * row_bytes, rows.data() + i * row_bytes, row_bytes);
    }
  }
  return absl::OkStatus();
}

void HostExchange::Abort(absl::Status cause) {
  if (cause.ok()) cause = absl::AbortedError("the exchange was aborted");
  Fail(std::move(cause)).IgnoreError();  // The caller knows the cause.
  if (transport_ != nullptr) transport_->Wake();
}

absl::Status HostExchange::Health() const {
  absl::MutexLock lock(&mutex_);
  return status_;
}

std::vector<Rank> HostExchange::suspects() const {
  return SuspectsOf(Health());
}

absl::Duration HostExchange::TakeWaitTime() {
  return std::exchange(waited_, absl::ZeroDuration());
}

absl::Status HostExchange::Fail(absl::Status status) {
  absl::MutexLock lock(&mutex_);
  if (status_.ok()) status_ = std::move(status);
  return status_;
}

absl::StatusOr<std::unique_ptr<Exchange>> HostExchangeFactory::Create(const Membership& membership,
                                                                      const ExchangeLimits& limits,
                                                                      absl::Time deadline) {
  RETURN_IF_ERROR(CheckMembership(membership, limits));
  if (membership.members.size() == 1) {
    return std::make_unique<HostExchange>(membership, limits, nullptr);
  }
  ArmConnect();
  {
    absl::MutexLock lock(&mutex_);
    is_creating_ = true;
    is_aborted_ = false;
  }
  std::unique_ptr<HostExchange> exchange;
  absl::StatusOr<std::unique_ptr<Transport>> transport = Connect(membership, limits, deadline);
  absl::Status status = transport.status();
  if (status.ok()) {
    exchange = std::make_unique<HostExchange>(membership, limits, *std::move(transport));
    {
      absl::MutexLock lock(&mutex_);
      opening_ = exchange.get();
      if (is_aborted_) status = absl::AbortedError("the creation of the exchange was aborted");
    }
    if (status.ok()) status = exchange->Open(deadline);
  }
  {
    absl::MutexLock lock(&mutex_);
    is_creating_ = false;
    opening_ = nullptr;
  }
  if (!status.ok()) return status;
  return exchange;
}

void HostExchangeFactory::AbortCreate() {
  absl::MutexLock lock(&mutex_);
  if (!is_creating_) return;
  is_aborted_ = true;
  WakeConnect();
  if (opening_ != nullptr) {
    opening_->Abort(absl::AbortedError("the creation of the exchange was aborted"));
  }
}

}  // namespace shoal
