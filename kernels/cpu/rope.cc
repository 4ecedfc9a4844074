// (E4) For the pair a = x[i], b = x[i + D/2] of each q and k head, with c, s = rope[position][i]:
//
//     a' = bf16(fma(a, c, -(b s)))        b' = bf16(fma(b, c, a s))
//
// then k and v are copied to their slots. The row's cosines and sines are taken apart once and
// serve all its heads.
#include <cstring>

#include "kernels/cpu/backend.h"
#include "kernels/cpu/row_kernels.h"
#include "kernels/cpu/thread_pool.h"
#include "kernels/kernel_check.h"
#include "kernels/numeric.h"

namespace shoal {
namespace {

// One row's k or v heads to their place in one block. `head` 0 of k comes first in a block, then
// the others, then those of v: [2 num_kv_heads, kBlockTokens, head_dim].
void AppendHeads(const KvLayer& kv, const Bf16* from, int32_t slot) {
  const int64_t heads = int64_t{2} * kv.num_kv_heads;
  Bf16* const block =
      static_cast<Bf16*>(kv.data) + slot / kBlockTokens * heads * kBlockTokens * kv.head_dim;
  for (int64_t h = 0; h < heads; ++h) {
    const int64_t token = h * kBlockTokens + slot % kBlockTokens;
    std::memcpy(block + token * kv.head_dim,
                from + h * kv.head_dim,
                sizeof(Bf16) * static_cast<size_t>(kv.head_dim));
  }
}

}  // namespace

void CpuBackend::RopeAndAppend(const RopeAndAppendArgs& args) {
  const int64_t dim = args.kv.head_dim;
  const int64_t half = dim / 2;
  const int64_t rotated_heads = args.num_heads + args.kv.num_kv_heads;
  pool_->ParallelFor(args.qkv.rows, /*grain=*/4, [&](int64_t begin, int64_t end, int thread) {
    std::byte* const scratch = pool_->Scratch(thread, sizeof(float) * static_cast<size_t>(dim));
    float* const cos = reinterpret_cast<float*>(scratch);
    float* const sin = cos + half;
    for (int64_t r = begin; r < end; ++r) {
      Bf16* const row = args.qkv.row<Bf16>(r);
      const float* const angles = args.rope + args.positions[r] * dim;
      for (int64_t i = 0; i < half; ++i) {
        cos[i] = angles[2 * i];
        sin[i] = angles[2 * i + 1];
      }
      for (int64_t h = 0; h < rotated_heads; ++h) {
        row_kernels_->rotate(row + h * dim, cos, sin, half);
      }
      if (args.slots[r] >= 0) AppendHeads(args.kv, row + args.num_heads * dim, args.slots[r]);
    }
  });
}

}  // namespace shoal
