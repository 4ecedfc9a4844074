// AVX-512 F, BW, VL, DQ, VBMI and VNNI. Only intrinsics and functions that are always inlined: an
// out-of-line copy of a shared template could be linked into code for lesser processors.
#include <immintrin.h>

#include "kernels/cpu/dot.h"
#include "kernels/cpu/epilogue.h"
#include "kernels/cpu/lanes_avx512.h"

namespace shoal {
namespace {

// ---- Products with bf16 weights -----------------------------------------------------------------
//
// A (row, output) pair has one register: its 16 lanes. Up to kDirectRows rows the weights are
// widened in registers, four rows times four outputs at a time, since memory is the bound; beyond,
// panels of kPanelOuts x kPanelDepth weights are widened once into the first-level cache and meet
// the rows in tiles of 4 x 6 accumulators, 24 FMAs for 10 loads, while the next outputs' weights
// are fetched into the second-level cache.

constexpr int kTileRowsMax = 4;
constexpr int kDirectRows = 16;
constexpr int kDirectOuts = 4;
constexpr int kPanelOuts = 6;
constexpr int64_t kPanelDepth = 1024;

// Fetches the share [done, done + step) / total of `bytes` bytes into the second-level cache, for a
// loop that uses them when it has done `total`. A prefetch beyond mapped memory does nothing.
SHOAL_INLINE void PrefetchShare(
    const void* begin, int64_t bytes, int64_t done, int64_t step, int64_t total) {
  const char* from = static_cast<const char*>(begin);
  const int64_t last = bytes * (done + step) / total / 64;
  for (int64_t i = bytes * done / total / 64; i < last; ++i) {
    _mm_prefetch(from + 64 * i, _MM_HINT_T1);
  }
}

SHOAL_INLINE __mmask16 FirstLanes(int64_t n) {
  return n >= 16 ? static_cast<__mmask16>(0xffff) : static_cast<__mmask16>((1u << n) - 1u);
}

SHOAL_INLINE __m512 WidenFirst(const Bf16* from, __mmask16 lanes) {
  const __m256i bits = _mm256_maskz_loadu_epi16(lanes, from);
  return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(bits), 16));
}

// For vpermb: the bf16 that go to lanes 0 .. 15, which lie `skip` bf16 into the source, as the
// upper halves of the lanes; kUpperHalves zeroes the lower ones. One instruction widens a lane.
SHOAL_INLINE __m512i WidenIndex(int skip) {
  const __m512i lane = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
  const __m512i low = _mm512_slli_epi32(_mm512_add_epi32(lane, _mm512_set1_epi32(skip)), 1);
  return _mm512_or_si512(_mm512_slli_epi32(low, 16),
                         _mm512_slli_epi32(_mm512_add_epi32(low, _mm512_set1_epi32(1)), 24));
}

constexpr __mmask64 kUpperHalves = 0xccccccccccccccccu;

SHOAL_INLINE __m512 WidenHalf(__m512i index, __m512i pairs) {
  return _mm512_castsi512_ps(_mm512_maskz_permutexvar_epi8(kUpperHalves, index, pairs));
}

// The tree over lanes of four accumulators at once, so that its shuffles are shared.
SHOAL_INLINE void StoreSums(const __m512 lanes[4], float* const to[4], int count) {
  __m256 eight[4];
  for (int i = 0; i < 4; ++i) {
    eight[i] = _mm256_add_ps(_mm512_castps512_ps256(lanes[i]), _mm512_extractf32x8_ps(lanes[i], 1));
  }
  const __m256 ab = _mm256_add_ps(_mm256_permute2f128_ps(eight[0], eight[1], 0x20),
                                  _mm256_permute2f128_ps(eight[0], eight[1], 0x31));
  const __m256 cd = _mm256_add_ps(_mm256_permute2f128_ps(eight[2], eight[3], 0x20),
                                  _mm256_permute2f128_ps(eight[2], eight[3], 0x31));
  const __m256 low = _mm256_shuffle_ps(ab, cd, 0x44);
  const __m256 high = _mm256_shuffle_ps(ab, cd, 0xee);
  const __m256 two = _mm256_add_ps(low, high);  // a a c c | b b d d
  alignas(32) float sums[8];
  _mm256_store_ps(sums, _mm256_add_ps(two, _mm256_movehdup_ps(two)));
  constexpr int kPlace[4] = {0, 4, 2, 6};
  for (int i = 0; i < count; ++i) *to[i] = sums[kPlace[i]];
}

