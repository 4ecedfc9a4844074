#include "worker/exchange/arrivals.h"

#include <algorithm>
#include <cstring>

#include "absl/strings/str_cat.h"

#include "base/check.h"
#include "worker/exchange/suspects.h"

namespace shoal {
namespace {

static_assert(sizeof(RoutedPair) == 8, "a RoutedPair travels as it lies in memory");

int32_t CountLocal(const std::vector<int32_t>& local_index) {
  const auto last = std::ranges::max_element(local_index);
  return last == local_index.end() ? 0 : *last + 1;
}

}  // namespace

absl::Status CheckMembership(const Membership& membership, const ExchangeLimits& limits) {
  const auto num_ranks = static_cast<int64_t>(membership.members.size());
  if (membership.self.value < 0 || membership.self.value >= num_ranks) {
    return absl::InvalidArgumentError(
        absl::StrCat("rank ", membership.self.value, " in a cell of ", num_ranks, " ranks"));
  }
  if (limits.max_rows < 1 || limits.experts_per_token < 1 || limits.row_bytes < 1) {
    return absl::InvalidArgumentError(absl::StrCat("limits of an exchange must be positive: rows ",
                                                   limits.max_rows,
                                                   ", experts per token ",
                                                   limits.experts_per_token,
                                                   ", bytes per row ",
                                                   limits.row_bytes));
  }
  return absl::OkStatus();
}

absl::Status CheckRoute(const Route& route,
                        const TensorView& outgoing,
                        const ExchangeLimits& limits,
                        int32_t max_rows,
                        size_t num_ranks) {
  CHECK_EQ(route.rank_rows.size(), num_ranks + 1);
  CHECK_EQ(route.rank_pairs.size(), num_ranks + 1);
  CHECK_EQ(outgoing.rows, static_cast<int64_t>(route.send_rows.size()));
  if (outgoing.rows > 0) {
    CHECK_EQ(outgoing.cols * DTypeBytes(outgoing.dtype), limits.row_bytes);
    CHECK_EQ(outgoing.stride, outgoing.cols);
  }
  for (size_t rank = 0; rank < num_ranks; ++rank) {
    const int64_t rows = route.rank_rows[rank + 1] - route.rank_rows[rank];
    const int64_t pairs = route.rank_pairs[rank + 1] - route.rank_pairs[rank];
    if (rows <= max_rows && pairs <= rows * limits.experts_per_token) continue;
    return absl::InvalidArgumentError(absl::StrCat("a dispatch of ",
                                                   rows,
                                                   " rows with ",
                                                   pairs,
                                                   " pairs exceeds the limit of ",
                                                   max_rows,
                                                   " rows with ",
                                                   limits.experts_per_token,
                                                   " pairs each"));
  }
  return absl::OkStatus();
}

ArrivalsBuilder::ArrivalsBuilder(const Membership& membership, const ExchangeLimits& limits)
    : local_index_(membership.local_index),
      limits_(limits),
      num_ranks_(membership.members.size()),
      num_local_(CountLocal(local_index_)) {
  const size_t max_pairs = num_ranks_ * static_cast<size_t>(limits.max_rows) *
                           static_cast<size_t>(limits.experts_per_token);
  experts_.reserve(max_pairs);
  pair_rows_.reserve(max_pairs);
}

void ArrivalsBuilder::Begin(Arrivals* arrivals) {
  arrivals->source_pairs.assign(num_ranks_ + 1, 0);
  experts_.clear();
  pair_rows_.clear();
  num_sources_ = 0;
  num_rows_ = 0;
}

absl::Status ArrivalsBuilder::Add(uint32_t num_rows,
                                  std::span<const std::byte> pairs,
                                  Arrivals* arrivals) {
  const Rank source{static_cast<int32_t>(num_sources_++)};
  const auto refuse = [&](absl::string_view what) {
    return WithSuspects(
        absl::FailedPreconditionError(absl::StrCat("rank ", source.value, " dispatched ", what)),
        {&source, 1});
  };
  const size_t num_pairs = pairs.size() / sizeof(RoutedPair);
  if (num_rows > static_cast<uint32_t>(limits_.max_rows) ||
      num_pairs > size_t{num_rows} * static_cast<size_t>(limits_.experts_per_token)) {
    return refuse(absl::StrCat(num_rows,
                               " rows and ",
                               num_pairs,
                               " pairs; the limits are ",
                               limits_.max_rows,
                               " rows with ",
                               limits_.experts_per_token,
                               " pairs each"));
  }
  for (size_t i = 0; i < num_pairs; ++i) {
    RoutedPair pair;
    std::memcpy(&pair, pairs.data() + i * sizeof(pair), sizeof(pair));
    if (pair.message_row >= num_rows) return refuse("a pair of a row that it did not send");
    const bool is_known =
        pair.expert >= 0 && static_cast<size_t>(pair.expert) < local_index_.size();
    if (!is_known || local_index_[static_cast<size_t>(pair.expert)] < 0) {
      return refuse(absl::StrCat("a row for expert ", pair.expert, ", which is not held here"));
    }
    experts_.push_back(pair.expert);
    pair_rows_.push_back(static_cast<int32_t>(num_rows_ + pair.message_row));
  }
  num_rows_ += num_rows;
  arrivals->source_pairs[num_sources_] = static_cast<int32_t>(experts_.size());
  return absl::OkStatus();
}

void ArrivalsBuilder::Finish(Arrivals* arrivals) {
  CHECK_EQ(num_sources_, num_ranks_);
  CHECK(GroupByExpert(experts_, pair_rows_, local_index_, num_local_, arrivals));
}

}  // namespace shoal
