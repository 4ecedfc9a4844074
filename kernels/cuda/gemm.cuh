// The inner part of every matrix product: out^T = W x^T for tiles of 64 weight rows by kColumns
// tokens. Weights are the first operand (its 64 rows fit the matrix unit whatever the batch),
// tokens the second, so one instruction family serves a single token and a whole prompt.
//
// Order of a sum: blocks of 64 inputs rising, in each four steps of 16 inputs; one matrix
// instruction adds a step's products to the accumulator. How many columns an instruction has and
// which other tokens are in them changes no column's sum; tests/gpu/parity compares the bits.
//
// Who: a thread block is kGroups warpgroups (128 threads), each with 64 weight rows of its own; all
// share the tokens. Kept: tokens and weights in a ring of kStages stages of shared memory, filled
// by asynchronous copies kStages - 2 blocks ahead; sums in registers. One block's product runs
// while the next one's weights are decoded.
//
// Moved, per thread block and block of 64 inputs: 64 kGroups weight rows (8 KB each group in bf16,
// 2,176 bytes in MXFP4) and kColumns x 128 bytes of tokens.
#pragma once

#include <cstdint>

#include "kernels/cuda/chip.h"
#include "kernels/cuda/fragments.h"
#include "kernels/cuda/mx_layout.h"
#include "kernels/cuda/ptx.cuh"
#include "kernels/cuda/tuning.h"
#include "kernels/numeric.h"

namespace shoal::cuda {

inline constexpr int kGroupThreads = 128;

// acc += tile (registers) * tokens, one block of 64 inputs. On the device without wgmma the same
// product by mma.sync. `is_first`: acc starts from zero.
template <int kColumns>
__device__ inline void MultiplyRegisters(float (&acc)[kColumns / 2],
                                         const uint32_t (&a)[16],
                                         uint32_t tokens,
                                         bool is_first) {
  if constexpr (ptx::kHasWgmma) {
    const uint64_t b = TileDescriptor(tokens);
#pragma unroll
    for (int s = 0; s < 4; ++s) {
      ptx::Wgmma<kColumns>::Registers(acc, a + 4 * s, b + s * kDescriptorStep, !is_first || s > 0);
    }
  } else {
    if (is_first) {
#pragma unroll
      for (float& x : acc) x = 0.0f;
    }
    const int lane = static_cast<int>(threadIdx.x % 32);
#pragma unroll
    for (int s = 0; s < 4; ++s) {
      if constexpr (kColumns == 8) {
        // Lanes 16 to 31 address pieces that nobody uses: the same rows again.
        uint32_t b[4];
        ptx::LoadMatrices(b, tokens + SwizzledByte(lane % 8, LoadBPiece(lane % 16, s)));
        ptx::Mma(acc, a + 4 * s, b[0], b[1]);
      } else {
#pragma unroll
        for (int n = 0; n < kColumns; n += 16) {
          uint32_t b[4];
          ptx::LoadMatrices(b, tokens + SwizzledByte(LoadBRow(lane, n), LoadBPiece(lane, s)));
          ptx::Mma(acc + n / 2, a + 4 * s, b[0], b[1]);
          ptx::Mma(acc + n / 2 + 4, a + 4 * s, b[2], b[3]);
        }
      }
    }
  }
}

// The same with the weights' tile in shared memory.
template <int kColumns>
__device__ inline void MultiplyShared(float (&acc)[kColumns / 2],
                                      uint32_t weights,
                                      uint32_t tokens,
                                      bool is_first) {
  if constexpr (ptx::kHasWgmma) {
    const uint64_t a = TileDescriptor(weights);
    const uint64_t b = TileDescriptor(tokens);
#pragma unroll
    for (int s = 0; s < 4; ++s) {
      ptx::Wgmma<kColumns>::Shared(
          acc, a + s * kDescriptorStep, b + s * kDescriptorStep, !is_first || s > 0);
    }
  } else {
    uint32_t a[16];
    const int lane = static_cast<int>(threadIdx.x % 32);
    const int warp = static_cast<int>(threadIdx.x / 32 % 4);
#pragma unroll
    for (int s = 0; s < 4; ++s) {
      uint32_t step[4];
      ptx::LoadMatrices(step, weights + SwizzledByte(LoadARow(lane, warp), LoadAPiece(lane, s)));
#pragma unroll
      for (int r = 0; r < 4; ++r) a[4 * s + r] = step[r];
    }
    MultiplyRegisters<kColumns>(acc, a, tokens, is_first);
  }
}

// Of the 16 bytes of a piece, those before input `in`.
__device__ inline int BytesInside(int in, int block, int piece) {
  const int left = in - block * kTileInputs - piece * (kPieceBytes / 2);
  return min(max(left, 0), 8) * 2;
}

// ---- Weights --------------------------------------------------------------------------------

// Row-major bf16 as in the checkpoint: the 64 rows of a warpgroup, of which a thread copies the
// same piece of every sixteenth.
struct Bf16Weights {
  static constexpr bool kDecodes = false;
  static constexpr int kGroupBytes = kTileOuts * kTileRowBytes;
  static constexpr int kStep = kGroupThreads / kPieces;

