// Attention of some rows of one sequence with one K/V head: the inner part of attention.cc.
//
//     s_j = q . k_j / sqrt(D)                       for the visible positions j of a row
//     m' = max(m, max s_j)      c = exp(m - m')     tile after tile, m = sink and l = 1 at first
//     l = l c + sum exp(s_j - m')
//     o = o c + sum exp(s_j - m') v_j               out = o / l
//
// A tile is one K/V block: 32 positions. Work: for each tile the task widens K, transposed, and V
// to fp32 (24 KB for D = 64, in the first-level cache), then takes its rows, each with the heads
// that share the K/V head, V::kHeads at a time:
//   - scores with a position in each lane of two vectors: one fma per dimension, the sixteen sums
//     of "lanes" in sixteen accumulators, added in the documented tree. No shuffles.
//   - p . v with a dimension in each lane, accumulated over rising positions.
// Cost per row, head and tile for D = 64: 128 + 30 operations for the scores, 128 for p . v, about
// 40 for the softmax; moving K and V costs as much as about one row of eight heads. Every number
// depends on the positions, never on which rows came together in a task.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <limits>
#include <type_traits>

#include "kernels/backend.h"
#include "kernels/cpu/lane_math.h"
#include "kernels/numeric.h"

namespace shoal {

struct AttentionTask {
  const Bf16* q = nullptr;  // Row r, head g of the group: q + r * q_stride + g * head_dim.
  int64_t q_stride = 0;
  Bf16* out = nullptr;  // The same for the output.
  int64_t out_stride = 0;
  const float* sinks = nullptr;  // [group]
  int num_rows = 0;
  int group = 0;  // Query heads that read this K/V head.
  int head_dim = 0;
  int32_t first_position = 0;      // Of row 0; the others follow.
  int32_t window = 0;              // 0: unlimited
  const int32_t* table = nullptr;  // Position p lies in block table[p / kBlockTokens].
  const Bf16* keys = nullptr;      // [kBlockTokens, head_dim] of this head in block 0
  const Bf16* values = nullptr;    // Likewise.
  int64_t block_stride = 0;        // Elements from a block to the next.
};

namespace attention {

constexpr int64_t RoundUp(int64_t n, int64_t unit) {
  return (n + unit - 1) / unit * unit;
}

// A task's fp32 working memory, carved out of one piece of scratch.
struct Workspace {
  int64_t dims;        // head_dim rounded up to whole vectors.
  Bf16* staged;        // [kBlockTokens, key_dims] a tile's keys, unused ones 0
  float* keys;         // [key_dims, kBlockTokens]
  float* values;       // [kBlockTokens, dims]
  float* q;            // [num_rows, group, dims]
  float* o;            // [num_rows, group, dims]
  float* max;          // [num_rows, group]
  float* denominator;  // [num_rows, group]
  int64_t key_dims;    // head_dim rounded up to a transposed square.
  size_t bytes;

