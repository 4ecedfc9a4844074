// (E2) x = x + add; out = bf16(x * (1 / sqrt(mean(x^2) + eps)) * gain). fp32 throughout; the
// sum of squares by lanes, division and square root IEEE. The residual stream is read from memory
// once for both.
#include "kernels/cpu/backend.h"
#include "kernels/cpu/row_kernels.h"
#include "kernels/cpu/thread_pool.h"
#include "kernels/numeric.h"

namespace shoal {

void CpuBackend::RmsNorm(const RmsNormArgs& args) {
  pool_->ParallelFor(args.x.rows, /*grain=*/8, [&](int64_t begin, int64_t end, int) {
    for (int64_t r = begin; r < end; ++r) {
      row_kernels_->rms_norm(args.x.row<float>(r),
                             args.add.empty() ? nullptr : args.add.row<Bf16>(r),
                             args.gain,
                             args.eps,
                             args.x.cols,
                             args.out.row<Bf16>(r));
    }
  });
}

}  // namespace shoal
