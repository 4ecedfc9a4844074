// MXFP4 matrices as the CUDA kernels read them, and what their bits mean.
//
// A matrix is a sequence of tiles of 64 rows x 64 inputs, the inputs of 64 rows one after the other
// (rows and inputs beyond the matrix are zeros). A tile is 2,048 bytes of codes, then 128 scales.
//
// Codes: thread i of a warpgroup reads bytes [16 i, 16 i + 16) at once. Word s of the four holds
// its fragment A of k step s (fragments.h): eight codes, four registers of two.
//
// In a word, the low half serves the first and the high half the second element of each register's
// pair. Register r's code, sign S and E1 E0 M, lies at
//
//     bit        15 14 13 12 11 10  9  8  7  6  5  4  3  2  1  0
//     register 0  S                    E1 E0 M
//     register 1           S                    E1 E0 M
//     register 2                    S                    E1 E0 M
//     register 3     S  E1    E0 M
//
// so that register 0 is a mask away from S at bit 15 and E1 E0 M at bits 8-6, registers 1 and 2 a
// shift and a mask, register 3 three of each. There, as a bf16 (exponent at bits 14-7):
//
//     E > 0: 2^(E - 127) (1 + M / 2), the code is 2^(E - 1) (1 + M / 2)
//     E = 0: 2^(-126) M / 2,          the code is M / 2
//
// so the code is the bf16 times 2^126 in both cases. The scale 2^(b - 127) joins that factor: one
// product with 2^(b - 1), exact, gives the weight. For b > 128 that factor is no bf16: then two
// products, the second with 2^(b - 128). A weight that bf16 cannot hold (code 4 or 6 with b of 253
// or 254) becomes infinite.
//
// Scales: byte 4 (8 w + g) + 2 h + z is that of row 16 w + g + 8 h, inputs [32 z, 32 z + 32) of the
// tile: the four that one thread needs are one word.
#pragma once

#include <cstddef>
#include <cstdint>

#include "kernels/cuda/fragments.h"
#include "kernels/numeric.h"

namespace shoal::cuda {

inline constexpr int kMxCodeBytes = kTileOuts * kTileInputs / 2;
inline constexpr int kMxTileBytes = kMxCodeBytes + kTileOuts * kTileInputs / 32;

SHOAL_INLINE constexpr int64_t MxTiles(int64_t n, int64_t unit) {
  return (n + unit - 1) / unit;
}

SHOAL_INLINE constexpr int64_t MxPackedBytes(int64_t out, int64_t in) {
  return MxTiles(out, kTileOuts) * MxTiles(in, kTileInputs) * kMxTileBytes;
}

// A code where register r's half-word has it.
SHOAL_INLINE constexpr uint32_t PlaceCode(uint32_t code, int r) {
  const uint32_t sign = code >> 3;
  const uint32_t rest = code & 7u;
  switch (r) {
    case 0:
      return sign << 15 | rest << 6;
    case 1:
      return sign << 12 | rest << 3;
    case 2:
      return sign << 9 | rest;
    default:
      return sign << 14 | (rest >> 2) << 13 | (rest & 3u) << 10;
  }
}

// Registers r of two bf16, each 2^-126 times its code.
template <int r>
SHOAL_INLINE constexpr uint32_t UnscaledPair(uint32_t word) {
  constexpr uint32_t kMask = 0x81c081c0u;
  if constexpr (r == 0) return word & kMask;
  if constexpr (r == 1) return (word << 3) & kMask;
  if constexpr (r == 2) return (word << 6) & kMask;
  return ((word << 1) & 0x80008000u) | ((word >> 5) & 0x01000100u) | ((word >> 4) & 0x00c000c0u);
}

// 2^(scale - 1) as two equal bf16. REQUIRES: scale <= 128.
SHOAL_INLINE constexpr uint32_t ScalePair(uint32_t scale) {
  return (scale + 126u) * 0x00800080u;
}

// For scale > 128: 2^127, then 2^(scale - 128).
inline constexpr uint32_t kLargestScalePair = 0x7f007f00u;

SHOAL_INLINE constexpr uint32_t ExcessPair(uint32_t scale) {
  return (scale - 1u) * 0x00800080u;
}

// Byte of a tile, and shift in its 32-bit word, are where the code of (row, input) goes.
struct CodePlace {
  int word;   // Of the tile's code words
  int reg;    // Register of the fragment
  int shift;  // 0 or 16
};

SHOAL_INLINE constexpr CodePlace PlaceOf(int row, int input) {
  const int warp = row / 16;
  const int lane = 4 * (row % 8) + input % 8 / 2;
  return {.word = 4 * (32 * warp + lane) + input / 16,
          .reg = row / 8 % 2 + 2 * (input / 8 % 2),
          .shift = 16 * (input % 2)};
}

SHOAL_INLINE constexpr int ScaleByte(int row, int half) {
  return kMxCodeBytes + 4 * (8 * (row / 16) + row % 8) + 2 * (row / 8 % 2) + half;
}

// One 32-bit word of a packed matrix: word `word` of tile `tile`, from the checkpoint's codes
// ([out, in / 32, 16] bytes, input k in nibble k) and scales ([out, in / 32]).
SHOAL_INLINE uint32_t PackedWord(const std::byte* codes,
                                 const uint8_t* scales,
                                 int64_t out,
                                 int64_t in,
                                 int64_t tile,
                                 int word) {
  const int64_t row_tiles = MxTiles(in, kTileInputs);
  const int64_t first_row = tile / row_tiles * kTileOuts;
  const int64_t first_input = tile % row_tiles * kTileInputs;
  uint32_t bits = 0;
  if (word >= kMxCodeBytes / 4) {
    const int at = word - kMxCodeBytes / 4;
    for (int i = 0; i < 4; ++i) {
      const int64_t row = first_row + 16 * (at / 8) + at % 8 + 8 * (i / 2);
      const int64_t input = first_input + 32 * (i % 2);
      const bool is_inside = row < out && input < in;
      const uint32_t scale = is_inside ? scales[row * (in / 32) + input / 32] : 0u;
      bits |= scale << (8 * i);
    }
    return bits;
  }
  const int lane = word / 4 % 32;
  for (int r = 0; r < 4; ++r) {
    const int64_t row = first_row + 16 * (word / 128) + FragmentARow(lane, r);
    for (int half = 0; half < 2; ++half) {
      const int64_t input = first_input + 16 * (word % 4) + FragmentAInput(lane, r) + half;
      if (row >= out || input >= in) continue;
      const auto byte = static_cast<uint32_t>(codes[(row * in + input) / 2]);
      const uint32_t code = input % 2 == 0 ? byte & 15u : byte >> 4;
      bits |= PlaceCode(code, r) << (16 * half);
    }
  }
  return bits;
}

}  // namespace shoal::cuda
