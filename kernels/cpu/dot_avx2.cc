// AVX2 and FMA. Only intrinsics and functions that are always inlined or local: an out-of-line copy
// of a shared template could be linked into code for lesser processors.
#include <immintrin.h>

#include "kernels/cpu/dot.h"
#include "kernels/cpu/epilogue.h"
#include "kernels/cpu/lanes_avx2.h"

namespace shoal {
namespace {

// ---- Products with bf16 weights -----------------------------------------------------------------
//
// Sixteen lanes are two registers; a tile of 3 rows x 2 outputs has 12, and 2 for a weight.

constexpr int kLinearRows = 3;
constexpr int kLinearOuts = 2;

// Products of the first `left` of 16 elements; the lanes beyond keep their sum.
SHOAL_INLINE LanesAvx2 FmaFirst(const float* x, const Bf16* w, int64_t left, const LanesAvx2& sum) {
  const __m256i count = _mm256_set1_epi32(static_cast<int>(left));
  const __m256i lane = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
  const __m256i low = _mm256_cmpgt_epi32(count, lane);
  const __m256i high = _mm256_cmpgt_epi32(count, _mm256_add_epi32(lane, _mm256_set1_epi32(8)));
  const LanesAvx2 all = Fma(LanesAvx2::LoadFirst(x, left), LanesAvx2::LoadFirst(w, left), sum);
  return {_mm256_blendv_ps(sum.low, all.low, _mm256_castsi256_ps(low)),
          _mm256_blendv_ps(sum.high, all.high, _mm256_castsi256_ps(high))};
}

template <int kRows, int kOuts>
SHOAL_INLINE void LinearTile(const LinearProductArgs& args, int64_t row, int64_t out) {
  const float* x = args.x + row * args.x_stride;
  const Bf16* w = args.weight + out * args.weight_stride;
  LanesAvx2 sums[kRows][kOuts];
  for (int r = 0; r < kRows; ++r) {
    for (int o = 0; o < kOuts; ++o) sums[r][o] = LanesAvx2::Broadcast(0.0f);
  }
  const int64_t ahead = kOuts * args.weight_stride;  // The next outputs' weights.
  int64_t k = 0;
  for (; k + 16 <= args.in; k += 16) {
    for (int o = 0; o < kOuts; ++o) {
      _mm_prefetch(reinterpret_cast<const char*>(w + o * args.weight_stride + k + ahead),
                   _MM_HINT_T1);
      const LanesAvx2 weight = LanesAvx2::Load(w + o * args.weight_stride + k);
      for (int r = 0; r < kRows; ++r) {
        sums[r][o] = Fma(LanesAvx2::Load(x + r * args.x_stride + k), weight, sums[r][o]);
      }
    }
  }
  for (int r = 0; r < kRows; ++r) {
    for (int o = 0; o < kOuts; ++o) {
      if (k < args.in) {
        sums[r][o] = FmaFirst(
            x + r * args.x_stride + k, w + o * args.weight_stride + k, args.in - k, sums[r][o]);
      }
      args.out[(row + r) * args.out_stride + out + o] = Sum(sums[r][o]);
    }
  }
}

// LinearTile<rows, kOuts>.
template <int kRows, int kOuts>
void LinearRows(int64_t rows, const LinearProductArgs& args, int64_t row, int64_t out) {
  if (rows == kRows) return LinearTile<kRows, kOuts>(args, row, out);
  if constexpr (kRows > 1) LinearRows<kRows - 1, kOuts>(rows, args, row, out);
}

// Groups of rows as equal as can be: widening the weights costs the same for any.
template <int kOuts>
void LinearGroups(const LinearProductArgs& args, int64_t out) {
  const int64_t num_groups = (args.num_rows + kLinearRows - 1) / kLinearRows;
  for (int64_t group = 0; group < num_groups; ++group) {
    const int64_t row = args.num_rows * group / num_groups;
    const int64_t end = args.num_rows * (group + 1) / num_groups;
    LinearRows<kLinearRows, kOuts>(end - row, args, row, out);
  }
}

void LinearProduct(const LinearProductArgs& args) {
  int64_t out = 0;
  for (; out + kLinearOuts <= args.num_outs; out += kLinearOuts) {
    LinearGroups<kLinearOuts>(args, out);
  }
  for (; out < args.num_outs; ++out) LinearGroups<1>(args, out);
}

// ---- Products with MXFP4 weights ----------------------------------------------------------------
//
// Eight rows of a tile at a time: a block's codes become eight registers of unsigned bytes, as in
// the AVX-512 version. vpmaddubsw multiplies them by hi and lo and adds pairs in 16 bits: at most
// 2 * 24 * 128 = 6,144, so four such sums fit before vpmaddwd widens them, and nothing saturates.

constexpr int kHalfRows = kTileRows / 2;
constexpr int kMxRows = 4;

SHOAL_INLINE __m256i CodeTable() {
  return _mm256_broadcastsi128_si256(
      _mm_setr_epi8(12, 13, 14, 15, 16, 18, 20, 24, 12, 11, 10, 9, 8, 6, 4, 0));
}

// The codes of eight rows: of each 64 bytes, the half at `codes`.
SHOAL_INLINE void ExpandCodes(const std::byte* codes, __m256i w[8]) {
  const __m256i table = CodeTable();
  const __m256i nibble = _mm256_set1_epi8(15);
  for (int z = 0; z < 4; ++z) {
    const __m256i bytes = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(codes + 64 * z));
    w[2 * z] = _mm256_shuffle_epi8(table, _mm256_and_si256(bytes, nibble));
    w[2 * z + 1] =
        _mm256_shuffle_epi8(table, _mm256_and_si256(_mm256_srli_epi16(bytes, 4), nibble));
  }
}

SHOAL_INLINE __m256i BroadcastWord(const int8_t* from) {
  int32_t word;
  __builtin_memcpy(&word, from, sizeof(word));
  return _mm256_set1_epi32(word);
}

// Sums over the 32 inputs, a row in each 32-bit lane.
SHOAL_INLINE __m256i Dot(const __m256i w[8], const int8_t* x) {
  const __m256i ones = _mm256_set1_epi16(1);
  __m256i dot = _mm256_setzero_si256();
  for (int i = 0; i < 8; i += 4) {
    const __m256i low =
        _mm256_add_epi16(_mm256_maddubs_epi16(w[i], BroadcastWord(x + 4 * i)),
                         _mm256_maddubs_epi16(w[i + 1], BroadcastWord(x + 4 * i + 4)));
    const __m256i high =
        _mm256_add_epi16(_mm256_maddubs_epi16(w[i + 2], BroadcastWord(x + 4 * i + 8)),
                         _mm256_maddubs_epi16(w[i + 3], BroadcastWord(x + 4 * i + 12)));
    dot = _mm256_add_epi32(dot, _mm256_madd_epi16(_mm256_add_epi16(low, high), ones));
  }
  return dot;
}

// 2^(byte - 127) of eight rows; byte 0 is the subnormal 2^-127.
SHOAL_INLINE __m256 Scales(const std::byte* bytes) {
  const __m128i loaded = _mm_loadl_epi64(reinterpret_cast<const __m128i*>(bytes));
  const __m256i exponents = _mm256_slli_epi32(_mm256_cvtepu8_epi32(loaded), 23);
  return _mm256_castsi256_ps(_mm256_max_epi32(exponents, _mm256_set1_epi32(0x00400000)));
}

template <int kRows>
SHOAL_INLINE void MxTile(const MxProductArgs& args, int64_t row, int64_t tile_index, int half) {
  const int64_t tile_bytes = MxTileBytes(args.num_blocks);
  const std::byte* tile = args.tiles + tile_index * tile_bytes;
  const std::byte* codes = tile + half * 4 * kHalfRows;
  const std::byte* scale_bytes = tile + args.num_blocks * kTileCodeBytes + half * kHalfRows;
  __m256 sums[kRows];
  for (int r = 0; r < kRows; ++r) sums[r] = _mm256_setzero_ps();
  for (int64_t b = 0; b < args.num_blocks; ++b) {
    for (int z = 0; z < 4; ++z) {  // The next tile, into the second-level cache.
      _mm_prefetch(reinterpret_cast<const char*>(codes + b * kTileCodeBytes + 64 * z) + tile_bytes,
                   _MM_HINT_T1);
    }
    __m256i w[8];
    ExpandCodes(codes + b * kTileCodeBytes, w);
    const __m256 scales = Scales(scale_bytes + b * kTileRows);
    for (int r = 0; r < kRows; ++r) {
      const QuantBlock& x = args.rows[row + r][b];
      const __m256i lo = _mm256_add_epi32(Dot(w, x.lo), _mm256_set1_epi32(x.offset));
      const __m256i dot = _mm256_add_epi32(_mm256_slli_epi32(Dot(w, x.hi), 8), lo);
      const __m256 product = _mm256_mul_ps(_mm256_cvtepi32_ps(dot), _mm256_set1_ps(x.half_scale));
      sums[r] = _mm256_fmadd_ps(product, scales, sums[r]);
    }
  }
  for (int r = 0; r < kRows; ++r) {
    float* to = args.sums + ((row + r) * args.num_tiles + tile_index) * kTileRows;
    _mm256_storeu_ps(to + half * kHalfRows, sums[r]);
  }
}

// MxTile<rows>.
template <int kRows>
void MxRows(int64_t rows, const MxProductArgs& args, int64_t row, int64_t tile, int half) {
  if (rows == kRows) return MxTile<kRows>(args, row, tile, half);
  if constexpr (kRows > 1) MxRows<kRows - 1>(rows, args, row, tile, half);
}

void MxProduct(const MxProductArgs& args) {
  const int64_t num_groups = (args.num_rows + kMxRows - 1) / kMxRows;
  for (int64_t tile = 0; tile < args.num_tiles; ++tile) {
    for (int half = 0; half < 2; ++half) {
      for (int64_t group = 0; group < num_groups; ++group) {
        const int64_t row = args.num_rows * group / num_groups;
        const int64_t end = args.num_rows * (group + 1) / num_groups;
        MxRows<kMxRows>(end - row, args, row, tile, half);
      }
    }
  }
}

// ---- Ceilings -----------------------------------------------------------------------------------

int64_t ReadBytes(const std::byte* from, int64_t bytes) {
  __m256i bits[4] = {};
  for (int64_t i = 0; i < bytes; i += 128) {
    _mm_prefetch(reinterpret_cast<const char*>(from + i) + 2048, _MM_HINT_T0);
    _mm_prefetch(reinterpret_cast<const char*>(from + i) + 2048 + 64, _MM_HINT_T0);
    for (int j = 0; j < 4; ++j) {
      const auto* at = reinterpret_cast<const __m256i*>(from + i + 32 * j);
      bits[j] = _mm256_or_si256(bits[j], _mm256_loadu_si256(at));
    }
  }
  const __m256i all =
      _mm256_or_si256(_mm256_or_si256(bits[0], bits[1]), _mm256_or_si256(bits[2], bits[3]));
  return _mm256_extract_epi64(all, 0) | _mm256_extract_epi64(all, 1) |
         _mm256_extract_epi64(all, 2) | _mm256_extract_epi64(all, 3);
}

int64_t IntDots(int64_t rounds) {
  constexpr int kSums = 8;
  constexpr int kDotsPerSum = 32;
  __m256i sums[kSums] = {};
  const __m256i ones = _mm256_set1_epi16(1);
  __m256i a = _mm256_set1_epi8(3);
  const __m256i b = _mm256_set1_epi8(5);
  for (int64_t i = 0; i < rounds * (kIntDotsPerRound / kSums / kDotsPerSum); ++i) {
    for (int s = 0; s < kSums; ++s) {
      a = _mm256_xor_si256(a, b);  // Otherwise one product would do for all.
      sums[s] = _mm256_add_epi32(sums[s], _mm256_madd_epi16(_mm256_maddubs_epi16(a, b), ones));
    }
  }
  for (int s = 1; s < kSums; ++s) sums[0] = _mm256_add_epi32(sums[0], sums[s]);
  return _mm256_extract_epi64(sums[0], 0);
}

}  // namespace

namespace internal {

const DotTable kDotTableAvx2 = {.isa = CpuIsa::kAvx2,
                                .linear_product = LinearProduct,
                                .mx_product = MxProduct,
                                .quantize = epilogue::Quantize<LanesAvx2>,
                                .swiglu = epilogue::SwiGlu<LanesAvx2>,
                                .widen = epilogue::Widen<LanesAvx2>,
                                .finish_bf16 = epilogue::FinishBf16<LanesAvx2>,
                                .finish_f32 = epilogue::FinishF32<LanesAvx2>,
                                .read_bytes = ReadBytes,
                                .int_dots = IntDots};

}  // namespace internal
}  // namespace shoal