  // Without memory it only counts the bytes.
  SHOAL_INLINE Workspace(int64_t num_rows, int64_t group, int64_t head_dim, std::byte* memory)
      : bytes(0) {
    dims = RoundUp(head_dim, 16);
    key_dims = RoundUp(head_dim, 32);
    const auto carve = [&](auto** part, int64_t count) {
      using Pointer = std::remove_pointer_t<decltype(part)>;
      *part = memory == nullptr ? nullptr : reinterpret_cast<Pointer>(memory + bytes);
      bytes += static_cast<size_t>(RoundUp(count * static_cast<int64_t>(sizeof(**part)), 64));
    };
    const int64_t heads = num_rows * group;
    carve(&staged, kBlockTokens * key_dims);
    carve(&keys, kBlockTokens * key_dims);
    carve(&values, kBlockTokens * dims);
    carve(&q, heads * dims);
    carve(&o, heads * dims);
    carve(&max, heads);
    carve(&denominator, heads);
  }
};

// The positions [begin, end) of a tile, relative to its first, that one or several rows see.
struct Visible {
  int begin;
  int end;
};

SHOAL_INLINE Visible VisibleIn(int64_t tile, int64_t first_row, int64_t last_row, int64_t window) {
  const int64_t base = tile * kBlockTokens;
  const int64_t first = window > 0 ? first_row - window + 1 : 0;
  return {static_cast<int>(std::max<int64_t>(first - base, 0)),
          static_cast<int>(std::min<int64_t>(last_row + 1 - base, kBlockTokens))};
}

// The sum over the dimensions d with d mod 16 = lane and over the lanes lane + kStride,
// lane + 2 kStride, ...: the tree of "lanes", for N heads and 16 positions.
template <typename V, int N, int kDim, int kStride>
SHOAL_INLINE void LaneTree(
    const float* keys, const float* q, int64_t dims, int head_dim, int lane, V (&sum)[N]) {
  if constexpr (kStride == V::kWidth) {
    for (int n = 0; n < N; ++n) sum[n] = V::Broadcast(0.0f);
    const int end = kDim > 0 ? kDim : head_dim;
    for (int d = lane; d < end; d += V::kWidth) {
      const V k = V::Load(keys + d * kBlockTokens);
      for (int n = 0; n < N; ++n) sum[n] = Fma(V::Broadcast(q[n * dims + d]), k, sum[n]);
    }
  } else {
    V other[N];
    LaneTree<V, N, kDim, 2 * kStride>(keys, q, dims, head_dim, lane, sum);
    LaneTree<V, N, kDim, 2 * kStride>(keys, q, dims, head_dim, lane + kStride, other);
    for (int n = 0; n < N; ++n) sum[n] = sum[n] + other[n];
  }
}

// o[n][c ..] = o * correction[n] + sum over j of p[n][j] * values[j][c ..], for N heads and
// kColumns vectors of dimensions.
template <typename V, int N, int kColumns>
SHOAL_INLINE void AddValues(const float* values,
                            const float (&p)[N][kBlockTokens],
                            const float (&correction)[N],
                            Visible visible,
                            int64_t dims,
                            float* o) {
  V sum[N][kColumns];
  for (int n = 0; n < N; ++n) {
    for (int c = 0; c < kColumns; ++c) {
      sum[n][c] = V::Load(o + n * dims + c * V::kWidth) * V::Broadcast(correction[n]);
    }
  }
  for (int j = visible.begin; j < visible.end; ++j) {
    V v[kColumns];
    for (int c = 0; c < kColumns; ++c) v[c] = V::Load(values + j * dims + c * V::kWidth);
    for (int n = 0; n < N; ++n) {
      const V weight = V::Broadcast(p[n][j]);
      for (int c = 0; c < kColumns; ++c) sum[n][c] = Fma(weight, v[c], sum[n][c]);
    }
  }
  for (int n = 0; n < N; ++n) {
    for (int c = 0; c < kColumns; ++c) sum[n][c].Store(o + n * dims + c * V::kWidth);
  }
}

// One row's heads [head, head + N) against the tile in `work`. `index` is row * group + head.
// kDim: head_dim, where it is worth code of its own; 0: any.
template <typename V, int N, int kDim>
void AttendHeads(const Workspace& work, int head_dim, Visible visible, float scale, int64_t index) {
  constexpr float kHidden = -std::numeric_limits<float>::infinity();
  constexpr int kWidth = V::kWidth;
  static_assert(kBlockTokens == 2 * kWidth);
  const int64_t dims = kDim > 0 ? RoundUp(kDim, 16) : work.dims;
  const float* const q = work.q + index * dims;
  float* const o = work.o + index * dims;

  V low[N];   // Scores of the tile's first 16 positions.
  V high[N];  // Of the others.
  LaneTree<V, N, kDim, 1>(work.keys, q, dims, head_dim, 0, low);
  LaneTree<V, N, kDim, 1>(work.keys + kWidth, q, dims, head_dim, 0, high);

  float p[N][kBlockTokens];
  float correction[N];
  for (int n = 0; n < N; ++n) {
    float& max = work.max[index + n];
    float& denominator = work.denominator[index + n];
    const V s0 = KeepRange(low[n] * V::Broadcast(scale), visible.begin, visible.end, kHidden);
    const V s1 = KeepRange(
        high[n] * V::Broadcast(scale), visible.begin - kWidth, visible.end - kWidth, kHidden);
    const float tile_max = MaxOf(Max(s0, s1));
    const float new_max = tile_max > max ? tile_max : max;
    const V p0 = Exp(s0 - V::Broadcast(new_max));
    const V p1 = Exp(s1 - V::Broadcast(new_max));
    p0.Store(p[n]);
    p1.Store(p[n] + kWidth);
    correction[n] = Exp(max - new_max);
    denominator = std::fma(denominator, correction[n], Sum(p0 + p1));
    max = new_max;
  }

  constexpr int kColumns = kDim > 0 && kDim % (4 * kWidth) == 0 ? 4 : 1;
  for (int64_t c = 0; c < dims; c += kColumns * kWidth) {
    AddValues<V, N, kColumns>(work.values + c, p, correction, visible, dims, o + c);
  }
}

// Copies the tile's `used` positions into the workspace; the others' memory is not looked at.
template <typename V>
void LoadTile(const AttentionTask& task, int64_t tile, Visible used, const Workspace& work) {
  const int64_t block = task.table[tile] * task.block_stride;
  const Bf16* const keys = task.keys + block;
  const Bf16* const values = task.values + block;
  for (int j = 0; j < kBlockTokens; ++j) {
    Bf16* const row = work.staged + j * work.key_dims;
    const bool is_used = used.begin <= j && j < used.end;
    const int64_t filled = is_used ? task.head_dim : 0;
    if (is_used) {
      std::memcpy(
          row, keys + int64_t{j} * task.head_dim, sizeof(Bf16) * static_cast<size_t>(filled));
      for (int64_t d = 0; d < task.head_dim; d += V::kWidth) {
        const Bf16* const from = values + int64_t{j} * task.head_dim + d;
        V::LoadFirst(from, task.head_dim - d).Store(work.values + j * work.dims + d);
      }
    }
    std::memset(row + filled, 0, sizeof(Bf16) * static_cast<size_t>(work.key_dims - filled));
  }
  for (int64_t d = 0; d < work.key_dims; d += 32) {
    for (int j = 0; j < kBlockTokens; j += V::kWidth) {
      V::TransposeWiden(work.staged + j * work.key_dims + d,
                        work.key_dims,
                        work.keys + d * kBlockTokens + j,
                        kBlockTokens);
    }
  }
}

template <typename V>
void LoadQueries(const AttentionTask& task, const Workspace& work) {
  for (int64_t r = 0; r < task.num_rows; ++r) {
    for (int64_t g = 0; g < task.group; ++g) {
      const int64_t index = r * task.group + g;
      for (int64_t d = 0; d < task.head_dim; d += V::kWidth) {
        const Bf16* const from = task.q + r * task.q_stride + g * task.head_dim + d;
        V::LoadFirst(from, task.head_dim - d).Store(work.q + index * work.dims + d);
        V::Broadcast(0.0f).Store(work.o + index * work.dims + d);
      }
      work.max[index] = task.sinks[g];
      work.denominator[index] = 1.0f;
    }
  }
}

template <typename V>
void StoreOutputs(const AttentionTask& task, const Workspace& work) {
  for (int64_t r = 0; r < task.num_rows; ++r) {
    for (int64_t g = 0; g < task.group; ++g) {
      const int64_t index = r * task.group + g;
      const V denominator = V::Broadcast(work.denominator[index]);
      for (int64_t d = 0; d < task.head_dim; d += V::kWidth) {
        Bf16* const to = task.out + r * task.out_stride + g * task.head_dim + d;
        const V value = V::Load(work.o + index * work.dims + d) / denominator;
        value.StoreFirst(to, task.head_dim - d);
      }
    }
  }
}

template <typename V, int kDim>
void AttendRow(
    const AttentionTask& task, const Workspace& work, Visible visible, float scale, int64_t row) {
  int64_t g = 0;
  for (; g + V::kHeads <= task.group; g += V::kHeads) {
    AttendHeads<V, V::kHeads, kDim>(work, task.head_dim, visible, scale, row * task.group + g);
  }
  for (; g < task.group; ++g) {
    AttendHeads<V, 1, kDim>(work, task.head_dim, visible, scale, row * task.group + g);
  }
}

template <typename V>
void Attend(const AttentionTask& task, std::byte* scratch) {
  const Workspace work(task.num_rows, task.group, task.head_dim, scratch);
  const float scale = 1.0f / std::sqrt(static_cast<float>(task.head_dim));
  const int64_t first = task.first_position;
  const int64_t last = first + task.num_rows - 1;
  const int64_t first_seen = task.window > 0 ? std::max<int64_t>(first - task.window + 1, 0) : 0;

  LoadQueries<V>(task, work);
  for (int64_t tile = first_seen / kBlockTokens; tile <= last / kBlockTokens; ++tile) {
    Visible used = VisibleIn(tile, first, last, task.window);
    LoadTile<V>(task, tile, used, work);
    for (int64_t r = 0; r < task.num_rows; ++r) {
      const Visible visible = VisibleIn(tile, first + r, first + r, task.window);
      if (visible.begin >= visible.end) continue;
      if (task.head_dim == 64) {
        AttendRow<V, 64>(task, work, visible, scale, r);
      } else {
        AttendRow<V, 0>(task, work, visible, scale, r);
      }
    }
  }
  StoreOutputs<V>(task, work);
}

}  // namespace attention

// Bytes of scratch that `attend` needs for such a task.
inline size_t AttentionScratchBytes(int num_rows, int group, int head_dim) {
  return attention::Workspace(num_rows, group, head_dim, nullptr).bytes;
}

}  // namespace shoal
