#include "coordinator/cluster/placement.h"

#include <algorithm>
#include <optional>

#include "absl/strings/str_cat.h"

#include "base/check.h"

namespace shoal {
namespace {

// A placement being made, with the number of experts at each site.
class Draft {
 public:
  Draft(std::span<const PlacementSite> sites, int32_t num_experts)
      : sites_(sites), loads_(sites.size()), placement_(static_cast<size_t>(num_experts)) {
    for (size_t s = 0; s < sites.size(); ++s) {
      for (const ExpertId expert : sites[s].experts) {
        if (expert.value >= 0 && expert.value < num_experts) {
          Add(static_cast<size_t>(expert.value), static_cast<int32_t>(s));
        }
      }
    }
  }

  size_t num_experts() const { return placement_.size(); }

  size_t num_copies(size_t expert) const { return placement_[expert].size(); }

  // Drops copies beyond `copies`, those of the fullest sites first.
  void Trim(size_t copies) {
    for (size_t e = 0; e < num_experts(); ++e) {
      while (placement_[e].size() > copies) {
        Remove(e,
               *std::max_element(placement_[e].begin(),
                                 placement_[e].end(),
                                 [this](int32_t a, int32_t b) { return IsEmptier(a, b); }));
      }
    }
  }

  // One more copy, at the emptiest site of a host without one, else at the emptiest. False if no
  // site can take it.
  bool AddCopy(size_t expert) {
    std::optional<int32_t> best;
    for (int32_t s = 0; s < num_sites(); ++s) {
      if (Holds(expert, s) || !HasRoom(s)) continue;
      if (!best.has_value() || Rank(expert, s) < Rank(expert, *best)) best = s;
    }
    if (best.has_value()) Add(expert, *best);
    return best.has_value();
  }

  // Moves single experts from the fullest site to the emptiest that can take one, until no move
  // would narrow the gap.
  void Balance() {
    // Each move lowers the sum of squared loads, so this bound is never reached.
    for (size_t moves = 0; moves < num_experts() * sites_.size() * sites_.size(); ++moves) {
      if (!MoveOne()) return;
    }
  }

  Placement Take() && { return std::move(placement_); }

 private:
  int32_t num_sites() const { return static_cast<int32_t>(sites_.size()); }

  int32_t& Load(int32_t site) { return loads_[static_cast<size_t>(site)]; }

  const PlacementSite& Site(int32_t site) const { return sites_[static_cast<size_t>(site)]; }

  bool HasRoom(int32_t site) { return Load(site) < Site(site).max_experts; }

  bool Holds(size_t expert, int32_t site) const {
    return std::binary_search(placement_[expert].begin(), placement_[expert].end(), site);
  }

  bool HostHolds(size_t expert, int32_t site, int32_t except) const {
    return std::any_of(placement_[expert].begin(), placement_[expert].end(), [&](int32_t holder) {
      return holder != except && Site(holder).host == Site(site).host;
    });
  }

  std::pair<bool, int32_t> Rank(size_t expert, int32_t site) {
    return {HostHolds(expert, site, -1), Load(site)};
  }

  // Orders sites by load; of equal ones the higher index is the fuller.
  bool IsEmptier(int32_t a, int32_t b) { return std::pair(Load(a), a) < std::pair(Load(b), b); }

  void Add(size_t expert, int32_t site) {
    std::vector<int32_t>& holders = placement_[expert];
    holders.insert(std::lower_bound(holders.begin(), holders.end(), site), site);
    ++Load(site);
  }

  void Remove(size_t expert, int32_t site) {
    CHECK_EQ(std::erase(placement_[expert], site), 1u);
    --Load(site);
  }

  bool MoveOne() {
    std::vector<int32_t> order;
    for (int32_t s = 0; s < num_sites(); ++s) order.push_back(s);
    std::sort(order.begin(), order.end(), [this](int32_t a, int32_t b) { return IsEmptier(a, b); });
    for (size_t full = order.size(); full-- > 0;) {
      for (size_t empty = 0; empty < full; ++empty) {
        if (Load(order[full]) - Load(order[empty]) < 2) break;
        if (HasRoom(order[empty]) && MoveBetween(order[full], order[empty])) return true;
      }
    }
    return false;
  }

  // Prefers an expert that the receiver holds in memory already, then one whose move costs no
  // separation of hosts.
  bool MoveBetween(int32_t from, int32_t to) {
    std::optional<size_t> best;
    int best_cost = 0;
    for (size_t e = 0; e < num_experts(); ++e) {
      if (!Holds(e, from) || Holds(e, to)) continue;
      const bool joins_hosts = HostHolds(e, to, from) && !HostHolds(e, from, from);
      if (joins_hosts) continue;
      const int cost = Site(to).experts.contains(ExpertId{static_cast<int32_t>(e)}) ? 0 : 1;
      if (best.has_value() && cost >= best_cost) continue;
      best = e;
      best_cost = cost;
    }
    if (!best.has_value()) return false;
    Remove(*best, from);
    Add(*best, to);
    return true;
  }

  std::span<const PlacementSite> sites_;
  std::vector<int32_t> loads_;
  Placement placement_;
};

absl::Status Missing(std::span<const PlacementSite> sites, int32_t num_experts) {
  int64_t room = 0;
  for (const PlacementSite& site : sites) room += site.max_experts;
  return absl::ResourceExhaustedError(absl::StrCat(sites.size(),
                                                   " workers have memory for ",
                                                   room,
                                                   " experts of ",
                                                   num_experts,
                                                   "; memory for ",
                                                   std::max<int64_t>(0, num_experts - room),
                                                   " more is missing"));
}

}  // namespace

absl::StatusOr<Placement> PlaceExperts(std::span<const PlacementSite> sites,
                                       int32_t num_experts,
                                       int32_t copies,
                                       PlacementGoal goal) {
  CHECK_GT(copies, 0);
  Draft draft(sites, num_experts);
  const bool is_balanced = goal == PlacementGoal::kBalanced;
  const size_t most = std::min(static_cast<size_t>(copies), sites.size());
  if (is_balanced) draft.Trim(most);
  // First copies everywhere before second ones anywhere.
  for (size_t copy = 1; copy <= (is_balanced ? most : 1); ++copy) {
    for (size_t e = 0; e < draft.num_experts(); ++e) {
      if (draft.num_copies(e) < copy && !draft.AddCopy(e) && copy == 1) {
        return Missing(sites, num_experts);
      }
    }
  }
  if (is_balanced) draft.Balance();
  return std::move(draft).Take();
}

int32_t MinReplicas(const Placement& placement) {
  size_t fewest = placement.empty() ? 0 : placement.front().size();
  for (const std::vector<int32_t>& holders : placement) fewest = std::min(fewest, holders.size());
  return static_cast<int32_t>(fewest);
}

}  // namespace shoal
