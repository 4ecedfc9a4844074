// Attention of 16 query rows with one chunk of 64 positions, and the merging of chunks: what both
// attention kernels compute with, hence their equal bits.
//
//     s_j = (q . k_j) * (1 / sqrt(D))                       by the matrix unit, 4 steps of 16
//     m_c = max over the visible j                          p_j = 2^((s_j - m_c) log2 e), 0 if
//     hidden p_j rounded to bf16                                   l_c = their sum: 16 values of a
//     thread o_c = sum of p_j v_j by the matrix unit               rising, then the butterfly of 4
//     lanes
//
// Merging, in rising chunks, from m = sink, l = 1, o = 0:
//
//     m' = max(m, m_c)   a = 2^((m - m') log2 e)   b = 2^((m_c - m') log2 e)
//     l = fma(l_c, b, l a)   o = fma(o_c, b, o a)   and at the end out = bf16(o / l)
//
// A chunk in which a row sees nothing leaves it as it was.
//
// A warp's 16 rows are (token, head) pairs that share a K/V head. K and V of a chunk lie in
// swizzled tiles [64 positions][64 dimensions] (fragments.h); dimensions beyond head_dim and
// positions that nobody sees are zeros. K and V must be finite: a hidden position's weight is 0,
// not absent.
#pragma once

#include <cstdint>

#include "kernels/backend.h"
#include "kernels/cuda/fragments.h"
#include "kernels/cuda/ptx.cuh"
#include "kernels/cuda/tuning.h"
#include "kernels/numeric.h"

namespace shoal::cuda {

inline constexpr int kHeadDim = 64;  // The most; smaller ones are filled up with zeros
inline constexpr int kChunkBytes = kChunkTokens * kTileRowBytes;
inline constexpr float kLog2E = 0x1.715476p+0f;
inline constexpr float kNothing = -__builtin_inff();

struct AttentionParams {
  const AttentionEntry* entries;
  int num_entries;
  const int32_t* tables;
  const Bf16* q;
  int64_t q_stride;
  const Bf16* kv;
  int num_kv_heads;
  int head_dim;
  int group;  // Query heads of a K/V head
  int window;
  const float* sinks;
  Bf16* out;
  int64_t out_stride;
  float scale;
  // Of the decode kernel, for rows with more chunks than a thread block takes:
  float* chunks;       // [rows, kv heads, max_chunks, group, kChunkValues]
  unsigned* counters;  // [rows, kv heads], zero between launches
  int max_chunks;
};

// What is kept of a chunk for one query row: o_c, then m_c and l_c.
inline constexpr int kChunkValues = kHeadDim + 2;

// Positions [first, last] that a query row sees.
struct Span {
  int first;
  int last;
};

__device__ inline Span VisibleFrom(int position, int window) {
  const int first = window > 0 && position >= window ? position - window + 1 : 0;
  return {first, position};
}

// Copies positions [64 chunk, 64 chunk + 64) of one K/V head: K to `to`, V behind it. Those outside
// `seen` become zeros, and neither they nor their table entries are read. By `kThreads` threads.
template <int kThreads>
__device__ inline void CopyChunk(const AttentionParams& p,
                                 const int32_t* table,
                                 int kv_head,
                                 int chunk,
                                 Span seen,
                                 uint32_t to,
                                 int thread) {
  const int piece = thread % kPieces;
  const int dims = p.head_dim - piece * 8;
  const int bytes = dims >= 8 ? 16 : dims > 0 ? 2 * dims : 0;
  const int64_t head = int64_t{kBlockTokens} * p.head_dim;
  for (int row = thread / kPieces; row < kChunkTokens; row += kThreads / kPieces) {
    const int position = chunk * kChunkTokens + row;
    const bool is_seen = position >= seen.first && position <= seen.last && bytes > 0;
    const Bf16* from = p.kv;
    if (is_seen) {
      const int64_t block = table[position / kBlockTokens];
      from += (block * 2 * p.num_kv_heads + kv_head) * head +
              int64_t{position % kBlockTokens} * p.head_dim + piece * 8;
    }
    const uint32_t at = to + SwizzledByte(row, piece);
    ptx::CopyAsync16(at, from, is_seen ? bytes : 0);
    ptx::CopyAsync16(
        at + kChunkBytes, is_seen ? from + p.num_kv_heads * head : from, is_seen ? bytes : 0);
  }
}

// The A fragments of a warp's 16 query rows; `rows` of this thread's two, null: none.
__device__ inline void LoadQueries(const Bf16* low, const Bf16* high, int dim, uint32_t (&q)[16]) {
  const int lane = static_cast<int>(threadIdx.x % 32);
#pragma unroll
  for (int s = 0; s < 4; ++s) {
#pragma unroll
    for (int r = 0; r < 4; ++r) {
      const Bf16* row = r % 2 == 0 ? low : high;
      const int d = 16 * s + FragmentAInput(lane, r);
      const bool is_there = row != nullptr && d < dim;
      q[4 * s + r] = is_there ? *reinterpret_cast<const uint32_t*>(row + d) : 0u;
    }
  }
}

// o_c, m_c and l_c of a thread's two rows (index 0: row g, 1: row g + 8 of the warp). Value c of
// o[n] is dimension 8 n + FragmentCColumn.
struct ChunkResult {
  float o[8][4];
  float max[2];
  float sum[2];
};

// seen[i]: what row i of the thread sees, in absolute positions.
__device__ inline void AttendChunk(const uint32_t (&q)[16],
                                   uint32_t keys,
                                   int chunk,
                                   const Span (&seen)[2],
                                   float scale,
                                   ChunkResult* result) {
  const int lane = static_cast<int>(threadIdx.x % 32);
  float s[8][4];
#pragma unroll
  for (int n = 0; n < 8; n += 2) {
#pragma unroll
    for (int c = 0; c < 4; ++c) s[n][c] = s[n + 1][c] = 0.0f;
#pragma unroll
    for (int step = 0; step < 4; ++step) {
      uint32_t k[4];
      ptx::LoadMatrices(k, keys + SwizzledByte(LoadBRow(lane, 8 * n), LoadBPiece(lane, step)));
      ptx::Mma(s[n], q + 4 * step, k[0], k[1]);
      ptx::Mma(s[n + 1], q + 4 * step, k[2], k[3]);
    }
  }

  const int base = chunk * kChunkTokens;
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    float max = kNothing;
#pragma unroll
    for (int n = 0; n < 8; ++n) {
#pragma unroll
      for (int c = 2 * i; c < 2 * i + 2; ++c) {
        const int position = base + 8 * n + FragmentCColumn(lane, c);
        const bool is_seen = position >= seen[i].first && position <= seen[i].last;
        s[n][c] = is_seen ? s[n][c] * scale : kNothing;
        max = s[n][c] > max ? s[n][c] : max;
      }
    }
    for (int offset = 2; offset > 0; offset /= 2) {
      const float other = __shfl_xor_sync(0xffffffffu, max, offset);
      max = other > max ? other : max;
    }
    result->max[i] = max;
    const float shift = max == kNothing ? 0.0f : max * kLog2E;
    float sum = 0.0f;
#pragma unroll
    for (int n = 0; n < 8; ++n) {
#pragma unroll
      for (int c = 2 * i; c < 2 * i + 2; ++c) {
        const float exp = ptx::PowerOfTwo(fmaf(s[n][c], kLog2E, -shift));
        s[n][c] = ToFloat(ToBf16(exp));
        sum += s[n][c];
      }
    }
    for (int offset = 2; offset > 0; offset /= 2) {
      sum += __shfl_xor_sync(0xffffffffu, sum, offset);
    }
    result->sum[i] = sum;
  }