  const Bf16* from;  // The thread's first piece; some readable address if it has no row
  int64_t step;      // Elements between the rows it copies
  int num_rows;      // Of those, how many the matrix has
  int in;

  __device__ Bf16Weights(
      const Bf16* data, int64_t stride, int64_t outs, int64_t inputs, int64_t first_row) {
    const int thread = static_cast<int>(threadIdx.x % kGroupThreads);
    const int64_t row = first_row + thread / kPieces;
    const int64_t left = (outs - row + kStep - 1) / kStep;
    num_rows = row < outs ? static_cast<int>(left < 4 ? left : 4) : 0;
    from = num_rows > 0 ? data + row * stride + thread % kPieces * (kPieceBytes / 2) : data;
    step = kStep * stride;
    in = static_cast<int>(inputs);
  }

  // Block `block` of the inputs into shared memory; every thread of the warpgroup copies a part.
  __device__ void Copy(uint32_t to, int block) const {
    const int thread = static_cast<int>(threadIdx.x % kGroupThreads);
    const int piece = thread % kPieces;
    const int inside = BytesInside(in, block, piece);
    const uint32_t at = to + SwizzledByte(thread / kPieces, piece);
    const Bf16* source = from + (inside > 0 ? int64_t{block} * kTileInputs : 0);
#pragma unroll
    for (int i = 0; i < kTileOuts / kStep; ++i) {
      const bool is_row = i < num_rows;
      ptx::CopyAsync16(
          at + i * kStep * kTileRowBytes, is_row ? source + i * step : from, is_row ? inside : 0);
    }
  }
};

// Packed MXFP4 (mx_layout.h): 16 bytes of codes a thread and, for the first eight, of scales.
struct MxWeights {
  static constexpr bool kDecodes = true;
  static constexpr int kGroupBytes = kMxTileBytes;

  const std::byte* from;  // The thread's codes in the first tile of the warpgroup's 64 rows
  int bytes;              // 16, or 0 where the matrix ends before those rows

  __device__ MxWeights(const std::byte* tile, bool is_inside)
      : from(tile + 16 * (threadIdx.x % kGroupThreads)), bytes(is_inside ? 16 : 0) {}

  __device__ void Copy(uint32_t to, int block) const {
    const int thread = static_cast<int>(threadIdx.x % kGroupThreads);
    const std::byte* const source = from + (bytes > 0 ? int64_t{block} * kMxTileBytes : 0);
    const uint32_t at = to + static_cast<uint32_t>(16 * thread);
    ptx::CopyAsync16(at, source, bytes);
    if (thread < (kMxTileBytes - kMxCodeBytes) / 16) {
      ptx::CopyAsync16(at + kMxCodeBytes, source + kMxCodeBytes, bytes);
    }
  }

