#include <algorithm>
#include <cstring>

#include "kernels/cpu/backend.h"
#include "kernels/cpu/dot.h"
#include "kernels/cpu/thread_pool.h"
#include "kernels/kernel_check.h"

namespace shoal {
namespace {

constexpr int64_t CeilDiv(int64_t a, int64_t b) {
  return (a + b - 1) / b;
}

uint32_t CheckpointCode(const std::byte* codes, int k) {
  const auto byte = std::to_integer<uint32_t>(codes[k / 2]);
  return k % 2 == 0 ? byte & 15u : byte >> 4;
}

// A checkpoint block (16 bytes, input k in nibble k) of one row to its places in the 256 bytes of
// the tile's block.
void PackBlock(const std::byte* codes, int row, std::byte* packed) {
  for (int z = 0; z < 4; ++z) {
    for (int i = 0; i < 4; ++i) {
      const uint32_t low = CheckpointCode(codes, 8 * z + i);
      const uint32_t high = CheckpointCode(codes, 8 * z + 4 + i);
      packed[64 * z + 4 * row + i] = static_cast<std::byte>(low | high << 4);
    }
  }
}

void PackTile(const RepackArgs& args, int64_t tile) {
  const int64_t num_blocks = args.in / kMxBlock;
  std::byte* packed = args.packed + tile * MxTileBytes(num_blocks);
  std::memset(packed, 0, static_cast<size_t>(MxTileBytes(num_blocks)));
  std::byte* scales = packed + num_blocks * kTileCodeBytes;
  const int num_rows = static_cast<int>(std::min<int64_t>(kTileRows, args.out - tile * kTileRows));
  for (int row = 0; row < num_rows; ++row) {
    const int64_t first = (tile * kTileRows + row) * num_blocks;
    for (int64_t b = 0; b < num_blocks; ++b) {
      PackBlock(args.codes + (first + b) * (kMxBlock / 2), row, packed + b * kTileCodeBytes);
      scales[b * kTileRows + row] = static_cast<std::byte>(args.scales[first + b]);
    }
  }
}

// packed[o][i] = checkpoint[i][o], in squares that fit the first-level cache.
void TransposeRows(const RepackArgs& args, int64_t begin, int64_t end) {
  constexpr int64_t kSquare = 64;
  const auto* from = reinterpret_cast<const Bf16*>(args.codes);
  auto* to = reinterpret_cast<Bf16*>(args.packed);
  for (int64_t first = 0; first < args.in; first += kSquare) {
    const int64_t last = std::min(args.in, first + kSquare);
    for (int64_t o = begin; o < end; ++o) {
      for (int64_t i = first; i < last; ++i) to[o * args.in + i] = from[i * args.out + o];
    }
  }
}

}  // namespace

int64_t CpuBackend::PackedBytes(ExpertFormat format, int64_t out, int64_t in) const {
  switch (format) {
    case ExpertFormat::kMxfp4:
      return CeilDiv(out, kTileRows) * MxTileBytes(in / kMxBlock);
    case ExpertFormat::kBf16:
      return CeilDiv(out * in * int64_t{sizeof(Bf16)}, 64) * 64;
  }
  return 0;
}

void CpuBackend::Repack(const RepackArgs& args) {
  switch (args.format) {
    case ExpertFormat::kMxfp4:
      KERNEL_CHECK(args.in % kMxBlock == 0);
      pool_->ParallelFor(
          CeilDiv(args.out, kTileRows), 8, [&](int64_t begin, int64_t end, int /*thread*/) {
            for (int64_t tile = begin; tile < end; ++tile) PackTile(args, tile);
          });
      return;
    case ExpertFormat::kBf16:
      pool_->ParallelFor(args.out, 64, [&](int64_t begin, int64_t end, int /*thread*/) {
        TransposeRows(args, begin, end);
      });
      return;
  }
}

}  // namespace shoal
