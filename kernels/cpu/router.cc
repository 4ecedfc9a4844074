// (E10)-(E11) The k largest scores, falling, equal ones by lower id; shares[s] = exp(score[s] -
// score[0]) / sum over the k, the sum in slot order. A NaN score counts as -infinity.
//
// GroupByExpert is a counting sort of the chosen pairs: integers, on one thread.
#include <algorithm>
#include <limits>
#include <vector>

#include "kernels/cpu/backend.h"
#include "kernels/cpu/thread_pool.h"
#include "kernels/kernel_check.h"
#include "kernels/numeric.h"

namespace shoal {
namespace {

// Insertion into a short sorted list: ids come in rising order and only a larger score moves ahead,
// so equal ones stay by lower id.
void SelectRow(const float* scores, int64_t num_experts, int64_t k, int32_t* ids, float* shares) {
  for (int64_t e = 0; e < num_experts; ++e) {
    const float score =
        scores[e] == scores[e] ? scores[e] : -std::numeric_limits<float>::infinity();
    int64_t slot = e < k ? e : k;
    if (slot == k) {
      if (!(score > shares[k - 1])) continue;
      slot = k - 1;
    }
    for (; slot > 0 && score > shares[slot - 1]; --slot) {
      shares[slot] = shares[slot - 1];
      ids[slot] = ids[slot - 1];
    }
    shares[slot] = score;
    ids[slot] = static_cast<int32_t>(e);
  }

  const float max = shares[0];
  float sum = 0.0f;
  for (int64_t s = 0; s < k; ++s) {
    shares[s] = Exp(shares[s] - max);
    sum += shares[s];
  }
  for (int64_t s = 0; s < k; ++s) shares[s] /= sum;
}

}  // namespace

void CpuBackend::SelectExperts(const SelectExpertsArgs& args) {
  pool_->ParallelFor(args.scores.rows, /*grain=*/64, [&](int64_t begin, int64_t end, int) {
    for (int64_t r = begin; r < end; ++r) {
      SelectRow(args.scores.row<float>(r),
                args.scores.cols,
                args.ids.cols,
                args.ids.row<int32_t>(r),
                args.shares.row<float>(r));
    }
  });
}

void CpuBackend::GroupByExpert(const GroupByExpertArgs& args) {
  const auto k = static_cast<int32_t>(args.ids.cols);
  const auto pairs = static_cast<int32_t>(args.ids.rows) * k;
  const auto local_of = [&](int32_t pair) {
    const int32_t local = args.local_index[args.ids.row<int32_t>(pair / k)[pair % k]];
    KERNEL_CHECK(local >= 0 && local < args.num_local);
    return local;
  };
  std::fill_n(args.expert_offsets, args.num_local + 1, 0);
  for (int32_t p = 0; p < pairs; ++p) ++args.expert_offsets[local_of(p) + 1];
  for (int32_t e = 0; e < args.num_local; ++e) {
    args.expert_offsets[e + 1] += args.expert_offsets[e];
  }
  std::vector<int32_t> next(args.expert_offsets, args.expert_offsets + args.num_local);
  for (int32_t p = 0; p < pairs; ++p) {
    const int32_t at = next[static_cast<size_t>(local_of(p))]++;
    args.pair_row[at] = p / k;
    args.pair_out[at] = p;
  }
}

}  // namespace shoal