  // The thread's fragments of a block that Copy() brought to `tile`.
  __device__ static void Decode(const std::byte* tile, uint32_t (&a)[16]) {
    const int thread = static_cast<int>(threadIdx.x % kGroupThreads);
    const uint4 words = *reinterpret_cast<const uint4*>(tile + 16 * thread);
    const uint32_t scales =
        *reinterpret_cast<const uint32_t*>(tile + kMxCodeBytes + thread / 4 * 4);
    const uint32_t codes[4] = {words.x, words.y, words.z, words.w};
    if ((scales & 0x80808080u) == 0) [[likely]] {
#pragma unroll
      for (int z = 0; z < 2; ++z) {
        const uint32_t low = ScalePair(scales >> (8 * z) & 0xffu);
        const uint32_t high = ScalePair(scales >> (8 * z + 16) & 0xffu);
#pragma unroll
        for (int s = 2 * z; s < 2 * z + 2; ++s) {
          a[4 * s] = ptx::MultiplyPair(UnscaledPair<0>(codes[s]), low);
          a[4 * s + 1] = ptx::MultiplyPair(UnscaledPair<1>(codes[s]), high);
          a[4 * s + 2] = ptx::MultiplyPair(UnscaledPair<2>(codes[s]), low);
          a[4 * s + 3] = ptx::MultiplyPair(UnscaledPair<3>(codes[s]), high);
        }
      }
      return;
    }
#pragma unroll
    for (int z = 0; z < 2; ++z) {
#pragma unroll
      for (int h = 0; h < 2; ++h) {
        const uint32_t scale = scales >> (8 * z + 16 * h) & 0xffu;
        const uint32_t first = scale > 128 ? kLargestScalePair : ScalePair(scale);
        const uint32_t second = scale > 128 ? ExcessPair(scale) : 0x3f803f80u;  // 1
#pragma unroll
        for (int s = 2 * z; s < 2 * z + 2; ++s) {
          const uint32_t even = h == 0 ? UnscaledPair<0>(codes[s]) : UnscaledPair<1>(codes[s]);
          const uint32_t odd = h == 0 ? UnscaledPair<2>(codes[s]) : UnscaledPair<3>(codes[s]);
          a[4 * s + h] = ptx::MultiplyPair(ptx::MultiplyPair(even, first), second);
          a[4 * s + h + 2] = ptx::MultiplyPair(ptx::MultiplyPair(odd, first), second);
        }
      }
    }
  }
};

// ---- Tokens ---------------------------------------------------------------------------------

// The rows of a thread block's columns, each thread with those whose pieces it copies: thread i has
// piece i % 8 of columns i / 8, i / 8 + kStep, ...
template <int kColumns, int kThreads>
struct TokenRows {
  static constexpr int kStep = kThreads / kPieces;
  static constexpr int kPerThread = (kColumns + kStep - 1) / kStep;

  const Bf16* from[kPerThread];  // The thread's first piece of the row
  bool is_row[kPerThread];       // False: a column of zeros

  // row(c) is where the values of column c < num_rows begin. `any`: some readable address.
  template <typename Row>
  __device__ TokenRows(int num_rows, const Bf16* any, const Row& row) {
#pragma unroll
    for (int i = 0; i < kPerThread; ++i) {
      const int c = Column(i);
      is_row[i] = c < num_rows;
      from[i] = is_row[i] ? row(c) + threadIdx.x % kPieces * (kPieceBytes / 2) : any;
    }
  }

  __device__ static int Column(int i) {
    return i * kStep + static_cast<int>(threadIdx.x) / kPieces;
  }

  __device__ void Copy(uint32_t to, int in, int block) const {
    const int piece = static_cast<int>(threadIdx.x) % kPieces;
    const int inside = BytesInside(in, block, piece);
    const uint32_t first = to + SwizzledByte(Column(0), piece);  // kStep is a multiple of 8
#pragma unroll
    for (int i = 0; i < kPerThread; ++i) {
      if (kColumns % kStep != 0 && Column(i) >= kColumns) continue;
      const int bytes = is_row[i] ? inside : 0;
      const Bf16* const at = bytes > 0 ? from[i] + int64_t{block} * kTileInputs : from[i];
      ptx::CopyAsync16(first + i * kStep * kTileRowBytes, at, bytes);
    }
  }
};

// ---- The loop -------------------------------------------------------------------------------

template <typename Weights, int kGroups, int kColumns, int kStages>
struct Gemm {
  static_assert(kStages >= 3);
  static constexpr int kThreads = kGroups * kGroupThreads;
  static constexpr int kTokenBytes = kColumns * kTileRowBytes;
  // Tiles begin at multiples of 1,024 bytes: the swizzle counts from there.
  static constexpr int kStageBytes =
      (kTokenBytes + kGroups * Weights::kGroupBytes + 1023) / 1024 * 1024;
  static constexpr int kAhead = kStages - 2;
  static constexpr size_t kSharedBytes = size_t{kStages} * kStageBytes + 1024;
  static_assert(kSharedBytes <= kSharedBytesOfEveryChip);

