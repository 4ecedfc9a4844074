// A dispatch that a device plans into slots (route_math.h, and the CPU backend's FillSlots and
// GroupSlots, which are the CUDA backend's specification), against route.cc.
#include "kernels/route_math.h"

#include <algorithm>
#include <cstring>
#include <memory>
#include <vector>

#include "gtest/gtest.h"

#include "kernels/checked_backend.h"
#include "kernels/cpu/backend.h"
#include "kernels/numeric.h"
#include "tests/worker/exchange_cell.h"
#include "worker/exchange/route.h"

namespace shoal {
namespace {

constexpr int32_t kReplicas = 2;  // At most
constexpr uint64_t kEpoch = 11;
constexpr int32_t kUntouched = -7;

IndexView Index(const std::vector<int32_t>& values) {
  return {.data = values.data(), .size = static_cast<int64_t>(values.size())};
}

// All ranks of a cell in one round: their routes, and their messages in slots.
struct Cell {
  struct Rank {
    Route route;
    std::vector<Bf16> x;         // [rows, hidden]
    std::vector<Bf16> messages;  // [ranks * message_rows, hidden]
    std::vector<int32_t> home;   // [rows * k]
    std::vector<int32_t> local_index;
    int32_t num_local = 0;
    SlotGuard guard{.epoch = kEpoch};
  };

  CellShape shape;
  SlotShape slots;
  Traffic traffic;
  std::vector<int32_t> replicas;
  std::vector<Rank> ranks;
  std::unique_ptr<Backend> backend =
      std::make_unique<CheckedBackend>(std::make_unique<CpuBackend>(CpuBackendOptions{}));

  Cell(int32_t num_ranks, uint64_t seed)
      : shape{.num_ranks = num_ranks, .max_rows = 16},
        slots{.num_ranks = num_ranks, .slot_rows = 16, .k = shape.k, .row_bytes = shape.hidden * 2},
        ranks(static_cast<size_t>(num_ranks)) {
    std::vector<int32_t> rows;
    for (int32_t rank = 0; rank < num_ranks; ++rank) {
      rows.push_back(static_cast<int32_t>((seed * 7 + static_cast<uint64_t>(rank) * 5) % 17));
    }
    traffic = RandomTraffic(shape, rows, seed);
    for (const std::vector<shoal::Rank>& holders : traffic.replicas) {
      for (size_t i = 0; i < kReplicas; ++i) {
        replicas.push_back(i < holders.size() ? holders[i].value : -1);
      }
    }
    for (int32_t self = 0; self < num_ranks; ++self) Fill(self);
  }

  // The row of a message, heads included.
  TensorView View(std::vector<Bf16>& messages) const {
    return MakeTensor(messages.data(),
                      DType::kBf16,
                      int64_t{slots.num_ranks} * slots.message_rows(),
                      shape.hidden);
  }

