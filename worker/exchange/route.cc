#include "worker/exchange/route.h"

#include <algorithm>
#include <cstddef>

#include "absl/container/inlined_vector.h"

#include "base/check.h"

namespace shoal {
namespace {

// Where (row, expert) of this rank is computed. At home if possible: that costs no message. Else
// rows and home ranks are spread over the replicas, so that equal single-row batches of all home
// ranks do not meet at one of them.
int32_t Destination(const LayerPlacement& placement, int32_t expert, int32_t row) {
  CHECK(expert >= 0 && static_cast<size_t>(expert) < placement.ranks_of_expert.size());
  const std::vector<Rank>& replicas = placement.ranks_of_expert[static_cast<size_t>(expert)];
  CHECK(!replicas.empty());
  if (std::ranges::find(replicas, placement.self) != replicas.end()) return placement.self.value;
  const auto turn = static_cast<size_t>(row) + static_cast<size_t>(placement.self.value);
  const int32_t rank = replicas[turn % replicas.size()].value;
  CHECK(rank >= 0 && rank < placement.num_ranks);
  return rank;
}

// Calls visit(row, slot, expert, rank, is_first) for all pairs, by row, then slot. is_first: no
// earlier slot of the row goes to that rank, so the row itself travels with this pair.
template <typename Visit>
void ForEachPair(std::span<const int32_t> expert_ids,
                 int32_t rows,
                 int32_t k,
                 const LayerPlacement& placement,
                 const Visit& visit) {
  absl::InlinedVector<int32_t, 8> ranks(static_cast<size_t>(k));
  for (int32_t row = 0; row < rows; ++row) {
    for (int32_t slot = 0; slot < k; ++slot) {
      const int32_t expert = expert_ids[static_cast<size_t>(row * k + slot)];
      const int32_t rank = Destination(placement, expert, row);
      const auto earlier = ranks.begin() + slot;
      visit(row, slot, expert, rank, std::find(ranks.begin(), earlier, rank) == earlier);
      *earlier = rank;
    }
  }
}

// counts[i + 1] holds the size of group i; becomes the offset of group i + 1.
void SumCounts(std::vector<int32_t>* counts) {
  for (size_t i = 1; i < counts->size(); ++i) (*counts)[i] += (*counts)[i - 1];
}

using Cursors = absl::InlinedVector<int32_t, 64>;

}  // namespace

void PlanRoute(std::span<const int32_t> expert_ids,
               int32_t rows,
               int32_t k,
               const LayerPlacement& placement,
               Route* route) {
  CHECK_GE(expert_ids.size(), static_cast<size_t>(rows) * static_cast<size_t>(k));
  const auto num_ranks = static_cast<size_t>(placement.num_ranks);
  route->rank_rows.assign(num_ranks + 1, 0);
  route->rank_pairs.assign(num_ranks + 1, 0);
  ForEachPair(
      expert_ids, rows, k, placement, [&](int32_t, int32_t, int32_t, int32_t rank, bool is_first) {
        const auto next = static_cast<size_t>(rank) + 1;
        route->rank_rows[next] += is_first ? 1 : 0;
        ++route->rank_pairs[next];
      });
  SumCounts(&route->rank_rows);
  SumCounts(&route->rank_pairs);

  route->send_rows.resize(static_cast<size_t>(route->rank_rows.back()));
  route->pairs.resize(static_cast<size_t>(route->rank_pairs.back()));
  route->return_rows.resize(route->pairs.size());
  Cursors next_row(route->rank_rows.begin(), route->rank_rows.end() - 1);
  Cursors next_pair(route->rank_pairs.begin(), route->rank_pairs.end() - 1);
  ForEachPair(expert_ids,
              rows,
              k,
              placement,
              [&](int32_t row, int32_t slot, int32_t expert, int32_t rank, bool is_first) {
                const auto r = static_cast<size_t>(rank);
                if (is_first) route->send_rows[static_cast<size_t>(next_row[r]++)] = row;
                const auto pair = static_cast<size_t>(next_pair[r]++);
                const int32_t message_row = next_row[r] - 1 - route->rank_rows[r];
                route->pairs[pair] = {.message_row = static_cast<uint32_t>(message_row),
                                      .expert = expert};
                route->return_rows[pair] = row * k + slot;
              });
}

bool GroupByExpert(std::span<const int32_t> experts,
                   std::span<const int32_t> rows,
                   std::span<const int32_t> local_index,
                   int32_t num_local,
                   Arrivals* arrivals) {
  CHECK_EQ(experts.size(), rows.size());
  const auto local_of = [&](int32_t expert) {
    const bool is_known = expert >= 0 && static_cast<size_t>(expert) < local_index.size();
    return is_known ? local_index[static_cast<size_t>(expert)] : -1;
  };

  arrivals->expert_offsets.assign(static_cast<size_t>(num_local) + 1, 0);
  for (const int32_t expert : experts) {
    const int32_t local = local_of(expert);
    if (local < 0) return false;
    CHECK_LT(local, num_local);
    ++arrivals->expert_offsets[static_cast<size_t>(local) + 1];
  }
  SumCounts(&arrivals->expert_offsets);

  arrivals->pair_rows.resize(experts.size());
  arrivals->pair_outs.resize(experts.size());
  Cursors next(arrivals->expert_offsets.begin(), arrivals->expert_offsets.end() - 1);
  for (size_t i = 0; i < experts.size(); ++i) {
    const auto place = static_cast<size_t>(next[static_cast<size_t>(local_of(experts[i]))]++);
    arrivals->pair_rows[place] = rows[i];
    arrivals->pair_outs[place] = static_cast<int32_t>(i);
  }
  return true;
}

}  // namespace shoal
