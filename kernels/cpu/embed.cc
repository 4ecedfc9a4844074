// (E1) out[r] = table[ids[r]]: a copy.
#include <cstring>

#include "kernels/cpu/backend.h"
#include "kernels/cpu/thread_pool.h"
#include "kernels/numeric.h"

namespace shoal {

void CpuBackend::Embed(const EmbedArgs& args) {
  const size_t row_bytes = static_cast<size_t>(args.table.cols) * sizeof(Bf16);
  pool_->ParallelFor(args.ids.size, /*grain=*/16, [&](int64_t begin, int64_t end, int) {
    for (int64_t r = begin; r < end; ++r) {
      std::memcpy(args.out.row<Bf16>(r), args.table.row<Bf16>(args.ids[r]), row_bytes);
    }
  });
}

}  // namespace shoal