template <int kRows>
SHOAL_INLINE void LinearDirect(const LinearProductArgs& args, int64_t row, int64_t first_out) {
  const __m512i first_half = WidenIndex(0);
  const __m512i second_half = WidenIndex(16);
  const float* x = args.x + row * args.x_stride;
  const Bf16* w[kDirectOuts];
  for (int o = 0; o < kDirectOuts; ++o) {  // Past the end: the last again.
    const int64_t out = first_out + o < args.num_outs ? first_out + o : args.num_outs - 1;
    w[o] = args.weight + out * args.weight_stride;
  }
  __m512 sums[kRows][kDirectOuts];
  for (int r = 0; r < kRows; ++r) {
    for (int o = 0; o < kDirectOuts; ++o) sums[r][o] = _mm512_setzero_ps();
  }
  const int64_t ahead = kDirectOuts * args.weight_stride;  // The next outputs' weights.
  int64_t k = 0;
  for (; k + 32 <= args.in; k += 32) {
    __m512 x0[kRows];
    __m512 x1[kRows];
    for (int r = 0; r < kRows; ++r) {
      x0[r] = _mm512_loadu_ps(x + r * args.x_stride + k);
      x1[r] = _mm512_loadu_ps(x + r * args.x_stride + k + 16);
    }
    for (int o = 0; o < kDirectOuts; ++o) {
      _mm_prefetch(reinterpret_cast<const char*>(w[o] + k + ahead), _MM_HINT_T1);
      const __m512i pairs = _mm512_loadu_si512(w[o] + k);
      const __m512 w0 = WidenHalf(first_half, pairs);
      const __m512 w1 = WidenHalf(second_half, pairs);
      for (int r = 0; r < kRows; ++r) {
        sums[r][o] = _mm512_fmadd_ps(x0[r], w0, sums[r][o]);
        sums[r][o] = _mm512_fmadd_ps(x1[r], w1, sums[r][o]);
      }
    }
  }
  for (; k < args.in; k += 16) {  // Lanes without an element keep their sum.
    const __mmask16 lanes = FirstLanes(args.in - k);
    for (int o = 0; o < kDirectOuts; ++o) {
      const __m512 w0 = WidenFirst(w[o] + k, lanes);
      for (int r = 0; r < kRows; ++r) {
        const __m512 x0 = _mm512_maskz_loadu_ps(lanes, x + r * args.x_stride + k);
        sums[r][o] = _mm512_mask3_fmadd_ps(x0, w0, sums[r][o], lanes);
      }
    }
  }
  const int64_t left = args.num_outs - first_out;
  for (int r = 0; r < kRows; ++r) {
    float* out = args.out + (row + r) * args.out_stride + first_out;
    float* const to[4] = {out, out + 1, out + 2, out + 3};
    StoreSums(sums[r], to, left < kDirectOuts ? static_cast<int>(left) : kDirectOuts);
  }
}

struct LinearPanel {
  alignas(64) float weight[kPanelDepth / 16][kPanelOuts][16];
  alignas(64) float sums[kMaxPanelRows][kPanelOuts][16];
};

// weight[k / 16][o][k % 16]; zeros past the last output and the last element.
SHOAL_INLINE void WidenPanel(const LinearProductArgs& args,
                             int64_t first_out,
                             int64_t first_k,
                             int64_t depth,
                             LinearPanel* panel) {
  const __m512i first_half = WidenIndex(0);
  const __m512i second_half = WidenIndex(16);
  for (int o = 0; o < kPanelOuts; ++o) {
    const Bf16* w = args.weight + (first_out + o) * args.weight_stride + first_k;
    const int64_t known = first_out + o < args.num_outs ? depth : 0;
    int64_t k = 0;
    for (; k + 32 <= known; k += 32) {
      const __m512i pairs = _mm512_loadu_si512(w + k);
      _mm512_store_ps(panel->weight[k / 16][o], WidenHalf(first_half, pairs));
      _mm512_store_ps(panel->weight[k / 16 + 1][o], WidenHalf(second_half, pairs));
    }
    for (; k < depth; k += 16) {
      const __mmask16 lanes = k < known ? FirstLanes(known - k) : __mmask16{0};
      _mm512_store_ps(panel->weight[k / 16][o], WidenFirst(w + k, lanes));
    }
  }
}

