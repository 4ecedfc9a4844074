// Where the matrix units expect the elements of a tile: in the registers of a warp, and in shared
// memory. Pure index arithmetic, so the host's tests can compute whole products with it.
//
// Registers, after the PTX manual (mma.sync m16n8k16 and wgmma m64nNk16 agree; warp w of a
// warpgroup has rows 16 w to 16 w + 15). Lane = 4 g + t, g < 8, t < 4:
//
//     A, 16 x 16   register r of 4 holds the pair  (row g + 8 (r % 2), k = 2 t + 8 (r / 2) + {0,
//     1}) B, 16 x 8    register r of 2 holds the pair  (k = 2 t + 8 r + {0, 1}, column g) C, 16 x 8
//     value c of 4 is                 (row g + 8 (c / 2), column 2 t + c % 2)
//
// Shared memory: a tile row is 64 bf16, 128 bytes, eight 16-byte pieces; piece p of row r lies at
// piece p ^ (r % 8), so that eight rows' equal pieces lie in different banks. It is the 128-byte
// swizzle of wgmma's descriptors: address bits 4-6 are xored with bits 7-9, tiles beginning at
// multiples of 1,024.
#pragma once

#include <cstdint>

#include "kernels/numeric.h"

namespace shoal::cuda {

inline constexpr int kTileInputs = 64;  // Inputs (k) of a tile: one swizzled row of bf16
inline constexpr int kTileOuts = 64;    // Weight rows of a warpgroup's tile
inline constexpr int kTileRowBytes = 128;
inline constexpr int kPieceBytes = 16;
inline constexpr int kPieces = kTileRowBytes / kPieceBytes;

SHOAL_INLINE constexpr int SwizzledByte(int row, int piece) {
  return row * kTileRowBytes + ((piece ^ (row & 7)) * kPieceBytes);
}

// Of register r of A: the row of its pair, and the first of its two k.
SHOAL_INLINE constexpr int FragmentARow(int lane, int r) {
  return lane / 4 + 8 * (r % 2);
}

SHOAL_INLINE constexpr int FragmentAInput(int lane, int r) {
  return 2 * (lane % 4) + 8 * (r / 2);
}

SHOAL_INLINE constexpr int FragmentBColumn(int lane) {
  return lane / 4;
}

SHOAL_INLINE constexpr int FragmentBInput(int lane, int r) {
  return 2 * (lane % 4) + 8 * r;
}

// Of value c of C.
SHOAL_INLINE constexpr int FragmentCRow(int lane, int c) {
  return lane / 4 + 8 * (c / 2);
}

SHOAL_INLINE constexpr int FragmentCColumn(int lane, int c) {
  return 2 * (lane % 4) + c % 2;
}

// The piece of a swizzled tile whose address lane `lane` gives to ldmatrix.x4 (not transposed), so
// that its registers are: A of rows [16 w, 16 w + 16), k step s; or B of two groups of 8 columns.
SHOAL_INLINE constexpr int LoadARow(int lane, int warp) {
  return 16 * warp + lane % 16;
}

SHOAL_INLINE constexpr int LoadAPiece(int lane, int step) {
  return 2 * step + lane / 16;
}

// Matrices 0, 1: columns [first, first + 8), the step's two pieces; 2, 3: the eight columns after.
SHOAL_INLINE constexpr int LoadBRow(int lane, int first) {
  return first + lane % 8 + 8 * (lane / 16);
}

SHOAL_INLINE constexpr int LoadBPiece(int lane, int step) {
  return 2 * step + lane / 8 % 2;
}

// With .trans, for B of p . v: rows of the tile are k (positions), pieces are columns. Matrices 0,
// 1: k of step s, columns of `piece`; 2, 3: the same k, the next piece.
SHOAL_INLINE constexpr int LoadTransposedRow(int lane, int step) {
  return 16 * step + lane % 16;
}

SHOAL_INLINE constexpr int LoadTransposedPiece(int lane, int piece) {
  return piece + lane / 16;
}

// wgmma's descriptor of a swizzled tile that begins at shared-memory address `address`: bits 0-13
// the address / 16, bits 32-45 the distance of 8-row groups / 16, bits 62-63 the swizzle (1: 128
// bytes). The leading distance (bits 16-29) does not count with a swizzle and is 1. A step of 16
// inputs is 32 bytes further.
SHOAL_INLINE constexpr uint64_t TileDescriptor(uint32_t address) {
  return (uint64_t{address & 0x3ffffu} >> 4) | uint64_t{1} << 16 |
         uint64_t{8 * kTileRowBytes / 16} << 32 | uint64_t{1} << 62;
}

inline constexpr uint64_t kDescriptorStep = 2;  // 32 bytes / 16

}  // namespace shoal::cuda
