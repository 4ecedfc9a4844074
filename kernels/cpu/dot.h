// The inner products of the CPU backend and what they read: one table of leaf functions for each
// instruction set. dot.cc, plain C++, is the specification; dot_avx2.cc and dot_avx512.cc give the
// same bits. Leaves are pure, run on one thread and know neither tensors nor experts.
#pragma once

#include <cstddef>
#include <cstdint>

#include "kernels/backend.h"
#include "kernels/cpu/backend.h"
#include "kernels/numeric.h"

namespace shoal {

// Thirty-two bf16 activations as 16-bit integers: x = q * 2 * half_scale, q = 256 * hi + lo.
//
// The scale is the smallest power of two with |q| <= 32,639 = 127 * 256 + 127, the bound that lets
// both hi and lo be int8. An element of at least 1/64 of the largest is exact; the others are
// rounded to nearest even. `half_scale` absorbs the doubling of the codes. If an element is
// infinite or NaN, all q are 0 and the scale is NaN, so that every product with the row is NaN.
struct QuantBlock {
  int8_t hi[kMxBlock];
  int8_t lo[kMxBlock];
  float half_scale;
  int32_t offset;  // -kCodeBias * (sum of q)
};

// Added to the doubled codes -12 .. 12 in products, which want them unsigned.
inline constexpr int kCodeBias = 12;

// A packed MXFP4 matrix is a sequence of tiles of 16 output rows (the last one filled up with
// zeros). A tile holds 256 bytes of codes for each block of 32 inputs, then 16 scale bytes (rows
// rising) for each block, then zeros up to a multiple of 64 bytes. In a block's codes, byte
// 64 z + 4 row + i holds input 8 z + i in its low and input 8 z + 4 + i in its high nibble: 64
// bytes are one AVX-512 register with a row in each 32-bit lane, four inputs of two groups.
inline constexpr int kTileRows = 16;
inline constexpr int kTileCodeBytes = kTileRows * kMxBlock / 2;

SHOAL_INLINE constexpr int64_t MxTileBytes(int64_t num_blocks) {
  return num_blocks * kTileCodeBytes + (num_blocks * kTileRows + 63) / 64 * 64;
}

// sums[r][i] = the product of packed row i of the tiles with row r, i < num_tiles * 16, where a
// block of row r and the 16 or so codes of packed row i make
//     sum = fma(float(sum over k of 2 * code[k] * q[k]) * half_scale, 2^(scale byte - 127), sum)
// in rising block order from +0. The integer sum is below 2^24, so its float and the product with
// half_scale are exact (a multiple of 2^-148), unless that product passes 2^128: then it is
// infinite.
struct MxProductArgs {
  const std::byte* tiles;
  int64_t num_tiles;
  int64_t num_blocks;
  const QuantBlock* const* rows;  // [num_rows] -> [num_blocks]
  int64_t num_rows;
  float* sums;  // [num_rows][num_tiles * 16]
};

// out[r * out_stride + i] = sum over k of x[r][k] * weight[i][k], by lanes.
struct LinearProductArgs {
  const float* x;  // [num_rows][x_stride], each a bf16 value; 64-byte aligned rows
  int64_t x_stride;
  int64_t num_rows;  // At most kMaxPanelRows.
  const Bf16* weight;
  int64_t weight_stride;
  int64_t num_outs;
  int64_t in;
  float* out;
  int64_t out_stride;
};

// Rows of activations that fit a second-level cache as fp32 for every model we know (4,096 wide:
// 1 MiB).
inline constexpr int64_t kMaxPanelRows = 64;

// Floats from row to row of a panel: whole cache lines, and never a multiple of 4 KiB, which would
// put all rows into the same few cache sets.
SHOAL_INLINE constexpr int64_t PanelStride(int64_t in) {
  const int64_t stride = (in + 15) / 16 * 16;
  return stride % 1'024 == 0 ? stride + 16 : stride;
}

// h[j] = bf16(a / (1 + exp(-alpha * a)) * (b + 1)) with a = min(sums[2 j] + bias[2 j], limit),
// b = sums[2 j + 1] + bias[2 j + 1] clamped to [-limit, limit]; (E12)-(E14).
struct SwiGluArgs {
  const float* sums;  // [2 * count]
  const float* bias;  // [2 * count]
  int64_t count;
  float alpha;
  float limit;
  Bf16* h;  // [count]
};

inline constexpr int64_t kIntDotsPerRound = 1'024;

struct DotTable {
  CpuIsa isa;
  void (*linear_product)(const LinearProductArgs& args);
  void (*mx_product)(const MxProductArgs& args);
  // Rows of bf16, num_blocks * 32 long, to blocks.
  void (*quantize)(const Bf16* x, int64_t num_blocks, QuantBlock* blocks);
  void (*swiglu)(const SwiGluArgs& args);
  // out[i] = float(x[i]).
  void (*widen)(const Bf16* x, int64_t count, float* out);
  // out[i] = bf16(sums[i] + bias[i]), or bf16(sums[i]) if bias is null.
  void (*finish_bf16)(const float* sums, const float* bias, int64_t count, Bf16* out);
  // The same without the rounding; NaN in its one canonical form.
  void (*finish_f32)(const float* sums, const float* bias, int64_t count, float* out);
  // For kernels/cpu/ceiling.h. Reads every cache line of the range; `bytes` is a multiple of 4,096.
  int64_t (*read_bytes)(const std::byte* from, int64_t bytes);
  // rounds * kIntDotsPerRound multiply-adds of 8-bit integers on registers.
  int64_t (*int_dots)(int64_t rounds);
};

// REQUIRES: this processor has `isa`.
const DotTable& GetDotTable(CpuIsa isa);

namespace internal {

extern const DotTable kDotTableScalar;
extern const DotTable kDotTableAvx2;
extern const DotTable kDotTableAvx512;

}  // namespace internal
}  // namespace shoal
