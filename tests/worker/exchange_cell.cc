#include "tests/worker/exchange_cell.h"

#include <algorithm>
#include <numeric>
#include <set>
#include <utility>

#include "absl/base/thread_annotations.h"
#include "absl/strings/str_cat.h"
#include "absl/synchronization/mutex.h"

#include "base/prng.h"
#include "base/status_macros.h"
#include "kernels/cpu/backend.h"

namespace shoal {
namespace {

uint16_t Element(const Traffic& traffic, size_t rank, int32_t row, int32_t column) {
  const uint64_t place = (static_cast<uint64_t>(rank) << 48) ^ (static_cast<uint64_t>(row) << 24) ^
                         static_cast<uint64_t>(column);
  return static_cast<uint16_t>(Mix64(traffic.seed ^ Mix64(place)));
}

uint16_t ExpertOf(uint16_t x, int32_t expert) {
  return static_cast<uint16_t>(x * 3u + static_cast<uint32_t>(expert) * 257u + 1u);
}

Route PlanFor(const CellShape& shape, const Traffic& traffic, size_t rank) {
  Route route;
  PlanRoute(traffic.expert_ids[rank],
            traffic.rows(rank, shape.k),
            shape.k,
            {.ranks_of_expert = traffic.replicas,
             .self = Rank{static_cast<int32_t>(rank)},
             .num_ranks = shape.num_ranks},
            &route);
  return route;
}

// Rows of all sources in rank order, as their routes say.
absl::Status CheckArrivals(const CellShape& shape,
                           const Traffic& traffic,
                           size_t self,
                           const Arrivals& arrivals) {
  int32_t next_row = 0;
  int32_t next_pair = 0;
  for (size_t src = 0; src < traffic.expert_ids.size(); ++src) {
    const Route route = PlanFor(shape, traffic, src);
    for (int32_t i = route.rank_rows[self]; i < route.rank_rows[self + 1]; ++i, ++next_row) {
      if (next_row >= arrivals.rows.rows) return absl::DataLossError("too few rows arrived");
      for (int32_t column = 0; column < shape.hidden; ++column) {
        const uint16_t wanted =
            Element(traffic, src, route.send_rows[static_cast<size_t>(i)], column);
        if (arrivals.rows.row<uint16_t>(next_row)[column] != wanted) {
          return absl::DataLossError(absl::StrCat("arrived row ", next_row, " differs"));
        }
      }
    }
    next_pair += route.rank_pairs[self + 1] - route.rank_pairs[self];
    if (arrivals.source_pairs[src + 1] != next_pair) {
      return absl::DataLossError(absl::StrCat("pairs of source ", src, " differ"));
    }
  }
  if (arrivals.rows.rows != next_row || arrivals.num_pairs() != next_pair) {
    return absl::DataLossError("the number of arrivals differs");
  }
  return absl::OkStatus();
}

// Rows of failed steps: a device may go on with them until the exchange is destroyed, and who
// destroys it is not known here.
class Morgue {
 public:
  void Keep(std::vector<uint16_t> rows) {
    absl::MutexLock lock(&mutex_);
    rows_.push_back(std::move(rows));
  }

 private:
  absl::Mutex mutex_;
  std::vector<std::vector<uint16_t>> rows_ ABSL_GUARDED_BY(mutex_);
};

Morgue& TheMorgue() {
  static auto* const morgue = new Morgue;
  return *morgue;
}

// What comes home: (row, slot) i is row place[i] of `rows`.
absl::Status CheckResults(const CellShape& shape,
                          const Traffic& traffic,
                          size_t self,
                          const std::vector<uint16_t>& rows,
                          const std::vector<int32_t>& place) {
  const std::vector<int32_t>& ids = traffic.expert_ids[self];
  const auto hidden = static_cast<size_t>(shape.hidden);
  for (size_t i = 0; i < ids.size(); ++i) {
    const auto row = static_cast<int32_t>(i) / shape.k;
    for (int32_t c = 0; c < shape.hidden; ++c) {
      const uint16_t wanted = ExpertOf(Element(traffic, self, row, c), ids[i]);
      if (rows[static_cast<size_t>(place[i]) * hidden + static_cast<size_t>(c)] != wanted) {
        return absl::DataLossError(absl::StrCat("returned row ", i, " differs"));
      }
    }
  }
  return absl::OkStatus();
}

// One rank's side of a step in slots.
class SlotSide {
 public:
  SlotSide(const CellShape& shape, const Traffic& traffic, int32_t self, int32_t slot_rows)
      : shape_(shape),
        traffic_(traffic),
        self_(self),
        slots_{.num_ranks = shape.num_ranks,
               .slot_rows = slot_rows,
               .k = shape.k,
               .row_bytes = shape.hidden * 2},
        ids_(traffic.expert_ids[static_cast<size_t>(self)]),
        num_rows_(static_cast<int32_t>(ids_.size()) / shape.k),
        home_(ids_.size()),
        outgoing_(Rows(slots_.num_ranks * slots_.message_rows())),
        incoming_(outgoing_.size()),
        results_(Rows(slots_.num_places())),
        returned_(results_.size()),
        pair_row_(static_cast<size_t>(slots_.num_places())),
        pair_out_(pair_row_.size()) {
    for (const std::vector<Rank>& ranks : traffic.replicas) {
      const bool is_held = std::ranges::count(ranks, Rank{self}) > 0;
      if (is_held) held_.push_back(static_cast<int32_t>(local_index_.size()));
      local_index_.push_back(is_held ? static_cast<int32_t>(held_.size()) - 1 : -1);
      for (size_t i = 0; i < 2; ++i) replicas_.push_back(i < ranks.size() ? ranks[i].value : -1);
    }
    for (int32_t row = 0; row < num_rows_; ++row) {
      for (int32_t c = 0; c < shape.hidden; ++c) {
        x_.push_back(Element(traffic, static_cast<size_t>(self), row, c));
      }
    }
    offsets_.resize(held_.size() + 1);
  }

