// (E4) For the pair a = x[i], b = x[i + D/2] of each q and k head, with c, s = rope[position][i]:
//
//     a' = bf16(fma(a, c, -(b s)))        b' = bf16(fma(b, c, a s))
//
// then k and v are copied to their slots. A thread block a row; a thread turns a pair and, if it is
// k's, stores it in the cache at once. The same steps as on the CPU, hence the same bits. Bound:
// bytes, about 4 per element of qkv. Fraction reached: not yet measured.
#include "kernels/cuda/device.cuh"
#include "kernels/cuda/ptx.cuh"
#include "kernels/numeric.h"

namespace shoal::cuda {
namespace {

constexpr int kThreads = 256;

struct RopeParams {
  Bf16* qkv;
  int64_t stride;
  const float* rope;
  const int32_t* positions;
  const int32_t* slots;
  int num_heads;
  int num_kv_heads;
  int head_dim;
  Bf16* kv;
};

__global__ void __launch_bounds__(kThreads) RopeKernel(const __grid_constant__ RopeParams p) {
  ptx::AwaitEarlierKernels();
  Bf16* const row = p.qkv + int64_t{blockIdx.x} * p.stride;
  const int slot = p.slots[blockIdx.x];
  const float* const angles = p.rope + int64_t{p.positions[blockIdx.x]} * p.head_dim;
  const int half = p.head_dim / 2;
  // Head h of k, then those of v, of the slot's block: [2 num_kv_heads, kBlockTokens, head_dim].
  const auto place = [&](int h) {
    const int64_t block = slot / kBlockTokens;
    return p.kv +
           ((block * 2 * p.num_kv_heads + h) * kBlockTokens + slot % kBlockTokens) * p.head_dim;
  };
  const int turned = p.num_heads + p.num_kv_heads;
  for (int i = static_cast<int>(threadIdx.x); i < turned * half; i += kThreads) {
    const int head = i / half;
    const int d = i % half;
    const float c = angles[2 * d];
    const float s = angles[2 * d + 1];
    Bf16* const x = row + head * p.head_dim;
    const float a = ToFloat(x[d]);
    const float b = ToFloat(x[d + half]);
    const Bf16 first = ToBf16(fmaf(a, c, 0.0f - b * s));
    const Bf16 second = ToBf16(fmaf(b, c, a * s));
    x[d] = first;
    x[d + half] = second;
    if (head >= p.num_heads && slot >= 0) {
      Bf16* const to = place(head - p.num_heads);
      to[d] = first;
      to[d + half] = second;
    }
  }
  if (slot < 0) return;
  for (int i = static_cast<int>(threadIdx.x); i < p.num_kv_heads * p.head_dim; i += kThreads) {
    const int head = i / p.head_dim;
    const Bf16 value = row[int64_t{turned} * p.head_dim + i];
    place(p.num_kv_heads + head)[i % p.head_dim] = value;
  }
}

}  // namespace

void Device::RopeAndAppend(const RopeAndAppendArgs& args) {
  Launch(RopeKernel,
         dim3(static_cast<unsigned>(args.qkv.rows)),
         kThreads,
         0,
         RopeParams{.qkv = args.qkv.row<Bf16>(0),
                    .stride = args.qkv.stride,
                    .rope = args.rope,
                    .positions = args.positions.data,
                    .slots = args.slots.data,
                    .num_heads = args.num_heads,
                    .num_kv_heads = args.kv.num_kv_heads,
                    .head_dim = args.kv.head_dim,
                    .kv = static_cast<Bf16*>(args.kv.data)});
}

}  // namespace shoal::cuda
