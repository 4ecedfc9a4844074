// (E6)-(E8) Attention: who computes what. The formula is in attention_chunk.cuh.
//
// Decode (entries of one row): a thread block for each (row, K/V head, four chunks), a warp a
// chunk. A warp copies its 16 KB of K and V at once and waits for them: 64 KB a block in flight,
// three blocks to a multiprocessor. If the row has no more than four chunks (always so with a
// window of 128) the block merges them from shared memory; else their results go to memory (2 KB
// for 16 KB read) and the last block of the row to arrive merges all, in order.
//
// Prefill: a thread block for each (64 query rows: 64 / group tokens of one entry with all heads of
// a K/V head), four warps of 16 rows; it walks the chunks, the next one's copies in flight, and
// merges in registers. A step with both kinds of entry launches both kernels, each leaving the
// other's alone.
//
// Bound: decode the bytes of K and V; prefill 4 D FLOP per (query row, visible position). Fraction
// reached: not yet measured.
#include <algorithm>
#include <cmath>

#include "kernels/cuda/attention_chunk.cuh"
#include "kernels/cuda/device.cuh"

namespace shoal::cuda {
namespace {

constexpr int kWarps = 4;
constexpr int kThreads = 32 * kWarps;
constexpr int kQueryRows = 16 * kWarps;
constexpr size_t kDecodeSharedBytes = kWarps * 2 * kChunkBytes + 1024;  // K and V of a chunk a warp
constexpr size_t kPrefillSharedBytes = 2 * 2 * kChunkBytes + 1024;      // Of two chunks
static_assert(kDecodeSharedBytes <= kSharedBytesOfEveryChip);
// Results of chunks that do not fit one thread block: beyond so much the other kernel walks them.
constexpr size_t kMostChunkBytes = size_t{512} << 20;

const __device__ Bf16* QueryRow(const AttentionParams& p, int row, int kv_head, int head) {
  return p.q + row * p.q_stride + (int64_t{kv_head} * p.group + head) * p.head_dim;
}

// What other thread blocks wrote is read past the first-level cache, which may hold the line from
// before they did.
template <bool kIsGlobal>
__device__ float ReadResult(const float* at) {
  if constexpr (kIsGlobal) return __ldcg(at);
  return *at;
}

// Merges chunks [0, num) of one row and K/V head from `from` ([num][group][kChunkValues]) and
// stores the outputs. A thread owns some (head, dimension) pairs.
template <bool kIsGlobal>
__device__ void MergeChunks(
    const AttentionParams& p, const float* from, int num, int row, int kv_head) {
  for (int i = static_cast<int>(threadIdx.x); i < p.group * kHeadDim; i += kThreads) {
    const int head = i / kHeadDim;
    const int d = i % kHeadDim;
    if (d >= p.head_dim) continue;
    float max = p.sinks[kv_head * p.group + head];
    float sum = 1.0f;
    float o = 0.0f;
    for (int c = 0; c < num; ++c) {
      const float* const chunk = from + (int64_t{c} * p.group + head) * kChunkValues;
      const float chunk_max = ReadResult<kIsGlobal>(chunk + kHeadDim);
      if (chunk_max == kNothing) continue;
      const MergeFactors factors = Merge(&max, chunk_max);
      const float chunk_sum = ReadResult<kIsGlobal>(chunk + kHeadDim + 1);
      sum = fmaf(chunk_sum, factors.chunk, sum * factors.kept);
      o = fmaf(ReadResult<kIsGlobal>(chunk + d), factors.chunk, o * factors.kept);
    }
    const int64_t column = (int64_t{kv_head} * p.group + head) * p.head_dim + d;
    p.out[row * p.out_stride + column] = ToBf16(o / sum);
  }
}

// REQUIRES: group <= 16. Grid: entries, K/V heads, groups of four chunks.
__global__ void __launch_bounds__(kThreads)
    AttentionDecodeKernel(const __grid_constant__ AttentionParams p) {
  extern __shared__ std::byte shared_memory[];
  __shared__ bool is_last;
  ptx::AwaitEarlierKernels();
  const AttentionEntry entry = p.entries[blockIdx.x];
  if (entry.num_rows != 1) return;
  const int kv_head = static_cast<int>(blockIdx.y);
  const int row = entry.first_row;
  const Span seen = VisibleFrom(entry.first_position, p.window);
  const int first_chunk = seen.first / kChunkTokens;
  const int num_chunks = seen.last / kChunkTokens - first_chunk + 1;
  const int num_parts = (num_chunks + kWarps - 1) / kWarps;
  const int part = static_cast<int>(blockIdx.z);
  if (part >= num_parts) return;

  const int warp = static_cast<int>(threadIdx.x / 32);
  const int lane = static_cast<int>(threadIdx.x % 32);
  const int index = part * kWarps + warp;  // Of the row's chunks
  const uint32_t keys = ((ptx::SharedAddress(shared_memory) + 1023u) & ~1023u) +
                        static_cast<uint32_t>(warp) * 2 * kChunkBytes;
  float* results = reinterpret_cast<float*>(shared_memory);
  const bool is_alone = num_parts == 1;
  if (!is_alone) {
    results = p.chunks + (int64_t{blockIdx.x} * p.num_kv_heads + kv_head) * p.max_chunks * p.group *
                             kChunkValues;
  }
  ChunkResult result;
  if (index < num_chunks) {
    const int chunk = first_chunk + index;
    CopyChunk<32>(p, p.tables + entry.table_offset, kv_head, chunk, seen, keys, lane);
    ptx::CommitCopies();
    uint32_t q[16];
    const int low = lane / 4;
    LoadQueries(low < p.group ? QueryRow(p, row, kv_head, low) : nullptr,
                low + 8 < p.group ? QueryRow(p, row, kv_head, low + 8) : nullptr,
                p.head_dim,
                q);
    ptx::WaitCopies<0>();
    __syncwarp();
    const Span both[2] = {seen, seen};
    AttendChunk(q, keys, chunk, both, p.scale, &result);
  }
  if (is_alone) __syncthreads();  // The results take the place of K and V.
  if (index < num_chunks) {
    for (int i = 0; i < 2; ++i) {
      const int head = lane / 4 + 8 * i;
      if (head >= p.group) continue;
      float* const to = results + (int64_t{index} * p.group + head) * kChunkValues;
#pragma unroll
      for (int n = 0; n < 8; ++n) {
        const int d = 8 * n + FragmentCColumn(lane, 0);
        to[d] = result.o[n][2 * i];
        to[d + 1] = result.o[n][2 * i + 1];
      }
      if (lane % 4 == 0) {
        to[kHeadDim] = result.max[i];
        to[kHeadDim + 1] = result.sum[i];
      }
    }
  }
  if (is_alone) {
    __syncthreads();
    return MergeChunks<false>(p, results, num_chunks, row, kv_head);
  }
  __threadfence();
  __syncthreads();
  if (threadIdx.x == 0) {
    unsigned* const counter = p.counters + int64_t{blockIdx.x} * p.num_kv_heads + kv_head;
    is_last = atomicAdd(counter, 1u) == static_cast<unsigned>(num_parts) - 1u;
    if (is_last) *counter = 0;  // For the next launch.
  }
  __syncthreads();
  if (!is_last) return;
  __threadfence();
  MergeChunks<true>(p, results, num_chunks, row, kv_head);
}

// The entry and its first token of row block `index`, which counts ceil(rows / tokens) blocks for
// each entry of at least `least_rows` in order. entry < 0: none.
struct RowBlock {
  int entry;
  int first;
};

__device__ RowBlock FindRowBlock(const AttentionParams& p, int tokens, int least_rows, int index) {
  for (int e = 0; e < p.num_entries; ++e) {
    const int rows = p.entries[e].num_rows;
    const int blocks = rows < least_rows ? 0 : (rows + tokens - 1) / tokens;
    if (index < blocks) return {e, index * tokens};
    index -= blocks;
  }
  return {-1, 0};
}

// Grid: row blocks, K/V heads.
__global__ void __launch_bounds__(kThreads)
    AttentionPrefillKernel(const __grid_constant__ AttentionParams p,
                           const int tokens,
                           const int least_rows) {
  extern __shared__ std::byte shared_memory[];
  ptx::AwaitEarlierKernels();
  __shared__ RowBlock found;
  if (threadIdx.x == 0) {
    found = FindRowBlock(p, tokens, least_rows, static_cast<int>(blockIdx.x));
  }
  __syncthreads();
  if (found.entry < 0) return;
  const AttentionEntry entry = p.entries[found.entry];
  const int32_t* const table = p.tables + entry.table_offset;
  const int kv_head = static_cast<int>(blockIdx.y);
  const int first = found.first;
  const int num_tokens = min(tokens, entry.num_rows - first);

  // This thread's two query rows: token and head of each.
  const int warp = static_cast<int>(threadIdx.x / 32);
  const int lane = static_cast<int>(threadIdx.x % 32);
  const Bf16* query[2];
  Span seen[2];
  int head[2];
  int row[2];
  for (int i = 0; i < 2; ++i) {
    const int index = 16 * warp + FragmentCRow(lane, 2 * i);
    const int token = index / p.group;
    head[i] = index % p.group;
    row[i] = token < num_tokens ? entry.first_row + first + token : -1;
    query[i] = row[i] < 0 ? nullptr : QueryRow(p, row[i], kv_head, head[i]);
    seen[i] =
        row[i] < 0 ? Span{0, -1} : VisibleFrom(entry.first_position + first + token, p.window);
  }
  uint32_t q[16];
  LoadQueries(query[0], query[1], p.head_dim, q);
  float o[8][4] = {};
  float max[2];
  float sum[2] = {1.0f, 1.0f};
  for (int i = 0; i < 2; ++i) {
    max[i] = row[i] < 0 ? 0.0f : p.sinks[kv_head * p.group + head[i]];
  }

  // All that some token of the block sees.
  const int position = entry.first_position + first;
  const Span all{VisibleFrom(position, p.window).first, position + num_tokens - 1};
  const int first_chunk = all.first / kChunkTokens;
  const int last_chunk = all.last / kChunkTokens;
  const uint32_t tiles = (ptx::SharedAddress(shared_memory) + 1023u) & ~1023u;
  const auto tile = [&](int chunk) {
    return tiles + static_cast<uint32_t>(chunk % 2) * 2 * kChunkBytes;
  };
  const auto copy = [&](int chunk) {
    const int thread = static_cast<int>(threadIdx.x);
    if (chunk <= last_chunk) {
      CopyChunk<kThreads>(p, table, kv_head, chunk, all, tile(chunk), thread);
    }
    ptx::CommitCopies();
  };
  copy(first_chunk);
  for (int chunk = first_chunk; chunk <= last_chunk; ++chunk) {
    copy(chunk + 1);
    ptx::WaitCopies<1>();
    __syncthreads();
    ChunkResult result;
    AttendChunk(q, tile(chunk), chunk, seen, p.scale, &result);
    for (int i = 0; i < 2; ++i) {
      if (result.max[i] == kNothing) continue;
      const MergeFactors factors = Merge(&max[i], result.max[i]);
      sum[i] = fmaf(result.sum[i], factors.chunk, sum[i] * factors.kept);
#pragma unroll
      for (int n = 0; n < 8; ++n) {
#pragma unroll
        for (int c = 0; c < 2; ++c) {
          float& value = o[n][2 * i + c];
          value = fmaf(result.o[n][2 * i + c], factors.chunk, value * factors.kept);
        }
      }
    }
    __syncthreads();  // The chunk after the next takes this one's place.
  }
  for (int i = 0; i < 2; ++i) {
    if (row[i] < 0) continue;
    Bf16* const to =
        p.out + row[i] * p.out_stride + (int64_t{kv_head} * p.group + head[i]) * p.head_dim;
#pragma unroll
    for (int n = 0; n < 8; ++n) {
#pragma unroll
      for (int c = 0; c < 2; ++c) {
        const int d = 8 * n + FragmentCColumn(lane, c);
        if (d < p.head_dim) to[d] = ToBf16(o[n][2 * i + c] / sum[i]);
      }
    }
  }
}

}  // namespace

void Device::Attention(const AttentionArgs& args) {
  const KvLayer& kv = args.kv;
  const auto num_entries = static_cast<int>(args.entries.size());
  if (num_entries == 0) return;
  KERNEL_CHECK(kv.head_dim <= kHeadDim && kv.head_dim % 8 == 0);
  KERNEL_CHECK(args.max_entry_rows > 0 && args.max_positions > 0);
  AttentionParams params{
      .entries = args.entries.data(),
      .num_entries = num_entries,
      .tables = args.tables.data,
      .q = args.q.row<const Bf16>(0),
      .q_stride = args.q.stride,
      .kv = static_cast<const Bf16*>(kv.data),
      .num_kv_heads = kv.num_kv_heads,
      .head_dim = kv.head_dim,
      .group = args.num_heads / kv.num_kv_heads,
      .window = args.window,
      .sinks = args.sinks,
      .out = args.out.row<Bf16>(0),
      .out_stride = args.out.stride,
      .scale = 1.0f / std::sqrt(static_cast<float>(kv.head_dim)),
      .chunks = nullptr,
      .counters = nullptr,
      .max_chunks = static_cast<int>(MaxChunks(args.max_positions, args.window))};
  KERNEL_CHECK(params.group <= kQueryRows);
  const auto kv_heads = static_cast<unsigned>(kv.num_kv_heads);
  const auto parts = static_cast<unsigned>(CeilDiv(params.max_chunks, kWarps));
  const size_t tiles = size_t{static_cast<unsigned>(num_entries)} * kv_heads;
  const size_t chunk_bytes = parts == 1 ? 0
                                        : tiles * static_cast<size_t>(params.max_chunks) *
                                              static_cast<size_t>(params.group) * kChunkValues *
                                              sizeof(float);
  const bool has_decode_kernel = params.group <= 16 && chunk_bytes <= kMostChunkBytes;
  if (has_decode_kernel) {
    if (parts > 1) {
      params.chunks = static_cast<float*>(ScratchOf(ScratchFor::kChunks, chunk_bytes));
      params.counters =
          static_cast<unsigned*>(ScratchOf(ScratchFor::kCounters, tiles * sizeof(unsigned)));
      if (params.chunks == nullptr || params.counters == nullptr) return;
    }
    Launch(AttentionDecodeKernel,
           dim3(static_cast<unsigned>(num_entries), kv_heads, parts),
           kThreads,
           kDecodeSharedBytes,
           params);
    if (args.max_entry_rows == 1) return;
  }
  const int tokens = kQueryRows / params.group;
  const int64_t blocks = args.q.rows / tokens + num_entries;  // At least what the entries have
  Launch(AttentionPrefillKernel,
         dim3(static_cast<unsigned>(blocks), kv_heads),
         kThreads,
         kPrefillSharedBytes,
         params,
         tokens,
         has_decode_kernel ? 2 : 1);
}

}  // namespace shoal::cuda
