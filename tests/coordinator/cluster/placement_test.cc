#include "coordinator/cluster/placement.h"

#include <algorithm>
#include <vector>

#include "gtest/gtest.h"

#include "base/prng.h"

namespace shoal {
namespace {

constexpr int32_t kPlenty = 1000;

std::vector<int32_t> Loads(const Placement& placement, size_t num_sites) {
  std::vector<int32_t> loads(num_sites);
  for (const auto& holders : placement) {
    for (const int32_t site : holders) ++loads[static_cast<size_t>(site)];
  }
  return loads;
}

// The sites as they are once the placement has been loaded.
std::vector<PlacementSite> After(std::vector<PlacementSite> sites, const Placement& placement) {
  for (auto& site : sites) site.experts.clear();
  for (size_t e = 0; e < placement.size(); ++e) {
    for (const int32_t site : placement[e]) {
      sites[static_cast<size_t>(site)].experts.insert(ExpertId{static_cast<int32_t>(e)});
    }
  }
  return sites;
}

int32_t NumLoaded(const std::vector<PlacementSite>& before, const Placement& placement) {
  int32_t num = 0;
  for (size_t e = 0; e < placement.size(); ++e) {
    for (const int32_t site : placement[e]) {
      const auto& held = before[static_cast<size_t>(site)].experts;
      if (!held.contains(ExpertId{static_cast<int32_t>(e)})) ++num;
    }
  }
  return num;
}

TEST(PlacementTest, SharesExpertsEvenlyForAnyNumberOfSitesAndCopies) {
  for (int32_t num_sites = 1; num_sites <= 8; ++num_sites) {
    for (int32_t copies = 1; copies <= 3; ++copies) {
      const std::vector<PlacementSite> sites(static_cast<size_t>(num_sites), {"h", kPlenty, {}});

      const auto placement = PlaceExperts(sites, 32, copies, PlacementGoal::kBalanced);

      ASSERT_TRUE(placement.ok());
      for (const auto& holders : *placement) {
        EXPECT_EQ(holders.size(), static_cast<size_t>(std::min(copies, num_sites)));
        EXPECT_TRUE(std::is_sorted(holders.begin(), holders.end()));
        EXPECT_EQ(std::adjacent_find(holders.begin(), holders.end()), holders.end());
      }
      const auto loads = Loads(*placement, sites.size());
      const auto [least, most] = std::minmax_element(loads.begin(), loads.end());
      EXPECT_LE(*most - *least, 1) << num_sites << " sites, " << copies << " copies";
    }
  }
}

TEST(PlacementTest, CopiesLieOnDifferentHosts) {
  const std::vector<PlacementSite> sites = {
      {"a", kPlenty, {}}, {"a", kPlenty, {}}, {"b", kPlenty, {}}, {"b", kPlenty, {}}};

  const auto placement = PlaceExperts(sites, 32, 2, PlacementGoal::kBalanced);

  for (const auto& holders : *placement) {
    EXPECT_NE(sites[static_cast<size_t>(holders[0])].host,
              sites[static_cast<size_t>(holders[1])].host);
  }
}

TEST(PlacementTest, AfterALossReplicasServeAndNothingIsRead) {
  std::vector<PlacementSite> sites(4, {"h", kPlenty, {}});
  const auto before = PlaceExperts(sites, 32, 2, PlacementGoal::kBalanced);
  sites = After(sites, *before);
  sites.erase(sites.begin() + 1);

  const auto urgent = PlaceExperts(sites, 32, 2, PlacementGoal::kUrgent);

  EXPECT_EQ(NumLoaded(sites, *urgent), 0);
  EXPECT_EQ(MinReplicas(*urgent), 1);
}

TEST(PlacementTest, AfterALossOfOnlyCopiesJustThoseAreReadAndSpread) {
  std::vector<PlacementSite> sites(4, {"h", kPlenty, {}});
  sites = After(sites, *PlaceExperts(sites, 32, 1, PlacementGoal::kBalanced));
  sites.pop_back();

  const auto urgent = PlaceExperts(sites, 32, 1, PlacementGoal::kUrgent);

  EXPECT_EQ(NumLoaded(sites, *urgent), 8);
  EXPECT_EQ(Loads(*urgent, 3), (std::vector<int32_t>{11, 11, 10}));
}

TEST(PlacementTest, AJoinerGetsItsShareAndTheOthersReadNothing) {
  std::vector<PlacementSite> sites(3, {"h", kPlenty, {}});
  sites = After(sites, *PlaceExperts(sites, 32, 1, PlacementGoal::kBalanced));
  sites.push_back({"h", kPlenty, {}});

  const auto placement = PlaceExperts(sites, 32, 1, PlacementGoal::kBalanced);

  EXPECT_EQ(Loads(*placement, 4), (std::vector<int32_t>{8, 8, 8, 8}));
  EXPECT_EQ(NumLoaded(sites, *placement), 8);
}

TEST(PlacementTest, MemoryBoundsEverySiteAndFirstCopiesComeFirst) {
  const std::vector<PlacementSite> sites = {{"a", 20, {}}, {"b", 20, {}}, {"c", 4, {}}};

  const auto placement = PlaceExperts(sites, 32, 2, PlacementGoal::kBalanced);

  ASSERT_TRUE(placement.ok());
  EXPECT_EQ(MinReplicas(*placement), 1);
  EXPECT_EQ(Loads(*placement, 3), (std::vector<int32_t>{20, 20, 4}));
}

TEST(PlacementTest, SaysHowMuchIsMissing) {
  const std::vector<PlacementSite> sites = {{"a", 10, {}}, {"b", 10, {}}};

  const auto placement = PlaceExperts(sites, 32, 1, PlacementGoal::kBalanced);

  EXPECT_EQ(placement.status().code(), absl::StatusCode::kResourceExhausted);
  EXPECT_EQ(placement.status().message(),
            "2 workers have memory for 20 experts of 32; memory for 12 more is missing");
}

// Random fleets that grow, shrink and forget: every placement is legal and, once loaded, stays.
TEST(PlacementTest, AnyHistoryEndsInAFixedPoint) {
  for (uint64_t seed = 1; seed <= 200; ++seed) {
    Prng prng(seed);
    const int32_t num_experts = 1 + static_cast<int32_t>(prng.Below(20));
    const int32_t copies = 1 + static_cast<int32_t>(prng.Below(3));
    std::vector<PlacementSite> sites(1, {"h0", num_experts, {}});
    for (int change = 0; change < 10; ++change) {
      if (prng.Chance(60) || sites.size() == 1) {
        sites.push_back({prng.Chance(50) ? "h0" : "h1", num_experts, {}});
      } else {
        sites.erase(sites.begin() + static_cast<ptrdiff_t>(prng.Below(sites.size())));
      }
      const auto urgent = PlaceExperts(sites, num_experts, copies, PlacementGoal::kUrgent);
      ASSERT_TRUE(urgent.ok()) << "seed " << seed;
      ASSERT_GE(MinReplicas(*urgent), 1) << "seed " << seed;
      sites = After(sites, *urgent);
      const auto placement = PlaceExperts(sites, num_experts, copies, PlacementGoal::kBalanced);
      ASSERT_TRUE(placement.ok()) << "seed " << seed;
      sites = After(sites, *placement);
      ASSERT_EQ(*PlaceExperts(sites, num_experts, copies, PlacementGoal::kBalanced), *placement)
          << "seed " << seed;
      ASSERT_EQ(MinReplicas(*placement), std::min(copies, static_cast<int32_t>(sites.size())))
          << "seed " << seed;
    }
  }
}

}  // namespace
}  // namespace shoal
