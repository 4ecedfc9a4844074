#include "kernels/cpu/dot.h"

#include <cmath>

#include "kernels/cpu/epilogue.h"
#include "kernels/cpu/lanes_scalar.h"

namespace shoal {
namespace {

constexpr int kLanes = 16;

void LinearProduct(const LinearProductArgs& args) {
  for (int64_t r = 0; r < args.num_rows; ++r) {
    const float* x = args.x + r * args.x_stride;
    for (int64_t i = 0; i < args.num_outs; ++i) {
      const Bf16* w = args.weight + i * args.weight_stride;
      float lanes[kLanes] = {};
      for (int64_t k = 0; k < args.in; ++k) {
        lanes[k % kLanes] = std::fma(x[k], ToFloat(w[k]), lanes[k % kLanes]);
      }
      for (int width = kLanes / 2; width >= 1; width /= 2) {
        for (int j = 0; j < width; ++j) lanes[j] += lanes[j + width];
      }
      args.out[r * args.out_stride + i] = lanes[0];
    }
  }
}

// The code of input k of a row in a block's 256 bytes.
uint32_t CodeAt(const std::byte* codes, int row, int k) {
  const auto byte = std::to_integer<uint32_t>(codes[64 * (k / 8) + 4 * row + k % 4]);
  return k % 8 < 4 ? byte & 15u : byte >> 4;
}

void MxProduct(const MxProductArgs& args) {
  for (int64_t r = 0; r < args.num_rows; ++r) {
    for (int64_t i = 0; i < args.num_tiles * kTileRows; ++i) {
      const int row = static_cast<int>(i % kTileRows);
      const std::byte* tile = args.tiles + i / kTileRows * MxTileBytes(args.num_blocks);
      const std::byte* scales = tile + args.num_blocks * kTileCodeBytes;
      float sum = 0.0f;
      for (int64_t b = 0; b < args.num_blocks; ++b) {
        const QuantBlock& x = args.rows[r][b];
        int32_t dot = 0;
        for (int k = 0; k < kMxBlock; ++k) {
          dot += DoubledE2m1(CodeAt(tile + b * kTileCodeBytes, row, k)) * (256 * x.hi[k] + x.lo[k]);
        }
        const float scale = FromE8m0(std::to_integer<uint8_t>(scales[b * kTileRows + row]));
        sum = std::fma(static_cast<float>(dot) * x.half_scale, scale, sum);
      }
      args.sums[r * args.num_tiles * kTileRows + i] = sum;
    }
  }
}

// ---- Ceilings -----------------------------------------------------------------------------------

int64_t ReadBytes(const std::byte* from, int64_t bytes) {
  const auto* words = reinterpret_cast<const uint64_t*>(from);
  uint64_t bits = 0;
  for (int64_t i = 0; i < bytes / 8; ++i) bits |= words[i];
  return static_cast<int64_t>(bits);
}

int64_t IntDots(int64_t rounds) {
  int8_t a[kIntDotsPerRound];
  int8_t b[kIntDotsPerRound];
  for (int i = 0; i < kIntDotsPerRound; ++i) a[i] = b[i] = static_cast<int8_t>(i % 100);
  int64_t total = 0;
  for (int64_t round = 0; round < rounds; ++round) {
    a[round % kIntDotsPerRound] ^= 1;  // Otherwise one round would do.
    int32_t sum = 0;
    for (int i = 0; i < kIntDotsPerRound; ++i) sum += a[i] * b[i];
    total += sum;
  }
  return total;
}

}  // namespace

namespace internal {

const DotTable kDotTableScalar = {.isa = CpuIsa::kScalar,
                                  .linear_product = LinearProduct,
                                  .mx_product = MxProduct,
                                  .quantize = epilogue::Quantize<LanesScalar>,
                                  .swiglu = epilogue::SwiGlu<LanesScalar>,
                                  .widen = epilogue::Widen<LanesScalar>,
                                  .finish_bf16 = epilogue::FinishBf16<LanesScalar>,
                                  .finish_f32 = epilogue::FinishF32<LanesScalar>,
                                  .read_bytes = ReadBytes,
                                  .int_dots = IntDots};

}  // namespace internal

const DotTable& GetDotTable(CpuIsa isa) {
  switch (isa) {
    case CpuIsa::kScalar:
      break;
    case CpuIsa::kAvx2:
      return internal::kDotTableAvx2;
    case CpuIsa::kAvx512:
      return internal::kDotTableAvx512;
  }
  return internal::kDotTableScalar;
}

}  // namespace shoal
