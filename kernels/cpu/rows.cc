// Rows on their way to the experts and back. PickRows: out[i] = x[index[i]], a copy.
//
// (E16) SumSlots: x[r] = x[r] + sum over s of shares[r][s] * rows[r * k + s]. fp32, one fma per
// slot in the order of the slots.
#include <cstring>

#include "kernels/cpu/backend.h"
#include "kernels/cpu/row_kernels.h"
#include "kernels/cpu/thread_pool.h"
#include "kernels/numeric.h"

namespace shoal {

void CpuBackend::PickRows(const PickRowsArgs& args) {
  const auto row_bytes = static_cast<size_t>(args.x.cols * DTypeBytes(args.x.dtype));
  pool_->ParallelFor(args.index.size, /*grain=*/16, [&](int64_t begin, int64_t end, int) {
    for (int64_t i = begin; i < end; ++i) {
      std::memcpy(args.out.Slice(i, 1).data, args.x.Slice(args.index[i], 1).data, row_bytes);
    }
  });
}

void CpuBackend::SumSlots(const SumSlotsArgs& args) {
  const int64_t k = args.shares.cols;
  pool_->ParallelFor(args.x.rows, /*grain=*/8, [&](int64_t begin, int64_t end, int) {
    for (int64_t r = begin; r < end; ++r) {
      row_kernels_->sum_slots(args.x.row<float>(r),
                              args.rows.row<Bf16>(r * k),
                              args.rows.stride,
                              args.shares.row<float>(r),
                              k,
                              args.x.cols);
    }
  });
}

}  // namespace shoal