  // Given up by a step that failed.
  ~SlotSide() {
    for (auto* rows : {&outgoing_, &incoming_, &results_, &returned_}) {
      TheMorgue().Keep(std::move(*rows));
    }
  }

  absl::Status Layer(SlotExchange* exchange, absl::Time deadline) {
    backend_.FillSlots({.ids = MakeTensor(ids_.data(), DType::kI32, num_rows_, shape_.k),
                        .x = View(x_),
                        .table = {.replicas = replicas_.data(),
                                  .num_experts = shape_.num_experts,
                                  .max_replicas = 2,
                                  .self = self_},
                        .shape = slots_,
                        .num_rows = &num_rows_,
                        .guard = exchange->guard(),
                        .messages = View(outgoing_),
                        .home = home_.data()});
    RETURN_IF_ERROR(exchange->LaunchSlots(
        outgoing_.data(), incoming_.data(), slots_.message_bytes(), deadline));
    backend_.GroupSlots({.messages = View(incoming_),
                         .local_index = {.data = local_index_.data(), .size = shape_.num_experts},
                         .shape = slots_,
                         .num_local = static_cast<int32_t>(held_.size()),
                         .guard = exchange->guard(),
                         .expert_offsets = offsets_.data(),
                         .pair_row = pair_row_.data(),
                         .pair_out = pair_out_.data()});
    const auto hidden = static_cast<size_t>(shape_.hidden);
    for (size_t local = 0; local < held_.size(); ++local) {
      for (int32_t i = offsets_[local]; i < offsets_[local + 1]; ++i) {
        const auto p = static_cast<size_t>(i);
        const uint16_t* x = &incoming_[static_cast<size_t>(pair_row_[p]) * hidden];
        uint16_t* y = &results_[static_cast<size_t>(pair_out_[p]) * hidden];
        for (size_t c = 0; c < hidden; ++c) y[c] = ExpertOf(x[c], held_[local]);
      }
    }
    RETURN_IF_ERROR(
        exchange->LaunchSlots(results_.data(), returned_.data(), slots_.result_bytes(), deadline));
    return CheckResults(shape_, traffic_, static_cast<size_t>(self_), returned_, home_);
  }

 private:
  std::vector<uint16_t> Rows(int32_t count) const {
    return std::vector<uint16_t>(static_cast<size_t>(count) * static_cast<size_t>(shape_.hidden));
  }

  TensorView View(std::vector<uint16_t>& rows) const {
    const auto count = static_cast<int64_t>(rows.size()) / shape_.hidden;
    return MakeTensor(rows.data(), DType::kBf16, count, shape_.hidden);
  }

