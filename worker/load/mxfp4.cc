#include "worker/load/mxfp4.h"

#include <algorithm>
#include <array>
#include <cstddef>

#include "base/check.h"
#include "kernels/backend.h"

namespace shoal {
namespace {

// Blocks that are packed side by side, so that loops over them become vector instructions.
constexpr size_t kWidth = 32;
constexpr size_t kBlock = kMxBlock;

using Lanes = std::array<int16_t, kWidth>;

// A bf16 without its sign is an exponent of 8 bits, then 7 bits of mantissa. E2M1 has the first of
// the 7 only. Read as integers, magnitudes shifted by 6 count half octaves: e * 2 + that bit.
constexpr int16_t kMagnitude = 0x7fff;
constexpr int16_t kOffGrid = 0x003f;
constexpr int kHalfOctave = 6;
constexpr int16_t kFirstNormal = 0x0080;
constexpr int16_t kFirstInfinite = 0x7f80;
constexpr int kLargestOctave = 2;  // Of E2M1: 4 and 6
constexpr uint8_t kScaleOfZeros = 127;

constexpr int16_t Magnitude(uint16_t bits) {
  return static_cast<int16_t>(bits & kMagnitude);
}

// Half octaves above 1 -> E2M1: 1, 1.5, 2, 3, 4, 6 are codes 2 to 7, and 0.5, two below 1, is 1.
// REQUIRES: one of these.
constexpr int16_t CodeOf(int16_t half_octaves) {
  return static_cast<int16_t>(half_octaves < 0 ? 1 : half_octaves + 2);
}

// kWidth blocks, one a lane. Where something is off the grid, bad_lane() says in which.
class BlockPacker {
 public:
  BlockPacker(const uint16_t* first_row, int64_t stride) : first_row_(first_row), stride_(stride) {}

  // The scale of every lane. False: a value has too many bits, or is beyond all numbers.
  bool ChooseScales() {
    Lanes largest{}, wrong{};
    for (size_t k = 0; k < kBlock; ++k) {
      const uint16_t* row = Row(k);
      for (size_t i = 0; i < kWidth; ++i) {
        const int16_t m = Magnitude(row[i]);
        const bool is_subnormal = m != 0 && m < kFirstNormal;
        largest[i] = std::max(largest[i], m);
        wrong[i] = static_cast<int16_t>(wrong[i] | (m & kOffGrid) | (is_subnormal ? 1 : 0) |
                                        (m >= kFirstInfinite ? 1 : 0));
      }
    }
    for (size_t i = 0; i < kWidth; ++i) {
      const int exponent = largest[i] >> 7;
      scales_[i] = static_cast<int16_t>(largest[i] == 0 ? kScaleOfZeros
                                                        : std::max(exponent - kLargestOctave, 0));
    }
    return Check(wrong);
  }

  // Codes into `codes`, [lane][element]. False: a value is too small beside its block's largest.
  bool Encode(std::array<std::array<uint8_t, kWidth>, kBlock>* codes) {
    Lanes wrong{};
    for (size_t k = 0; k < kBlock; ++k) {
      const uint16_t* row = Row(k);
      for (size_t i = 0; i < kWidth; ++i) {
        const int16_t m = Magnitude(row[i]);
        const auto half_octaves = static_cast<int16_t>((m >> kHalfOctave) - 2 * scales_[i]);
        const auto code = static_cast<int16_t>(m == 0 ? 0 : CodeOf(half_octaves));
        const bool is_wrong = m != 0 && (half_octaves < -2 || half_octaves == -1);
        wrong[i] = static_cast<int16_t>(wrong[i] | (is_wrong ? 1 : 0));
        (*codes)[k][i] = static_cast<uint8_t>(code | ((row[i] >> 12) & 8));
      }
    }
    return Check(wrong);
  }

  uint8_t scale(size_t lane) const { return static_cast<uint8_t>(scales_[lane]); }

  size_t bad_lane() const { return bad_lane_; }

 private:
  const uint16_t* Row(size_t k) const { return first_row_ + static_cast<int64_t>(k) * stride_; }

  bool Check(const Lanes& wrong) {
    const auto bad = std::find_if(wrong.begin(), wrong.end(), [](int16_t w) { return w != 0; });
    bad_lane_ = static_cast<size_t>(bad - wrong.begin());
    return bad == wrong.end();
  }

  const uint16_t* const first_row_;
  const int64_t stride_;
  Lanes scales_{};
  size_t bad_lane_ = 0;
};

}  // namespace

bool LooksLikeMxfp4(std::span<const uint16_t> values) {
  return std::all_of(
      values.begin(), values.end(), [](uint16_t x) { return (Magnitude(x) & kOffGrid) == 0; });
}

std::optional<MatrixPlace> PackMxfp4(std::span<const uint16_t> weight,
                                     int64_t in,
                                     int64_t out,
                                     Mxfp4Matrix* matrix) {
  CHECK(in % kMxBlock == 0 && out % static_cast<int64_t>(kWidth) == 0);
  CHECK(std::ssize(weight) == in * out);
  const int64_t num_blocks = in / kMxBlock;
  matrix->codes.resize(static_cast<size_t>(in * out / 2));
  matrix->scales.resize(static_cast<size_t>(num_blocks * out));
  std::array<std::array<uint8_t, kWidth>, kBlock> codes;
  for (int64_t b = 0; b < num_blocks; ++b) {
    for (int64_t first = 0; first < out; first += kWidth) {
      BlockPacker packer(weight.data() + b * kMxBlock * out + first, out);
      if (!packer.ChooseScales() || !packer.Encode(&codes)) {
        return MatrixPlace{b * kMxBlock, first + static_cast<int64_t>(packer.bad_lane())};
      }
      for (size_t i = 0; i < kWidth; ++i) {
        const int64_t block = (first + static_cast<int64_t>(i)) * num_blocks + b;
        matrix->scales[static_cast<size_t>(block)] = packer.scale(i);
        std::byte* to = matrix->codes.data() + block * (kMxBlock / 2);
        for (size_t j = 0; j < kBlock / 2; ++j) {
          to[j] = static_cast<std::byte>(codes[2 * j][i] | codes[2 * j + 1][i] << 4);
        }
      }
    }
  }
  return std::nullopt;
}

}  // namespace shoal
