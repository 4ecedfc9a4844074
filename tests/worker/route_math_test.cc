// The integers that a device computes for its slots, against route.cc.
#include "kernels/route_math.h"

#include <algorithm>
#include <vector>

#include "gtest/gtest.h"

#include "tests/worker/exchange_cell.h"
#include "worker/exchange/route.h"

namespace shoal {
namespace {

struct Slots {
  std::vector<int32_t> counts;   // [ranks]
  std::vector<int32_t> rows;     // [ranks, slot_rows] this rank's row in that place
  std::vector<int32_t> experts;  // [ranks, slot_rows, k]
  std::vector<int32_t> home;     // [rows, k] -> place of the result
};

// As the kernel does it, one thread after the other.
Slots FillSlots(const RouteTable& table,
                const std::vector<int32_t>& ids,
                int32_t k,
                int32_t num_ranks,
                int32_t slot_rows) {
  const auto num_rows = static_cast<int32_t>(ids.size()) / k;
  const auto places = static_cast<size_t>(num_ranks * slot_rows);
  Slots slots{.counts = std::vector<int32_t>(static_cast<size_t>(num_ranks)),
              .rows = std::vector<int32_t>(places, -1),
              .experts = std::vector<int32_t>(places * static_cast<size_t>(k), -7),
              .home = std::vector<int32_t>(ids.size(), -1)};
  for (int32_t rank = 0; rank < num_ranks; ++rank) {
    int32_t& count = slots.counts[static_cast<size_t>(rank)];
    for (int32_t row = 0; row < num_rows; ++row) {
      if (!RouteGoesTo(table, ids.data(), k, row, rank)) continue;
      for (int32_t slot = 0; slot < k; ++slot) {
        const int32_t place = RoutePlace(rank, slot_rows, k, count, slot);
        const int32_t entry = RouteExpertEntry(table, ids.data(), k, row, slot, rank);
        slots.experts[static_cast<size_t>(place)] = entry;
        if (entry >= 0) slots.home[static_cast<size_t>(row * k + slot)] = place;
      }
      slots.rows[static_cast<size_t>(rank * slot_rows + count)] = row;
      ++count;
    }
  }
  return slots;
}

struct Cell {
  CellShape shape;
  Traffic traffic;
  int32_t max_replicas = 2;
  std::vector<int32_t> replicas;
  std::vector<Route> routes;  // [rank]
  std::vector<Slots> slots;   // [rank]