  void Fill(int32_t self) {
    const auto r = static_cast<size_t>(self);
    Rank& rank = ranks[r];
    for (const std::vector<shoal::Rank>& holders : traffic.replicas) {
      const bool is_held = std::ranges::count(holders, shoal::Rank{self}) > 0;
      rank.local_index.push_back(is_held ? rank.num_local++ : -1);
    }
    const int32_t num_rows = traffic.rows(r, shape.k);
    PlanRoute(traffic.expert_ids[r],
              num_rows,
              shape.k,
              {.ranks_of_expert = traffic.replicas,
               .self = shoal::Rank{self},
               .num_ranks = shape.num_ranks},
              &rank.route);
    for (int32_t i = 0; i < num_rows * shape.hidden; ++i) {
      rank.x.push_back(Bf16{static_cast<uint16_t>(self * 10'000 + i)});
    }
    rank.messages.resize(static_cast<size_t>(slots.num_ranks * slots.message_rows()) *
                         static_cast<size_t>(shape.hidden));
    // Padded, as a step that is repeated: what is behind the rows that exist may be anything.
    std::vector<int32_t> ids = traffic.expert_ids[r];
    ids.resize(static_cast<size_t>(slots.slot_rows * shape.k), kUntouched);
    rank.x.resize(static_cast<size_t>(slots.slot_rows * shape.hidden));
    rank.home.assign(ids.size(), kUntouched);
    backend->FillSlots({.ids = MakeTensor(ids.data(), DType::kI32, slots.slot_rows, shape.k),
                        .x = MakeTensor(rank.x.data(), DType::kBf16, slots.slot_rows, shape.hidden),
                        .table = {.replicas = replicas.data(),
                                  .num_experts = shape.num_experts,
                                  .max_replicas = kReplicas,
                                  .self = self},
                        .shape = slots,
                        .num_rows = &num_rows,
                        .guard = &rank.guard,
                        .messages = View(rank.messages),
                        .home = rank.home.data()});
  }

  std::byte* Message(std::vector<Bf16>& messages, int32_t rank) const {
    return reinterpret_cast<std::byte*>(messages.data()) + rank * slots.message_bytes();
  }

  SlotHeader Header(std::vector<Bf16>& messages, int32_t rank) const {
    SlotHeader header;
    std::memcpy(&header, Message(messages, rank), sizeof(header));
    return header;
  }

  int32_t* Experts(std::vector<Bf16>& messages, int32_t rank) const {
    return reinterpret_cast<int32_t*>(Message(messages, rank) + sizeof(SlotHeader));
  }

  // What the exchange brings to `self`.
  std::vector<Bf16> Arrivals(int32_t self) {
    std::vector<Bf16> all(ranks[0].messages.size());
    for (int32_t src = 0; src < shape.num_ranks; ++src) {
      std::memcpy(Message(all, src),
                  Message(ranks[static_cast<size_t>(src)].messages, self),
                  static_cast<size_t>(slots.message_bytes()));
    }
    return all;
  }

  struct Groups {
    std::vector<int32_t> offsets, pair_row, pair_out;
  };

  Groups Group(int32_t self, std::vector<Bf16> arrivals) {
    Rank& rank = ranks[static_cast<size_t>(self)];
    Groups groups;
    groups.offsets.assign(static_cast<size_t>(rank.num_local) + 1, kUntouched);
    groups.pair_row.assign(static_cast<size_t>(slots.num_places()), kUntouched);
    groups.pair_out = groups.pair_row;
    backend->GroupSlots({.messages = View(arrivals),
                         .local_index = Index(rank.local_index),
                         .shape = slots,
                         .num_local = rank.num_local,
                         .guard = &rank.guard,
                         .expert_offsets = groups.offsets.data(),
                         .pair_row = groups.pair_row.data(),
                         .pair_out = groups.pair_out.data()});
    return groups;
  }
};

TEST(RouteMathTest, SlotsHoldTheRowsAndPairsOfTheRoute) {
  for (uint64_t seed = 0; seed < 200; ++seed) {
    SCOPED_TRACE(seed);
    Cell cell(1 + static_cast<int32_t>(seed % 6), seed);
    const int32_t k = cell.shape.k;
    const auto hidden = static_cast<size_t>(cell.shape.hidden);
    for (int32_t self = 0; self < cell.shape.num_ranks; ++self) {
      Cell::Rank& mine = cell.ranks[static_cast<size_t>(self)];
      const Route& route = mine.route;
      for (int32_t rank = 0; rank < cell.shape.num_ranks; ++rank) {
        const auto r = static_cast<size_t>(rank);
        const int32_t num_rows = route.rank_rows[r + 1] - route.rank_rows[r];
        const SlotHeader header = cell.Header(mine.messages, rank);
        ASSERT_EQ(header.count, num_rows);
        EXPECT_EQ(header.epoch, kEpoch);
        EXPECT_EQ(header.source, self);
        auto pair = static_cast<size_t>(route.rank_pairs[r]);
        for (int32_t m = 0; m < num_rows; ++m) {
          const int32_t row = route.send_rows[static_cast<size_t>(route.rank_rows[r] + m)];
          const int32_t place = RoutePlace(cell.slots, rank, m, 0);
          const auto sent = static_cast<size_t>(RouteRow(cell.slots, place)) * hidden;
          EXPECT_EQ(std::memcmp(&mine.messages[sent],
                                &mine.x[static_cast<size_t>(row) * hidden],
                                hidden * sizeof(Bf16)),
                    0);
          for (int32_t slot = 0; slot < k; ++slot) {
            const int32_t expert = cell.Experts(mine.messages, rank)[m * k + slot];
            if (expert == kNoExpert) continue;
            ASSERT_LT(pair, static_cast<size_t>(route.rank_pairs[r + 1]));
            EXPECT_EQ(expert, route.pairs[pair].expert);
            EXPECT_EQ(m, static_cast<int32_t>(route.pairs[pair].message_row));
            const auto home = static_cast<size_t>(route.return_rows[pair]);
            EXPECT_EQ(mine.home[home], place + slot);
            ++pair;
          }
        }
        EXPECT_EQ(pair, static_cast<size_t>(route.rank_pairs[r + 1]));
      }
      EXPECT_EQ(std::ranges::count(mine.home, kUntouched), 0);
      const size_t num_pairs = cell.traffic.expert_ids[static_cast<size_t>(self)].size();
      for (size_t i = num_pairs; i < mine.home.size(); ++i) EXPECT_EQ(mine.home[i], 0);
    }
  }
}

// What arrives, sorted by local expert: the same rows for the same experts in the same order as the
// host makes of its messages.
TEST(RouteMathTest, ArrivalsAreGroupedAsTheHostGroupsThem) {
  for (uint64_t seed = 0; seed < 200; ++seed) {
    SCOPED_TRACE(seed);
    Cell cell(1 + static_cast<int32_t>(seed % 6), seed);
    for (int32_t self = 0; self < cell.shape.num_ranks; ++self) {
      Cell::Rank& mine = cell.ranks[static_cast<size_t>(self)];
      std::vector<int32_t> experts, rows;
      for (int32_t src = 0; src < cell.shape.num_ranks; ++src) {
        const Route& route = cell.ranks[static_cast<size_t>(src)].route;
        for (int32_t p = route.rank_pairs[static_cast<size_t>(self)];
             p < route.rank_pairs[static_cast<size_t>(self) + 1];
             ++p) {
          const RoutedPair& pair = route.pairs[static_cast<size_t>(p)];
          experts.push_back(pair.expert);
          rows.push_back(RouteRow(
              cell.slots, RoutePlace(cell.slots, src, static_cast<int32_t>(pair.message_row), 0)));
        }
      }
      Arrivals host;
      ASSERT_TRUE(GroupByExpert(experts, rows, mine.local_index, mine.num_local, &host));

      const Cell::Groups groups = cell.Group(self, cell.Arrivals(self));

      EXPECT_EQ(groups.offsets, host.expert_offsets);
      const size_t num_pairs = rows.size();
      EXPECT_TRUE(std::ranges::equal(std::span(groups.pair_row).first(num_pairs), host.pair_rows));
      for (size_t i = 0; i < num_pairs; ++i) {
        EXPECT_EQ(RouteRow(cell.slots, groups.pair_out[i]), groups.pair_row[i]);
      }
      EXPECT_EQ(std::ranges::count(groups.pair_row, kUntouched),
                static_cast<int64_t>(groups.pair_row.size() - num_pairs));
      EXPECT_EQ(mine.guard.fault, 0);
      EXPECT_EQ(mine.guard.seq, 1u);
    }
  }
}

// A message that is not of this round is nothing that anything may be computed from.
TEST(RouteMathTest, AMessageOfAnotherRoundOrForAnotherRankIsAFault) {
  using Spoil = void (*)(SlotHeader*, int32_t*);

  const struct {
    const char* name;
    Spoil spoil;
  } cases[] = {
      {"epoch", [](SlotHeader* header, int32_t*) { header->epoch = kEpoch - 1; }},
      {"round", [](SlotHeader* header, int32_t*) { header->seq = 1; }},
      {"source", [](SlotHeader* header, int32_t*) { header->source = 0; }},
      {"too many rows", [](SlotHeader* header, int32_t*) { header->count = 17; }},
      {"less than none", [](SlotHeader* header, int32_t*) { header->count = -1; }},
      {"no such expert", [](SlotHeader*, int32_t* experts) { experts[2] = 16; }},
      {"below all experts", [](SlotHeader*, int32_t* experts) { experts[2] = -2; }},
  };

  for (const auto& c : cases) {
    SCOPED_TRACE(c.name);
    Cell cell(3, 4);
    std::vector<Bf16> arrivals = cell.Arrivals(2);
    auto* const header = reinterpret_cast<SlotHeader*>(cell.Message(arrivals, 1));
    ASSERT_GT(header->count, 0);

    c.spoil(header, cell.Experts(arrivals, 1));
    cell.Group(2, arrivals);

    EXPECT_EQ(cell.ranks[2].guard.fault, 1 + 1);
    // And it tells the others with its next message, whatever that says.
    cell.ranks[2].local_index.clear();
    cell.ranks[2].num_local = 0;
    cell.Fill(2);
    EXPECT_EQ(cell.Header(cell.ranks[2].messages, 0).epoch, 0u);
  }
}

TEST(RouteMathTest, AnExpertThatIsNotHeldIsAFault) {
  Cell cell(3, 4);
  std::vector<Bf16> arrivals = cell.Arrivals(2);
  const std::vector<int32_t>& local = cell.ranks[2].local_index;
  const auto foreign = static_cast<int32_t>(std::ranges::find(local, -1) - local.begin());
  ASSERT_LT(foreign, cell.shape.num_experts);

  cell.Experts(arrivals, 0)[0] = foreign;
  const Cell::Groups groups = cell.Group(2, arrivals);

  EXPECT_EQ(cell.ranks[2].guard.fault, 1);
  EXPECT_EQ(std::ranges::count(groups.pair_out, 0), 0);
}

}  // namespace
}  // namespace shoal
