#include "model/synthetic.h"

#include <algorithm>
#include <array>
#include <bit>
#include <cmath>
#include <cstring>
#include <string>

#include "absl/strings/str_cat.h"

#include "base/check.h"
#include "base/prng.h"

namespace shoal {
namespace {

// Elements made at a time: their raw bytes stay in the first-level cache.
constexpr int64_t kChunk = 4096;

// Byte i of the stream is bits 40..47 of output i + 1 of splitmix64 that starts at the seed.
inline __attribute__((always_inline)) void FillStream(uint64_t seed,
                                                      int64_t first,
                                                      uint8_t* out,
                                                      int64_t count) {
  const uint64_t start = seed + (static_cast<uint64_t>(first) + 1) * kSplitMixStep;
  for (int64_t i = 0; i < count; ++i) {
    const uint64_t z = Mix64(start + static_cast<uint64_t>(i) * kSplitMixStep);
    out[i] = static_cast<uint8_t>(z >> 40);
  }
}

// The loop is two 64-bit products per byte: AVX-512 DQ does eight at once, plain x86-64 one.
__attribute__((target("avx512f,avx512bw,avx512dq,avx512vl"))) void FillStreamAvx512(uint64_t seed,
                                                                                    int64_t first,
                                                                                    uint8_t* out,
                                                                                    int64_t count) {
  FillStream(seed, first, out, count);
}

void FillStreamBaseline(uint64_t seed, int64_t first, uint8_t* out, int64_t count) {
  FillStream(seed, first, out, count);
}

using FillStreamFunction = void (*)(uint64_t, int64_t, uint8_t*, int64_t);

FillStreamFunction ChooseFillStream() {
  const bool wide = __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512bw") &&
                    __builtin_cpu_supports("avx512vl");
  return wide ? FillStreamAvx512 : FillStreamBaseline;
}

uint8_t StreamByte(uint64_t seed, int64_t index) {
  const uint64_t z = Mix64(seed + (static_cast<uint64_t>(index) + 1) * kSplitMixStep);
  return static_cast<uint8_t>(z >> 40);
}

uint16_t ExactBf16(float value) {
  const uint32_t bits = std::bit_cast<uint32_t>(value);
  DCHECK((bits & 0xFFFFu) == 0);
  return static_cast<uint16_t>(bits >> 16);
}

// What a stream byte means in a tensor of this kind: (byte - 128) * 2^-shift, or a gain near 1.
struct Formula {
  bool is_gain;
  int shift;
};

Formula Bf16Formula(TensorKind kind) {
  switch (kind) {
    case TensorKind::kAttentionNorm:
    case TensorKind::kMlpNorm:
    case TensorKind::kFinalNorm:
      return {.is_gain = true, .shift = 0};
    case TensorKind::kEmbedding:
    case TensorKind::kSinks:
      return {.is_gain = false, .shift = 6};
    case TensorKind::kQueryBias:
    case TensorKind::kKeyBias:
    case TensorKind::kValueBias:
    case TensorKind::kRouterBias:
    case TensorKind::kDownBias:
      return {.is_gain = false, .shift = 7};
    case TensorKind::kOutWeight:
      return {.is_gain = false, .shift = 10};
    case TensorKind::kOutBias:
      return {.is_gain = false, .shift = 8};
    case TensorKind::kGateUpBias:
      return {.is_gain = false, .shift = 5};
    default:
      return {.is_gain = false, .shift = 9};
  }
}

std::array<uint16_t, 256> Bf16Table(TensorKind kind) {
  const Formula formula = Bf16Formula(kind);
  std::array<uint16_t, 256> table{};
  for (int byte = 0; byte < 256; ++byte) {
    const float value = formula.is_gain
                            ? static_cast<float>(192 + (byte & 63)) / 256.0f
                            : std::ldexp(static_cast<float>(byte - 128), -formula.shift);
    table[static_cast<size_t>(byte)] = ExactBf16(value);
  }
  return table;
}

// The smallest of the three scale bytes that a tensor uses.
uint8_t FirstScale(TensorKind kind) {
  return kind == TensorKind::kGateUpScales || kind == TensorKind::kGateUpWeight ? 122 : 118;
}

void FillU8(const ModelTensor& tensor, int64_t offset, std::span<std::byte> out) {
  static const FillStreamFunction fill_stream = ChooseFillStream();
  auto* bytes = reinterpret_cast<uint8_t*>(out.data());
  fill_stream(Fnv1a64(tensor.name), offset, bytes, std::ssize(out));
  if (tensor.kind == TensorKind::kGateUpScales || tensor.kind == TensorKind::kDownScales) {
    const uint8_t first = FirstScale(tensor.kind);
    for (std::byte& b : out) {
      b = static_cast<std::byte>(first + static_cast<uint8_t>(b) % 3);
    }
  }
}

void FillBf16(const ModelTensor& tensor, int64_t first, std::byte* out, int64_t count) {
  static const FillStreamFunction fill_stream = ChooseFillStream();
  const std::array<uint16_t, 256> table = Bf16Table(tensor.kind);
  const uint64_t seed = Fnv1a64(tensor.name);
  std::array<uint8_t, kChunk> raw;
  std::array<uint16_t, kChunk> values;
  for (int64_t done = 0; done < count; done += kChunk) {
    const int64_t part = std::min(kChunk, count - done);
    fill_stream(seed, first + done, raw.data(), part);
    for (int64_t i = 0; i < part; ++i) {
      values[static_cast<size_t>(i)] = table[raw[static_cast<size_t>(i)]];
    }
    std::memcpy(out + 2 * done, values.data(), static_cast<size_t>(2 * part));
  }
}

// Values of the 16 codes at the three scales from `first_scale` on.
std::array<std::array<uint16_t, 16>, 3> DequantTable(int first_scale) {
  constexpr float kE2m1[] = {0.0f, 0.5f, 1.0f, 1.5f, 2.0f, 3.0f, 4.0f, 6.0f};
  std::array<std::array<uint16_t, 16>, 3> table{};
  for (size_t scale = 0; scale < 3; ++scale) {
    for (size_t code = 0; code < 16; ++code) {
      const float magnitude =
          std::ldexp(kE2m1[code & 7], first_scale + static_cast<int>(scale) - 127);
      table[scale][code] = ExactBf16((code & 8) != 0 ? -magnitude : magnitude);
    }
  }
  return table;
}

// tensor[e, i, r] = dequantised(codes[e, r, i]).
void FillTransposedExpert(const ModelTensor& tensor, int64_t first, std::byte* out, int64_t count) {
  const auto table = DequantTable(FirstScale(tensor.kind));
  const uint64_t codes = Fnv1a64(absl::StrCat(tensor.name, "_blocks"));
  const uint64_t scales = Fnv1a64(absl::StrCat(tensor.name, "_scales"));
  const int64_t in = tensor.shape[1], rows = tensor.shape[2], groups = in / 32;
  for (int64_t n = 0; n < count; ++n) {
    const int64_t flat = first + n;
    const int64_t r = flat % rows, i = flat / rows % in, e = flat / rows / in;
    const int64_t group = (e * rows + r) * groups + i / 32;
    const uint8_t pair = StreamByte(codes, group * 16 + i % 32 / 2);
    const uint8_t code = i % 2 == 0 ? pair & 15 : pair >> 4;
    const uint16_t value = table[StreamByte(scales, group) % 3][code];
    std::memcpy(out + 2 * n, &value, sizeof(value));
  }
}

}  // namespace

void FillSynthetic(const ModelTensor& tensor, int64_t offset, std::span<std::byte> out) {
  CHECK_GE(offset, 0);
  CHECK_LE(offset + std::ssize(out), tensor.bytes());
  if (tensor.type == StoredType::kU8) return FillU8(tensor, offset, out);
  CHECK(offset % 2 == 0 && out.size() % 2 == 0);
  const int64_t first = offset / 2, count = std::ssize(out) / 2;
  if (tensor.kind == TensorKind::kGateUpWeight || tensor.kind == TensorKind::kDownWeight) {
    // The formula's codes come in groups of 32 inputs; other widths have no MXFP4 counterpart.
    CHECK_EQ(tensor.shape[1] % 32, 0);
    return FillTransposedExpert(tensor, first, out.data(), count);
  }
  FillBf16(tensor, first, out.data(), count);
}

}  // namespace shoal