template <int kRows>
SHOAL_INLINE void LinearTile(const float* x,
                             int64_t x_stride,
                             int64_t depth,
                             const float (*weight)[kPanelOuts][16],
                             float (*sums)[kPanelOuts][16]) {
  __m512 acc[kRows][kPanelOuts];
  for (int r = 0; r < kRows; ++r) {
    for (int o = 0; o < kPanelOuts; ++o) acc[r][o] = _mm512_load_ps(sums[r][o]);
  }
  const int64_t whole = depth / 16;
  for (int64_t k = 0; k < whole; ++k) {
    __m512 xs[kRows];
    for (int r = 0; r < kRows; ++r) xs[r] = _mm512_loadu_ps(x + r * x_stride + k * 16);
    for (int o = 0; o < kPanelOuts; ++o) {
      const __m512 w = _mm512_load_ps(weight[k][o]);
      for (int r = 0; r < kRows; ++r) acc[r][o] = _mm512_fmadd_ps(xs[r], w, acc[r][o]);
    }
  }
  if (depth % 16 != 0) {
    const __mmask16 lanes = FirstLanes(depth % 16);
    for (int r = 0; r < kRows; ++r) {
      const __m512 xs = _mm512_maskz_loadu_ps(lanes, x + r * x_stride + whole * 16);
      for (int o = 0; o < kPanelOuts; ++o) {
        acc[r][o] = _mm512_mask3_fmadd_ps(xs, _mm512_load_ps(weight[whole][o]), acc[r][o], lanes);
      }
    }
  }
  for (int r = 0; r < kRows; ++r) {
    for (int o = 0; o < kPanelOuts; ++o) _mm512_store_ps(sums[r][o], acc[r][o]);
  }
}

// LinearTile<rows>.
template <int kRows>
void LinearRows(int64_t rows,
                const float* x,
                int64_t x_stride,
                int64_t depth,
                const float (*weight)[kPanelOuts][16],
                float (*sums)[kPanelOuts][16]) {
  if (rows == kRows) return LinearTile<kRows>(x, x_stride, depth, weight, sums);
  if constexpr (kRows > 1) LinearRows<kRows - 1>(rows, x, x_stride, depth, weight, sums);
}

// Six outputs of all rows, from their sixteen sums each.
void StorePanelSums(const LinearProductArgs& args, int64_t first_out, const LinearPanel& panel) {
  const int64_t left = args.num_outs - first_out;
  const int outs = left < kPanelOuts ? static_cast<int>(left) : kPanelOuts;
  for (int64_t row = 0; row < args.num_rows; row += 4) {
    const int count = args.num_rows - row < 4 ? static_cast<int>(args.num_rows - row) : 4;
    for (int o = 0; o < outs; ++o) {
      __m512 lanes[4];
      float* to[4];
      for (int i = 0; i < 4; ++i) {
        const int64_t r = i < count ? row + i : row;
        lanes[i] = _mm512_load_ps(panel.sums[r][o]);
        to[i] = args.out + r * args.out_stride + first_out + o;
      }
      StoreSums(lanes, to, count);
    }
  }
}

void LinearPanels(const LinearProductArgs& args) {
  LinearPanel panel;
  for (int64_t out = 0; out < args.num_outs; out += kPanelOuts) {
    for (int64_t r = 0; r < args.num_rows; ++r) {
      for (int o = 0; o < kPanelOuts; ++o) _mm512_store_ps(panel.sums[r][o], _mm512_setzero_ps());
    }
    const Bf16* next = args.weight + (out + kPanelOuts) * args.weight_stride;
    const int64_t next_bytes = kPanelOuts * args.weight_stride * int64_t{sizeof(Bf16)};
    for (int64_t k = 0; k < args.in; k += kPanelDepth) {
      const int64_t depth = args.in - k < kPanelDepth ? args.in - k : kPanelDepth;
      WidenPanel(args, out, k, depth, &panel);
      for (int64_t row = 0; row < args.num_rows; row += kTileRowsMax) {
        const int64_t rows =
            args.num_rows - row < kTileRowsMax ? args.num_rows - row : kTileRowsMax;
        PrefetchShare(next,
                      next_bytes,
                      k * args.num_rows + row * depth,
                      rows * depth,
                      args.in * args.num_rows);
        LinearRows<kTileRowsMax>(rows,
                                 args.x + row * args.x_stride + k,
                                 args.x_stride,
                                 depth,
                                 panel.weight,
                                 panel.sums + row);
      }
    }
    StorePanelSums(args, out, panel);
  }
}

// LinearDirect<rows>.
template <int kRows>
void LinearDirectRows(int64_t rows, const LinearProductArgs& args, int64_t row, int64_t out) {
  if (rows == kRows) return LinearDirect<kRows>(args, row, out);
  if constexpr (kRows > 1) LinearDirectRows<kRows - 1>(rows, args, row, out);
}