  Cell(int32_t num_ranks, uint64_t seed) : shape{.num_ranks = num_ranks, .max_rows = 16} {
    std::vector<int32_t> rows;
    for (int32_t rank = 0; rank < num_ranks; ++rank) {
      rows.push_back(static_cast<int32_t>((seed * 7 + static_cast<uint64_t>(rank) * 5) % 17));
    }
    traffic = RandomTraffic(shape, rows, seed);
    for (const std::vector<Rank>& ranks : traffic.replicas) {
      for (size_t i = 0; i < 2; ++i) replicas.push_back(i < ranks.size() ? ranks[i].value : -1);
    }
    for (int32_t self = 0; self < num_ranks; ++self) {
      const auto r = static_cast<size_t>(self);
      PlanRoute(traffic.expert_ids[r],
                traffic.rows(r, shape.k),
                shape.k,
                {.ranks_of_expert = traffic.replicas, .self = Rank{self}, .num_ranks = num_ranks},
                &routes.emplace_back());
      slots.push_back(FillSlots({replicas.data(), max_replicas, self},
                                traffic.expert_ids[r],
                                shape.k,
                                num_ranks,
                                shape.max_rows));
    }
  }
};

TEST(RouteMathTest, SlotsHoldTheRowsAndPairsOfTheRoute) {
  for (uint64_t seed = 0; seed < 200; ++seed) {
    SCOPED_TRACE(seed);
    const Cell cell(1 + static_cast<int32_t>(seed % 6), seed);
    const int32_t k = cell.shape.k;
    for (size_t self = 0; self < cell.routes.size(); ++self) {
      const Route& route = cell.routes[self];
      const Slots& slots = cell.slots[self];
      for (int32_t rank = 0; rank < cell.shape.num_ranks; ++rank) {
        const auto r = static_cast<size_t>(rank);
        const int32_t num_rows = route.rank_rows[r + 1] - route.rank_rows[r];
        ASSERT_EQ(slots.counts[r], num_rows);
        auto pair = static_cast<size_t>(route.rank_pairs[r]);
        for (int32_t m = 0; m < num_rows; ++m) {
          EXPECT_EQ(slots.rows[static_cast<size_t>(rank * cell.shape.max_rows + m)],
                    route.send_rows[static_cast<size_t>(route.rank_rows[r] + m)]);
          for (int32_t slot = 0; slot < k; ++slot) {
            const int32_t place = RoutePlace(rank, cell.shape.max_rows, k, m, slot);
            const int32_t expert = slots.experts[static_cast<size_t>(place)];
            if (expert < 0) continue;
            ASSERT_LT(pair, static_cast<size_t>(route.rank_pairs[r + 1]));
            EXPECT_EQ(expert, route.pairs[pair].expert);
            EXPECT_EQ(m, static_cast<int32_t>(route.pairs[pair].message_row));
            const auto home = static_cast<size_t>(route.return_rows[pair]);
            EXPECT_EQ(slots.home[home], place);
            ++pair;
          }
        }
        EXPECT_EQ(pair, static_cast<size_t>(route.rank_pairs[r + 1]));
      }
      EXPECT_EQ(std::ranges::count(slots.home, -1), 0);
    }
  }
}

// What arrives, sorted by local expert: the same rows for the same experts in the same order as
// GroupByExpert makes of the messages.
TEST(RouteMathTest, ArrivalsAreGroupedAsTheHostGroupsThem) {
  for (uint64_t seed = 0; seed < 200; ++seed) {
    SCOPED_TRACE(seed);
    const Cell cell(1 + static_cast<int32_t>(seed % 6), seed);
    const int32_t k = cell.shape.k;
    const int32_t slot_rows = cell.shape.max_rows;
    for (int32_t self = 0; self < cell.shape.num_ranks; ++self) {
      std::vector<int32_t> local_index;
      int32_t num_local = 0;
      for (const std::vector<Rank>& ranks : cell.traffic.replicas) {
        local_index.push_back(std::ranges::count(ranks, Rank{self}) > 0 ? num_local++ : -1);
      }
      // The messages, as they come: slot `self` of every rank.
      std::vector<int32_t> counts, experts, host_experts, host_rows;
      for (int32_t src = 0; src < cell.shape.num_ranks; ++src) {
        const auto s = static_cast<size_t>(src);
        const auto first = cell.slots[s].experts.begin() + self * slot_rows * k;
        counts.push_back(cell.slots[s].counts[static_cast<size_t>(self)]);
        experts.insert(experts.end(), first, first + slot_rows * k);
        const Route& route = cell.routes[s];
        for (int32_t p = route.rank_pairs[static_cast<size_t>(self)];
             p < route.rank_pairs[static_cast<size_t>(self) + 1];
             ++p) {
          const RoutedPair& pair = route.pairs[static_cast<size_t>(p)];
          host_experts.push_back(pair.expert);
          host_rows.push_back(src * slot_rows + static_cast<int32_t>(pair.message_row));
        }
      }
      Arrivals host;
      ASSERT_TRUE(GroupByExpert(host_experts, host_rows, local_index, num_local, &host));

      std::vector<int32_t> offsets = {0}, pair_rows;
      for (int32_t local = 0; local < num_local; ++local) {
        for (int32_t place = 0; place < cell.shape.num_ranks * slot_rows * k; ++place) {
          if (RouteArrival(
                  counts.data(), experts.data(), slot_rows, k, local_index.data(), place) ==
              local) {
            pair_rows.push_back(place / k);
          }
        }
        offsets.push_back(static_cast<int32_t>(pair_rows.size()));
      }
      EXPECT_EQ(offsets, host.expert_offsets);
      EXPECT_EQ(pair_rows, host.pair_rows);
    }
  }
}

}  // namespace
}  // namespace shoal
