// Weights from a formula (spec 8.6), for any geometry: every byte follows from the name of its
// tensor and its index, so any part of any model can be made anywhere without a file.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>

#include "kernels/synthetic.h"
#include "model/config.h"
#include "model/tensors.h"

namespace shoal {

// Fills `out` with bytes [offset, offset + out.size()) of `tensor` as a checkpoint stores it,
// little-endian. BF16 experts are the dequantised, transposed MXFP4 ones of the same name.
// REQUIRES: the range lies inside the tensor. About 4 GB/s per core of U8 with AVX-512.
void FillSynthetic(const ModelTensor& tensor, int64_t offset, std::span<std::byte> out);

// The same as numbers, for a device that makes weights itself: element i of `tensor`. REQUIRES: not
// BF16 experts, whose elements are made of two tensors.
SyntheticFormula FormulaOf(const ModelTensor& tensor);

}  // namespace shoal
