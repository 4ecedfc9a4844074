// BF16 experts that hold MXFP4 values become MXFP4 again: a re-save of a release is one, and then
// takes a quarter of the memory and gives the release's own bits. Nothing is rounded: what is not
// on the grid is refused.
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>
#include <vector>

namespace shoal {

struct Mxfp4Matrix {
  std::vector<std::byte> codes;  // [out, in / 32, 16], element 2 j in the low half of byte j
  std::vector<uint8_t> scales;   // [out, in / 32] E8M0
};

struct MatrixPlace {
  int64_t in = 0;
  int64_t out = 0;
};

// Values are the bits of bf16 numbers, here and below.
//
// Whether every value could be one of E2M1 times a power of two. True for values of an MXFP4 block;
// for weights that were trained further it is chance, once in 64 values.
bool LooksLikeMxfp4(std::span<const uint16_t> values);

// Packs `weight`, [in, out] as BF16 checkpoints store it, into `matrix`, whose memory is used
// again. Each block gets the scale that puts its largest magnitude at 4 or 6, so codes may differ
// from those that the values came from; products do not. Returns the block's place if there is no
// scale under which all its values are codes. REQUIRES: in and out are multiples of 32.
std::optional<MatrixPlace> PackMxfp4(std::span<const uint16_t> weight,
                                     int64_t in,
                                     int64_t out,
                                     Mxfp4Matrix* matrix);

}  // namespace shoal
