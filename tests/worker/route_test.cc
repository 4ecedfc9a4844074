#include "worker/exchange/route.h"

#include <algorithm>
#include <numeric>
#include <set>
#include <vector>

#include "gtest/gtest.h"

#include "base/prng.h"

namespace shoal {
namespace {

using Replicas = std::vector<std::vector<Rank>>;

// Experts dealt out at random, each with one to three replicas.
Replicas RandomPlacement(int32_t num_experts, int32_t num_ranks, Prng* prng) {
  Replicas replicas(static_cast<size_t>(num_experts));
  for (std::vector<Rank>& ranks : replicas) {
    std::set<Rank> chosen;
    const uint64_t wanted =
        1 + prng->Below(std::min<uint64_t>(3, static_cast<uint64_t>(num_ranks)));
    while (chosen.size() < wanted) {
      chosen.insert(Rank{static_cast<int32_t>(prng->Below(static_cast<uint64_t>(num_ranks)))});
    }
    ranks.assign(chosen.begin(), chosen.end());
  }
  return replicas;
}

// k different experts for each row.
std::vector<int32_t> RandomExperts(int32_t rows, int32_t k, int32_t num_experts, Prng* prng) {
  std::vector<int32_t> ids;
  for (int32_t row = 0; row < rows; ++row) {
    std::set<int32_t> chosen;
    while (chosen.size() < static_cast<size_t>(k)) {
      chosen.insert(static_cast<int32_t>(prng->Below(static_cast<uint64_t>(num_experts))));
    }
    ids.insert(ids.end(), chosen.begin(), chosen.end());
    std::reverse(ids.end() - k, ids.end());  // Slots are not sorted by id.
  }
  return ids;
}

TEST(PlanRouteTest, RoutesTwoRowsByHand) {
  // Ranks 0, 1, 2; this is rank 1. Experts 0 and 1 on rank 0, 2 on ranks 1 and 2, 3 on rank 2.
  const Replicas replicas = {{Rank{0}}, {Rank{0}}, {Rank{1}, Rank{2}}, {Rank{2}}};
  const std::vector<int32_t> ids = {3,
                                    0,
                                    1,  // Row 0
                                    2,
                                    3,
                                    0};  // Row 1

  Route route;
  PlanRoute(ids, 2, 3, {.ranks_of_expert = replicas, .self = Rank{1}, .num_ranks = 3}, &route);

  EXPECT_EQ(route.rank_rows, (std::vector<int32_t>{0, 2, 3, 5}));
  EXPECT_EQ(route.send_rows, (std::vector<int32_t>{0, 1, 1, 0, 1}));
  EXPECT_EQ(route.rank_pairs, (std::vector<int32_t>{0, 3, 4, 6}));
  EXPECT_EQ(route.pairs, (std::vector<RoutedPair>{{0, 0}, {0, 1}, {1, 0}, {0, 2}, {0, 3}, {1, 3}}));
  EXPECT_EQ(route.return_rows, (std::vector<int32_t>{1, 2, 5, 3, 0, 4}));
}

TEST(PlanRouteTest, PlansNothingForNoRows) {
  const Replicas replicas = {{Rank{0}}};
  Route route;
  route.send_rows = {7};
  PlanRoute({}, 0, 4, {.ranks_of_expert = replicas, .self = Rank{0}, .num_ranks = 2}, &route);
  EXPECT_TRUE(route.send_rows.empty());
  EXPECT_TRUE(route.pairs.empty());
  EXPECT_EQ(route.rank_rows, (std::vector<int32_t>{0, 0, 0}));
  EXPECT_EQ(route.rank_pairs, (std::vector<int32_t>{0, 0, 0}));
}

TEST(PlanRouteTest, SingleRowsOfAllHomesSpreadOverReplicas) {
  const Replicas replicas = {{Rank{4}, Rank{5}}};
  std::set<int32_t> used;
  for (int32_t self = 0; self < 4; ++self) {
    Route route;
    const std::vector<int32_t> ids = {0};
    PlanRoute(ids, 1, 1, {.ranks_of_expert = replicas, .self = Rank{self}, .num_ranks = 6}, &route);
    for (int32_t rank = 4; rank < 6; ++rank) {
      const auto r = static_cast<size_t>(rank);
      if (route.rank_rows[r] < route.rank_rows[r + 1]) used.insert(rank);
    }
  }
  EXPECT_EQ(used, (std::set<int32_t>{4, 5}));
}

// Every (row, slot) goes once to a rank that holds its expert, at home if that is possible; a row
// goes once to a rank; everything rises as route.h says.
TEST(PlanRouteTest, HoldsItsPropertiesForRandomPlacements) {
  Prng prng(20260701);
  Route route;  // One for all, as in a worker.
  for (int round = 0; round < 500; ++round) {
    SCOPED_TRACE(round);
    const auto num_ranks = static_cast<int32_t>(1 + prng.Below(9));
    const auto num_experts = static_cast<int32_t>(4 + prng.Below(30));
    const auto k = static_cast<int32_t>(1 + prng.Below(4));
    const auto rows = static_cast<int32_t>(prng.Below(40));
    const Rank self{static_cast<int32_t>(prng.Below(static_cast<uint64_t>(num_ranks)))};
    const Replicas replicas = RandomPlacement(num_experts, num_ranks, &prng);
    const std::vector<int32_t> ids = RandomExperts(rows, k, num_experts, &prng);

    PlanRoute(
        ids, rows, k, {.ranks_of_expert = replicas, .self = self, .num_ranks = num_ranks}, &route);

    std::vector<int32_t> returned = route.return_rows;
    std::ranges::sort(returned);
    std::vector<int32_t> all(static_cast<size_t>(rows * k));
    std::iota(all.begin(), all.end(), 0);
    ASSERT_EQ(returned, all);
    ASSERT_EQ(route.pairs.size(), all.size());
    for (int32_t rank = 0; rank < num_ranks; ++rank) {
      const auto r = static_cast<size_t>(rank);
      const int32_t first_row = route.rank_rows[r];
      for (int32_t i = first_row + 1; i < route.rank_rows[r + 1]; ++i) {
        const auto at = static_cast<size_t>(i);
        ASSERT_LT(route.send_rows[at - 1], route.send_rows[at]);
      }
      std::set<int32_t> used;
      for (int32_t i = route.rank_pairs[r]; i < route.rank_pairs[r + 1]; ++i) {
        const auto at = static_cast<size_t>(i);
        const RoutedPair& pair = route.pairs[at];
        const int32_t place = route.return_rows[at];
        ASSERT_TRUE(i == route.rank_pairs[r] || route.return_rows[at - 1] < place);
        const auto row_at = static_cast<size_t>(first_row) + pair.message_row;
        ASSERT_LT(row_at, static_cast<size_t>(route.rank_rows[r + 1]));
        ASSERT_EQ(route.send_rows[row_at], place / k);
        ASSERT_EQ(pair.expert, ids[static_cast<size_t>(place)]);
        const std::vector<Rank>& holders = replicas[static_cast<size_t>(pair.expert)];
        ASSERT_TRUE(std::ranges::count(holders, Rank{rank}));
        ASSERT_TRUE(rank == self.value || !std::ranges::count(holders, self));
        used.insert(static_cast<int32_t>(pair.message_row));
      }
      ASSERT_EQ(used.size(), static_cast<size_t>(route.rank_rows[r + 1] - first_row));
    }
  }
}

TEST(GroupByExpertTest, GroupsByLocalExpertThenArrival) {
  const std::vector<int32_t> local_index = {-1, 2, 0, -1, 1};
  const std::vector<int32_t> experts = {4, 1, 2, 4, 1};
  const std::vector<int32_t> rows = {0, 0, 1, 2, 2};
  Arrivals arrivals;
  ASSERT_TRUE(GroupByExpert(experts, rows, local_index, 3, &arrivals));
  EXPECT_EQ(arrivals.expert_offsets, (std::vector<int32_t>{0, 1, 3, 5}));
  EXPECT_EQ(arrivals.pair_rows, (std::vector<int32_t>{1, 0, 2, 0, 2}));
  EXPECT_EQ(arrivals.pair_outs, (std::vector<int32_t>{2, 0, 3, 1, 4}));
  EXPECT_EQ(arrivals.num_pairs(), 5);
}

TEST(GroupByExpertTest, GroupsNothing) {
  Arrivals arrivals;
  ASSERT_TRUE(GroupByExpert({}, {}, {}, 0, &arrivals));
  EXPECT_EQ(arrivals.expert_offsets, (std::vector<int32_t>{0}));
  EXPECT_EQ(arrivals.num_pairs(), 0);
}

TEST(GroupByExpertTest, RefusesExpertsThatAreNotHeld) {
  const std::vector<int32_t> local_index = {0, -1};
  const std::vector<int32_t> rows = {0};
  Arrivals arrivals;
  for (const int32_t expert : {1, 2, -1, 1 << 30}) {
    EXPECT_FALSE(GroupByExpert(std::vector<int32_t>{expert}, rows, local_index, 1, &arrivals))
        << expert;
  }
}

// The whole journey on paper: rows routed from every rank, grouped at their destinations by an
// expert that returns its input, and put home again, are the rows, k times each.
TEST(RouteTest, CombineOfDispatchIsTheIdentity) {
  Prng prng(20260702);
  for (int round = 0; round < 200; ++round) {
    SCOPED_TRACE(round);
    const auto num_ranks = static_cast<int32_t>(1 + prng.Below(6));
    const int32_t num_experts = 12;
    const int32_t k = 3;
    const Replicas replicas = RandomPlacement(num_experts, num_ranks, &prng);
    std::vector<Route> routes(static_cast<size_t>(num_ranks));
    std::vector<int32_t> num_rows;
    for (int32_t rank = 0; rank < num_ranks; ++rank) {
      num_rows.push_back(static_cast<int32_t>(prng.Below(10)));
      const auto ids = RandomExperts(num_rows.back(), k, num_experts, &prng);
      PlanRoute(ids,
                num_rows.back(),
                k,
                {.ranks_of_expert = replicas, .self = Rank{rank}, .num_ranks = num_ranks},
                &routes[static_cast<size_t>(rank)]);
    }

    // A row is known by the number rank * 1000 + row.
    std::vector<std::vector<int32_t>> home(static_cast<size_t>(num_ranks));
    for (size_t r = 0; r < home.size(); ++r)
      home[r].assign(static_cast<size_t>(num_rows[r] * k), -1);
    for (size_t dst = 0; dst < routes.size(); ++dst) {
      std::vector<int32_t> local_index(num_experts, -1);
      int32_t num_local = 0;
      for (size_t e = 0; e < replicas.size(); ++e) {
        const bool is_held = std::ranges::count(replicas[e], Rank{static_cast<int32_t>(dst)}) > 0;
        if (is_held) local_index[e] = num_local++;
      }
      std::vector<int32_t> rows;
      std::vector<int32_t> experts;
      std::vector<int32_t> pair_rows;
      for (size_t src = 0; src < routes.size(); ++src) {
        const auto base = static_cast<int32_t>(rows.size());
        for (int32_t i = routes[src].rank_rows[dst]; i < routes[src].rank_rows[dst + 1]; ++i) {
          rows.push_back(static_cast<int32_t>(src) * 1000 +
                         routes[src].send_rows[static_cast<size_t>(i)]);
        }
        for (int32_t i = routes[src].rank_pairs[dst]; i < routes[src].rank_pairs[dst + 1]; ++i) {
          const RoutedPair& pair = routes[src].pairs[static_cast<size_t>(i)];
          experts.push_back(pair.expert);
          pair_rows.push_back(base + static_cast<int32_t>(pair.message_row));
        }
      }
      Arrivals arrivals;
      ASSERT_TRUE(GroupByExpert(experts, pair_rows, local_index, num_local, &arrivals));
      std::vector<int32_t> out(experts.size(), -1);
      for (size_t i = 0; i < out.size(); ++i) {
        out[static_cast<size_t>(arrivals.pair_outs[i])] =
            rows[static_cast<size_t>(arrivals.pair_rows[i])];
      }
      size_t next = 0;
      for (size_t src = 0; src < routes.size(); ++src) {
        for (int32_t i = routes[src].rank_pairs[dst]; i < routes[src].rank_pairs[dst + 1]; ++i) {
          const int32_t place = routes[src].return_rows[static_cast<size_t>(i)];
          home[src][static_cast<size_t>(place)] = out[next++];
        }
      }
    }

    for (size_t r = 0; r < home.size(); ++r) {
      for (size_t i = 0; i < home[r].size(); ++i) {
        ASSERT_EQ(home[r][i], static_cast<int32_t>(r * 1000 + i / k));
      }
    }
  }
}

}  // namespace
}  // namespace shoal