void LinearProduct(const LinearProductArgs& args) {
  if (args.num_rows > kDirectRows) return LinearPanels(args);
  const int64_t num_groups = (args.num_rows + kTileRowsMax - 1) / kTileRowsMax;
  for (int64_t out = 0; out < args.num_outs; out += kDirectOuts) {
    for (int64_t group = 0; group < num_groups; ++group) {
      const int64_t row = args.num_rows * group / num_groups;
      const int64_t end = args.num_rows * (group + 1) / num_groups;
      LinearDirectRows<kTileRowsMax>(end - row, args, row, out);
    }
  }
}

// ---- Products with MXFP4 weights ----------------------------------------------------------------
//
// vpermb looks a code up in a table of its doubled value + 12. It reads six bits of each index
// byte: with the table four times over, the two bits of the neighbouring code do no harm, and no
// AND is needed. The products' excess of 12 * (sum of q) is the accumulator's first value.
//
// A block's 256 bytes become eight registers of codes, which meet up to eight rows: two vpdpbusd
// for each register and row, one of hi and one of lo, their other operand broadcast from memory.
// For eight rows that is 128 of 180 instructions on the two vector ports, for one, which memory
// bounds, 16 of 33. Measured with 2,880 inputs: with eight rows or more 0.66 of the vpdpbusd rate
// on one core of a Sapphire Rapids, 0.86 on a Zen 4; with one or two rows all the read bandwidth of
// one core of a Zen 4.

constexpr int kMxRows = 8;

SHOAL_INLINE __m512i CodeTable() {
  return _mm512_broadcast_i32x4(
      _mm_setr_epi8(12, 13, 14, 15, 16, 18, 20, 24, 12, 11, 10, 9, 8, 6, 4, 0));
}

// 2^(byte - 127); byte 0 is the subnormal 2^-127.
SHOAL_INLINE __m512 Scales(const std::byte* bytes) {
  const __m128i loaded = _mm_loadu_si128(reinterpret_cast<const __m128i*>(bytes));
  const __m512i exponents = _mm512_slli_epi32(_mm512_cvtepu8_epi32(loaded), 23);
  return _mm512_castsi512_ps(_mm512_max_epi32(exponents, _mm512_set1_epi32(0x00400000)));
}

SHOAL_INLINE __m512i BroadcastWord(const void* from) {
  int32_t word;
  __builtin_memcpy(&word, from, sizeof(word));
  return _mm512_set1_epi32(word);
}

SHOAL_INLINE __m512 AddBlock(__m512i dot, float half_scale, __m512 scales, __m512 sum) {
  const __m512 product = _mm512_mul_ps(_mm512_cvtepi32_ps(dot), _mm512_set1_ps(half_scale));
  return _mm512_fmadd_ps(product, scales, sum);
}

// A block of the next tile, into the second-level cache: the processor's own prefetchers stop at
// the end of a page, and what goes to the first level waits for one of its few places for misses.
SHOAL_INLINE void PrefetchNextTile(const std::byte* codes,
                                   const std::byte* scales,
                                   int64_t tile_bytes) {
  for (int z = 0; z < 4; ++z) {
    _mm_prefetch(reinterpret_cast<const char*>(codes + 64 * z) + tile_bytes, _MM_HINT_T1);
  }
  _mm_prefetch(reinterpret_cast<const char*>(scales) + tile_bytes, _MM_HINT_T1);
}