  const CellShape& shape_;
  const Traffic& traffic_;
  const int32_t self_;
  const SlotShape slots_;
  std::vector<int32_t> ids_;
  const int32_t num_rows_;
  std::vector<int32_t> home_;
  std::vector<int32_t> held_;  // [local] -> expert
  std::vector<int32_t> local_index_, replicas_, offsets_;
  std::vector<uint16_t> x_, outgoing_, incoming_, results_, returned_;
  std::vector<int32_t> pair_row_, pair_out_;
  CpuBackend backend_{CpuBackendOptions{}};
};

}  // namespace

Traffic RandomTraffic(const CellShape& shape,
                      const std::vector<int32_t>& rows_of_rank,
                      uint64_t seed) {
  Prng prng(seed);
  const auto below = [&prng](int32_t bound) {
    return static_cast<int32_t>(prng.Below(static_cast<uint64_t>(bound)));
  };
  Traffic traffic;
  traffic.seed = seed;
  for (int32_t expert = 0; expert < shape.num_experts; ++expert) {
    const std::set<Rank> ranks = {Rank{below(shape.num_ranks)}, Rank{below(shape.num_ranks)}};
    traffic.replicas.emplace_back(ranks.begin(), ranks.end());
  }
  for (const int32_t rows : rows_of_rank) {
    std::vector<int32_t>& ids = traffic.expert_ids.emplace_back();
    for (int32_t row = 0; row < rows; ++row) {
      std::set<int32_t> chosen;
      while (chosen.size() < static_cast<size_t>(shape.k)) chosen.insert(below(shape.num_experts));
      ids.insert(ids.end(), chosen.rbegin(), chosen.rend());
    }
  }
  return traffic;
}

Membership MakeMembership(const std::vector<std::string>& endpoints,
                          uint64_t epoch,
                          int32_t self,
                          const std::vector<std::vector<Rank>>& replicas) {
  Membership membership{.cell = CellId{3}, .epoch = Epoch{epoch}, .self = Rank{self}};
  for (size_t rank = 0; rank < endpoints.size(); ++rank) {
    membership.members.push_back({.worker = WorkerId{static_cast<uint32_t>(rank)},
                                  .incarnation = Incarnation{100 + rank},
                                  .exchange_endpoint = endpoints[rank],
                                  .host = "here"});
  }
  Prng prng(epoch);
  for (uint8_t& byte : membership.key) byte = static_cast<uint8_t>(prng.Next());
  int32_t num_local = 0;
  for (const std::vector<Rank>& ranks : replicas) {
    const bool is_held = std::ranges::count(ranks, Rank{self}) > 0;
    membership.local_index.push_back(is_held ? num_local++ : -1);
  }
  return membership;
}

absl::Status RunStep(const CellShape& shape,
                     const Traffic& traffic,
                     int32_t self,
                     Exchange* exchange,
                     absl::Time deadline) {
  const auto me = static_cast<size_t>(self);
  const auto hidden = static_cast<size_t>(shape.hidden);
  const Route route = PlanFor(shape, traffic, me);
  std::vector<uint16_t> outgoing;
  for (const int32_t row : route.send_rows) {
    for (int32_t c = 0; c < shape.hidden; ++c) outgoing.push_back(Element(traffic, me, row, c));
  }
  absl::StatusOr<Arrivals> dispatched =
      exchange->Dispatch(route,
                         MakeTensor(outgoing.data(),
                                    DType::kBf16,
                                    static_cast<int64_t>(route.send_rows.size()),
                                    shape.hidden),
                         deadline);
  if (!dispatched.ok()) {
    TheMorgue().Keep(std::move(outgoing));
    return dispatched.status();
  }
  const Arrivals& arrivals = *dispatched;
  RETURN_IF_ERROR(CheckArrivals(shape, traffic, me, arrivals));

  // The experts held here, in local order, each over its group of pairs.
  const auto num_pairs = static_cast<size_t>(arrivals.num_pairs());
  std::vector<uint16_t> expert_out(num_pairs * hidden);
  size_t local = 0;
  for (size_t expert = 0; expert < traffic.replicas.size(); ++expert) {
    if (std::ranges::count(traffic.replicas[expert], Rank{self}) == 0) continue;
    for (auto i = static_cast<size_t>(arrivals.expert_offsets[local]);
         i < static_cast<size_t>(arrivals.expert_offsets[local + 1]);
         ++i) {
      const auto* x = arrivals.rows.row<uint16_t>(arrivals.pair_rows[i]);
      uint16_t* y = expert_out.data() + static_cast<size_t>(arrivals.pair_outs[i]) * hidden;
      for (size_t c = 0; c < hidden; ++c) y[c] = ExpertOf(x[c], static_cast<int32_t>(expert));
    }
    ++local;
  }

  const std::vector<int32_t>& ids = traffic.expert_ids[me];
  std::vector<uint16_t> returned(ids.size() * hidden, 0xdead);
  const absl::Status combined = exchange->Combine(
      route,
      arrivals,
      MakeTensor(expert_out.data(), DType::kBf16, static_cast<int64_t>(num_pairs), shape.hidden),
      MakeTensor(returned.data(), DType::kBf16, static_cast<int64_t>(ids.size()), shape.hidden),
      deadline);
  if (!combined.ok()) {
    TheMorgue().Keep(std::move(expert_out));
    TheMorgue().Keep(std::move(returned));
    return combined;
  }
  std::vector<int32_t> in_order(ids.size());
  std::iota(in_order.begin(), in_order.end(), 0);
  return CheckResults(shape, traffic, me, returned, in_order);
}

absl::Status RunSlotStep(const CellShape& shape,
                         const Traffic& traffic,
                         int32_t self,
                         Exchange* exchange,
                         int32_t layers,
                         absl::Time deadline) {
  int32_t most_rows = 0;
  for (size_t rank = 0; rank < traffic.expert_ids.size(); ++rank) {
    most_rows = std::max(most_rows, traffic.rows(rank, shape.k));
  }
  SlotSide side(shape, traffic, self, exchange->BeginStep(most_rows).slot_rows);
  for (int32_t layer = 0; layer < layers; ++layer) {
    RETURN_IF_ERROR(side.Layer(exchange->slots(), deadline));
  }
  return exchange->slots()->Settle(deadline);
}

}  // namespace shoal