  const Weights& weights;  // This thread's warpgroup's
  const TokenRows<kColumns, kThreads>& tokens;
  int in;
  std::byte* memory;  // kStages * kStageBytes, at a multiple of 1,024

  __device__ static int GroupOffset() {
    return kTokenBytes + static_cast<int>(threadIdx.x / kGroupThreads) * Weights::kGroupBytes;
  }

  __device__ void Copy(int stage, int block) const {
    const uint32_t to = ptx::SharedAddress(memory) + static_cast<uint32_t>(stage * kStageBytes);
    tokens.Copy(to, in, block);
    weights.Copy(to + GroupOffset(), block);
  }

  // Block `block` lies in stage `stage`; block + kAhead goes to stage `next`. Its weights are
  // decoded into `a` while the block before is multiplied.
  __device__ void Step(int block,
                       int end,
                       int stage,
                       int next,
                       bool is_first,
                       uint32_t (&a)[16],
                       float (&acc)[kColumns / 2]) const {
    ptx::WaitCopies<kAhead - 1>();
    ptx::FenceSharedWrites();
    __syncthreads();  // The block is there for all, and nobody reads the one two before any more.
    if (block + kAhead < end) Copy(next, block + kAhead);
    ptx::CommitCopies();
    const uint32_t at = ptx::SharedAddress(memory) + static_cast<uint32_t>(stage * kStageBytes);
    if constexpr (Weights::kDecodes) {
      Weights::Decode(memory + stage * kStageBytes + GroupOffset(), a);
    }
    if constexpr (ptx::kHasWgmma) {
      ptx::WgmmaWait();
      ptx::WgmmaBegin();
    }
    if constexpr (Weights::kDecodes) {
      MultiplyRegisters<kColumns>(acc, a, at, is_first);
    } else {
      MultiplyShared<kColumns>(acc, at + GroupOffset(), at, is_first);
    }
    if constexpr (ptx::kHasWgmma) ptx::WgmmaCommit();
  }

  __device__ static int After(int stage) { return stage + 1 == kStages ? 0 : stage + 1; }

  // acc = the products of blocks [begin, end) of the inputs, begin < end.
  __device__ void Run(int begin, int end, float (&acc)[kColumns / 2]) const {
#pragma unroll 1
    for (int i = 0; i < kAhead; ++i) {
      if (begin + i < end) Copy(i, begin + i);
      ptx::CommitCopies();
    }
    uint32_t even[16];
    uint32_t odd[16];
    int stage = 0;
    int next = kAhead;
#pragma unroll 1
    for (int block = begin; block < end; block += 2) {
      Step(block, end, stage, next, block == begin, even, acc);
      stage = After(stage);
      next = After(next);
      if (block + 1 == end) break;
      Step(block + 1, end, stage, next, false, odd, acc);
      stage = After(stage);
      next = After(next);
    }
    if constexpr (ptx::kHasWgmma) ptx::WgmmaWait();
    ptx::WaitCopies<0>();
    __syncthreads();  // The ring may be filled anew.
  }
};

// The first multiple of 1,024 in dynamic shared memory, of which 1,024 bytes more were asked for.
__device__ inline std::byte* AlignedShared() {
  extern __shared__ std::byte shared_memory[];
  const uint32_t address = ptx::SharedAddress(shared_memory);
  return shared_memory + ((address + 1023u) / 1024u * 1024u - address);
}

}  // namespace shoal::cuda