  const uint32_t values = keys + kChunkBytes;
#pragma unroll
  for (int n = 0; n < 8; ++n) {
#pragma unroll
    for (int c = 0; c < 4; ++c) result->o[n][c] = 0.0f;
  }
#pragma unroll
  for (int step = 0; step < 4; ++step) {
    uint32_t weights[4];
#pragma unroll
    for (int r = 0; r < 4; ++r) {
      const float* pair = s[2 * step + r / 2] + 2 * (r % 2);
      weights[r] = ptx::ToBf16Pair(pair[0], pair[1]);
    }
#pragma unroll
    for (int n = 0; n < 8; n += 2) {
      uint32_t v[4];
      ptx::LoadMatricesTransposed(
          v, values + SwizzledByte(LoadTransposedRow(lane, step), LoadTransposedPiece(lane, n)));
      ptx::Mma(result->o[n], weights, v[0], v[1]);
      ptx::Mma(result->o[n + 1], weights, v[2], v[3]);
    }
  }
}

// The factors of a merge; then o = fma(o_c, chunk, o * kept), likewise l.
struct MergeFactors {
  float kept;
  float chunk;
};

// Updates m. REQUIRES: the row saw something, chunk_max > -inf.
__device__ inline MergeFactors Merge(float* max, float chunk_max) {
  const float merged = chunk_max > *max ? chunk_max : *max;
  const MergeFactors factors{ptx::PowerOfTwo((*max - merged) * kLog2E),
                             ptx::PowerOfTwo((chunk_max - merged) * kLog2E)};
  *max = merged;
  return factors;
}

}  // namespace shoal::cuda
