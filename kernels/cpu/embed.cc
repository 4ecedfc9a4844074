// (E1) out[r] = table[ids[r]]: the beginning of the residual stream, which is fp32.
#include <algorithm>

#include "kernels/cpu/backend.h"
#include "kernels/cpu/thread_pool.h"
#include "kernels/numeric.h"

namespace shoal {

void CpuBackend::Embed(const EmbedArgs& args) {
  pool_->ParallelFor(args.ids.size, /*grain=*/16, [&](int64_t begin, int64_t end, int) {
    for (int64_t r = begin; r < end; ++r) {
      const Bf16* const row = args.table.row<Bf16>(args.ids[r]);
      std::transform(row, row + args.table.cols, args.out.row<float>(r), ToFloat);
    }
  });
}

}  // namespace shoal
