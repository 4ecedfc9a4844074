#include "kernels/cpu/dot.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <limits>

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
          dot += DoubledE2m1(CodeAt(tile + b * kTileCodeBytes, row, k)) * x.q[k];
        }
        const float scale = FromE8m0(std::to_integer<uint8_t>(scales[b * kTileRows + row]));
        sum = std::fma(static_cast<float>(dot) * x.half_scale, scale, sum);
      }
      args.sums[r * args.num_tiles * kTileRows + i] = sum;
    }
  }
}

// The largest |x| is 1.m * 2^E. With the scale 2^(E - 14) its q is 1.m * 2^14 <= 32,512 if m is not
// all ones, and 32,640, one too many, if it is. Adding one to the bits carries into the exponent in
// exactly that case. Subnormals count as exponent -126, where every q is exact anyway.
void QuantizeBlock(const Bf16* x, QuantBlock* block) {
  uint32_t largest = 0;
  for (int k = 0; k < kMxBlock; ++k) largest = std::max<uint32_t>(largest, x[k].bits & 0x7fffu);
  const bool finite = largest < 0x7f80u;
  const int biased = finite ? std::max<int>(static_cast<int>((largest + 1) >> 7), 1) : 127;

  int32_t sum = 0;
  for (int k = 0; k < kMxBlock; ++k) {
    // 2^(141 - biased) may be out of range: two factors.
    const double scaled = std::ldexp(static_cast<double>(ToFloat(x[k])), 141 - biased);
    const auto q = finite ? static_cast<int32_t>(std::nearbyint(scaled)) : 0;
    block->q[k] = static_cast<int16_t>(q);
    block->hi[k] = static_cast<int8_t>((q + 128) >> 8);
    block->lo[k] = static_cast<int8_t>(q - 256 * block->hi[k]);
    sum += q;
  }
  block->half_scale = finite ? static_cast<float>(std::ldexp(1.0, biased - 142))
                             : std::numeric_limits<float>::quiet_NaN();
  block->offset = -kCodeBias * sum;
}

void Quantize(const Bf16* x, int64_t num_blocks, QuantBlock* blocks) {
  for (int64_t b = 0; b < num_blocks; ++b) QuantizeBlock(x + b * kMxBlock, blocks + b);
}

void SwiGlu(const SwiGluArgs& args) {
  for (int64_t j = 0; j < args.count; ++j) {
    const float gate = args.sums[2 * j] + args.bias[2 * j];
    const float up = args.sums[2 * j + 1] + args.bias[2 * j + 1];
    const float a = gate > args.limit ? args.limit : gate;
    const float below = up > args.limit ? args.limit : up;
    const float b = below < -args.limit ? -args.limit : below;
    args.h[j] = ToBf16(a / (1.0f + Exp(-args.alpha * a)) * (b + 1.0f));
  }
}

void Widen(const Bf16* x, int64_t count, float* out) {
  for (int64_t i = 0; i < count; ++i) out[i] = ToFloat(x[i]);
}

float WithBias(float sum, const float* bias, int64_t i) {
  return bias == nullptr ? sum : sum + bias[i];
}

void FinishBf16(const float* sums, const float* bias, int64_t count, Bf16* out) {
  for (int64_t i = 0; i < count; ++i) out[i] = ToBf16(WithBias(sums[i], bias, i));
}

void FinishF32(const float* sums, const float* bias, int64_t count, float* out) {
  for (int64_t i = 0; i < count; ++i) {
    const float value = WithBias(sums[i], bias, i);
    out[i] = std::isnan(value) ? std::numeric_limits<float>::quiet_NaN() : value;
  }
}

constexpr DotTable kScalar = {.isa = CpuIsa::kScalar,
                              .linear_product = LinearProduct,
                              .mx_product = MxProduct,
                              .quantize = Quantize,
                              .swiglu = SwiGlu,
                              .widen = Widen,
                              .finish_bf16 = FinishBf16,
                              .finish_f32 = FinishF32};

}  // namespace

const DotTable& GetDotTable(CpuIsa /*isa*/) {
  return kScalar;
}

}  // namespace shoal
