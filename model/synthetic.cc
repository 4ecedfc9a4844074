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
#include "kernels/synthetic.h"

namespace shoal {
namespace {

// Elements made at a time: their raw bytes stay in the first-level cache.
constexpr int64_t kChunk = 4096;

using Kind = SyntheticFormula::Kind;

inline __attribute__((always_inline)) void FillStream(uint64_t seed,
                                                      int64_t first,
                                                      uint8_t* out,
                                                      int64_t count) {
  for (int64_t i = 0; i < count; ++i) out[i] = SyntheticByte(seed, first + i);
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

uint16_t ExactBf16(float value) {
  const uint32_t bits = std::bit_cast<uint32_t>(value);
  DCHECK((bits & 0xFFFFu) == 0);
  return static_cast<uint16_t>(bits >> 16);
}

int8_t NumberShift(TensorKind kind) {
  switch (kind) {
    case TensorKind::kGateUpBias:
      return 5;
    case TensorKind::kEmbedding:
    case TensorKind::kSinks:
      return 6;
    case TensorKind::kQueryBias:
    case TensorKind::kKeyBias:
    case TensorKind::kValueBias:
    case TensorKind::kRouterBias:
    case TensorKind::kDownBias:
      return 7;
    case TensorKind::kOutBias:
      return 8;
    case TensorKind::kOutWeight:
      return 10;
    default:
      return 9;
  }
}

// The smallest of the three scale bytes that a tensor uses.
uint8_t FirstScale(TensorKind kind) {
  return kind == TensorKind::kGateUpScales || kind == TensorKind::kGateUpWeight ? 122 : 118;
}

void FillU8(const SyntheticFormula& formula, int64_t offset, std::span<std::byte> out) {
  static const FillStreamFunction fill_stream = ChooseFillStream();
  fill_stream(formula.seed, offset, reinterpret_cast<uint8_t*>(out.data()), std::ssize(out));
  if (formula.kind == Kind::kCode) return;
  for (std::byte& b : out) b = std::byte{SyntheticU8(formula, static_cast<uint8_t>(b))};
}

void FillBf16(const SyntheticFormula& formula, int64_t first, std::byte* out, int64_t count) {
  static const FillStreamFunction fill_stream = ChooseFillStream();
  std::array<uint16_t, 256> table;
  for (size_t b = 0; b < table.size(); ++b) {
    table[b] = ExactBf16(SyntheticFloat(formula, static_cast<uint8_t>(b)));
  }
  std::array<uint8_t, kChunk> raw;
  std::array<uint16_t, kChunk> values;
  for (int64_t done = 0; done < count; done += kChunk) {
    const int64_t part = std::min(kChunk, count - done);
    fill_stream(formula.seed, first + done, raw.data(), part);
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
    const uint8_t pair = SyntheticByte(codes, group * 16 + i % 32 / 2);
    const uint8_t code = i % 2 == 0 ? pair & 15 : pair >> 4;
    const uint16_t value = table[SyntheticByte(scales, group) % 3][code];
    std::memcpy(out + 2 * n, &value, sizeof(value));
  }
}

}  // namespace

SyntheticFormula FormulaOf(const ModelTensor& tensor) {
  const uint64_t seed = Fnv1a64(tensor.name);
  switch (tensor.kind) {
    case TensorKind::kGateUpCodes:
    case TensorKind::kDownCodes:
      return {.seed = seed, .kind = Kind::kCode};
    case TensorKind::kGateUpScales:
    case TensorKind::kDownScales:
      return {.seed = seed, .kind = Kind::kScale, .base = FirstScale(tensor.kind)};
    case TensorKind::kAttentionNorm:
    case TensorKind::kMlpNorm:
    case TensorKind::kFinalNorm:
      return {.seed = seed, .kind = Kind::kGain};
    case TensorKind::kGateUpWeight:
    case TensorKind::kDownWeight:
      CHECK(false);  // Made of two tensors.
    default:
      return {.seed = seed, .kind = Kind::kNumber, .shift = NumberShift(tensor.kind)};
  }
}

void FillSynthetic(const ModelTensor& tensor, int64_t offset, std::span<std::byte> out) {
  CHECK_GE(offset, 0);
  CHECK_LE(offset + std::ssize(out), tensor.bytes());
  if (tensor.type == StoredType::kU8) return FillU8(FormulaOf(tensor), offset, out);
  CHECK(offset % 2 == 0 && out.size() % 2 == 0);
  const int64_t first = offset / 2, count = std::ssize(out) / 2;
  if (tensor.kind == TensorKind::kGateUpWeight || tensor.kind == TensorKind::kDownWeight) {
    // The formula's codes come in groups of 32 inputs; other widths have no MXFP4 counterpart.
    CHECK_EQ(tensor.shape[1] % 32, 0);
    return FillTransposedExpert(tensor, first, out.data(), count);
  }
  FillBf16(FormulaOf(tensor), first, out.data(), count);
}

}  // namespace shoal
