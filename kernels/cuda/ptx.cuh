// Inline assembly, only here and in wgmma.cuh: copies into shared memory, matrix instructions,
// fences, launch dependencies. Addresses of shared memory are 32-bit.
#pragma once

#include <cstdint>

#include "kernels/cuda/wgmma.cuh"

namespace shoal::cuda::ptx {

// What this pass of the compiler may use. The only place that looks at the architecture: kernels
// branch on the constants, and the host asks a kernel which ones it was compiled with.
#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
inline constexpr bool kHasWgmma = true;
#else
inline constexpr bool kHasWgmma = false;
#endif
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
inline constexpr bool kAwaitsLaunches = true;
#else
inline constexpr bool kAwaitsLaunches = false;
#endif

__device__ inline uint32_t SharedAddress(const void* pointer) {
  return static_cast<uint32_t>(__cvta_generic_to_shared(pointer));
}

// The first `bytes` (0 to 16) of 16 bytes, zeros behind them.
__device__ inline void CopyAsync16(uint32_t to, const void* from, int bytes) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;\n" ::"r"(to), "l"(from), "r"(bytes)
               : "memory");
}

__device__ inline void CommitCopies() {
  asm volatile("cp.async.commit_group;\n" ::: "memory");
}

// All but the last kPending groups have arrived.
template <int kPending>
__device__ inline void WaitCopies() {
  asm volatile("cp.async.wait_group %0;\n" ::"n"(kPending) : "memory");
}

// Before the matrix unit reads shared memory that this thread wrote (and a barrier).
__device__ inline void FenceSharedWrites() {
  if constexpr (kHasWgmma) asm volatile("fence.proxy.async.shared::cta;\n" ::: "memory");
}

__device__ inline void WgmmaBegin() {
  asm volatile("wgmma.fence.sync.aligned;\n" ::: "memory");
}

__device__ inline void WgmmaCommit() {
  asm volatile("wgmma.commit_group.sync.aligned;\n" ::: "memory");
}

__device__ inline void WgmmaWait() {
  asm volatile("wgmma.wait_group.sync.aligned 0;\n" ::: "memory");
}

__device__ inline void LoadMatrices(uint32_t (&r)[4], uint32_t address) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];\n"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(address)
               : "memory");
}

__device__ inline void LoadMatricesTransposed(uint32_t (&r)[4], uint32_t address) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];\n"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(address)
               : "memory");
}

// d[0..3] += a b: 16 x 8 x 16.
__device__ inline void Mma(float* d, const uint32_t* a, uint32_t b0, uint32_t b1) {
  asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, "
      "{%8, %9}, {%0, %1, %2, %3};\n"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

// Two bf16 products, subnormals kept. A sum with -0 changes nothing, and sm_80 has only this form.
__device__ inline uint32_t MultiplyPair(uint32_t a, uint32_t b) {
  uint32_t product;
  asm("fma.rn.bf16x2 %0, %1, %2, %3;\n" : "=r"(product) : "r"(a), "r"(b), "r"(0x80008000u));
  return product;
}

// Two fp32 to a pair of bf16, to nearest even; `low` in the low half.
__device__ inline uint32_t ToBf16Pair(float low, float high) {
  uint32_t pair;
  asm("cvt.rn.bf16x2.f32 %0, %1, %2;\n" : "=r"(pair) : "f"(high), "f"(low));
  return pair;
}

// 2^x, error about 2 ulp, the special function unit's.
__device__ inline float PowerOfTwo(float x) {
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;\n" : "=f"(y) : "f"(x));
  return y;
}

// With overlapping launches a kernel may start before the one before it ends. Every kernel begins
// with this: what earlier kernels wrote is visible after it. Then the next one may start its own
// preparations.
__device__ inline void AwaitEarlierKernels() {
  if constexpr (kAwaitsLaunches) {
    asm volatile("griddepcontrol.wait;\n" ::: "memory");
    asm volatile("griddepcontrol.launch_dependents;\n" ::: "memory");
  }
}

}  // namespace shoal::cuda::ptx