template <int kRows>
SHOAL_INLINE void MxTile(const MxProductArgs& args, int64_t row, int64_t tile_index) {
  const __m512i table = CodeTable();
  const int64_t tile_bytes = MxTileBytes(args.num_blocks);
  const std::byte* tile = args.tiles + tile_index * tile_bytes;
  const std::byte* scale_bytes = tile + args.num_blocks * kTileCodeBytes;
  __m512 sums[kRows];
  for (int r = 0; r < kRows; ++r) sums[r] = _mm512_setzero_ps();
  for (int64_t b = 0; b < args.num_blocks; ++b) {
    const std::byte* codes = tile + b * kTileCodeBytes;
    __m512i w[8];
    PrefetchNextTile(codes, scale_bytes + b * kTileRows, tile_bytes);
    for (int z = 0; z < 4; ++z) {
      const __m512i bytes = _mm512_loadu_si512(codes + 64 * z);
      w[2 * z] = _mm512_permutexvar_epi8(bytes, table);
      w[2 * z + 1] = _mm512_permutexvar_epi8(_mm512_srli_epi16(bytes, 4), table);
    }
    const __m512 scales = Scales(scale_bytes + b * kTileRows);
    const QuantBlock* x[kRows];
    __m512i hi[kRows];
    __m512i lo[kRows];
    for (int r = 0; r < kRows; ++r) {
      x[r] = args.rows[row + r] + b;
      hi[r] = _mm512_setzero_si512();
      lo[r] = _mm512_set1_epi32(x[r]->offset);
    }
#pragma GCC unroll 8
    for (int i = 0; i < 8; ++i) {
      for (int r = 0; r < kRows; ++r) {
        hi[r] = _mm512_dpbusd_epi32(hi[r], w[i], BroadcastWord(x[r]->hi + 4 * i));
        lo[r] = _mm512_dpbusd_epi32(lo[r], w[i], BroadcastWord(x[r]->lo + 4 * i));
      }
    }
    for (int r = 0; r < kRows; ++r) {
      const __m512i dot = _mm512_add_epi32(_mm512_slli_epi32(hi[r], 8), lo[r]);
      sums[r] = AddBlock(dot, x[r]->half_scale, scales, sums[r]);
    }
  }
  for (int r = 0; r < kRows; ++r) {
    _mm512_storeu_ps(args.sums + ((row + r) * args.num_tiles + tile_index) * kTileRows, sums[r]);
  }
}

// MxTile<count>.
template <int kRows>
void MxRows(int64_t count, const MxProductArgs& args, int64_t row, int64_t tile) {
  if (count == kRows) return MxTile<kRows>(args, row, tile);
  if constexpr (kRows > 1) MxRows<kRows - 1>(count, args, row, tile);
}

// Groups of rows as equal as can be: expanding a tile costs the same for any.
void MxProduct(const MxProductArgs& args) {
  const int64_t num_groups = (args.num_rows + kMxRows - 1) / kMxRows;
  for (int64_t tile = 0; tile < args.num_tiles; ++tile) {
    for (int64_t group = 0; group < num_groups; ++group) {
      const int64_t row = args.num_rows * group / num_groups;
      const int64_t end = args.num_rows * (group + 1) / num_groups;
      MxRows<kMxRows>(end - row, args, row, tile);
    }
  }
}

// ---- Ceilings -----------------------------------------------------------------------------------

int64_t ReadBytes(const std::byte* from, int64_t bytes) {
  __m512i bits[4] = {};
  for (int64_t i = 0; i < bytes; i += 256) {
    for (int j = 0; j < 4; ++j) {
      _mm_prefetch(reinterpret_cast<const char*>(from + i + 64 * j) + 4096, _MM_HINT_T1);
      bits[j] = _mm512_or_si512(bits[j], _mm512_loadu_si512(from + i + 64 * j));
    }
  }
  const __m512i all =
      _mm512_or_si512(_mm512_or_si512(bits[0], bits[1]), _mm512_or_si512(bits[2], bits[3]));
  return _mm512_reduce_or_epi64(all);
}

int64_t IntDots(int64_t rounds) {
  constexpr int kSums = 16;
  constexpr int kDotsPerSum = 64;
  static_assert(kIntDotsPerRound == kSums * kDotsPerSum);
  __m512i sums[kSums];  // All different, or one would do for all.
  for (int s = 0; s < kSums; ++s) sums[s] = _mm512_set1_epi32(s);
  const __m512i a = _mm512_set1_epi8(3);
  const __m512i b = _mm512_set1_epi8(-5);
  for (int64_t i = 0; i < rounds; ++i) {
#pragma GCC unroll 16
    for (int s = 0; s < kSums; ++s) sums[s] = _mm512_dpbusd_epi32(sums[s], a, b);
  }
  for (int s = 1; s < kSums; ++s) sums[0] = _mm512_add_epi32(sums[0], sums[s]);
  return _mm512_reduce_add_epi32(sums[0]);
}

}  // namespace

namespace internal {

const DotTable kDotTableAvx512 = {.isa = CpuIsa::kAvx512,
                                  .linear_product = LinearProduct,
                                  .mx_product = MxProduct,
                                  .quantize = epilogue::Quantize<LanesAvx512>,
                                  .swiglu = epilogue::SwiGlu<LanesAvx512>,
                                  .widen = epilogue::Widen<LanesAvx512>,
                                  .finish_bf16 = epilogue::FinishBf16<LanesAvx512>,
                                  .finish_f32 = epilogue::FinishF32<LanesAvx512>,
                                  .read_bytes = ReadBytes,
                                  .int_dots = IntDots};

}  // namespace internal
}  // namespace shoal
