#include "kernels/cuda/tuning.h"

#include <algorithm>

namespace shoal::cuda {

int LinearSplit(int64_t out, int64_t in) {
  constexpr int64_t kTile = 64;
  constexpr int64_t kLeastBlocks = 3;  // A shorter part costs more to add than to compute.
  const int64_t tiles = std::max<int64_t>(1, CeilDiv(out, kTile));
  const int64_t blocks = CeilDiv(in, kTile);
  const int64_t most = std::clamp<int64_t>(blocks / kLeastBlocks, 1, kMaxSplit);
  return static_cast<int>(std::clamp<int64_t>(kSplitTiles / tiles, 1, most));
}

int LinearTokens(int64_t rows) {
  for (const int tokens : {8, 16, 32, 64}) {
    if (rows <= tokens) return tokens;
  }
  return kPrefillTokens;
}

int ExpertTokens(int64_t pairs, int64_t num_experts) {
  const int64_t mean = CeilDiv(pairs, std::max<int64_t>(1, num_experts));
  for (const int tokens : {8, 16, 32, 64}) {
    if (pairs <= tokens || 2 * mean <= tokens) return tokens;
  }
  return kPrefillTokens;
}

int64_t MaxExpertTiles(int64_t pairs, int64_t num_experts, int tokens) {
  return std::min(pairs, num_experts) + pairs / tokens;
}

int64_t MaxChunks(int64_t max_positions, int64_t window) {
  const int64_t all = CeilDiv(max_positions, kChunkTokens);
  if (window == 0) return all;
  // A window that ends inside a chunk begins inside another one.
  return std::min(all, CeilDiv(window - 1, kChunkTokens) + 1);
}

std::span<const std::byte> WholePages(std::span<const std::byte> range) {
  const auto begin = reinterpret_cast<uintptr_t>(range.data());
  const uintptr_t first = (begin + kPageBytes - 1) / kPageBytes * kPageBytes;
  const uintptr_t last = (begin + range.size()) / kPageBytes * kPageBytes;
  return first < last ? range.subspan(first - begin, last - first) : std::span<const std::byte>();
}

std::span<const std::byte> Overlap(std::span<const std::byte> a, std::span<const std::byte> b) {
  const std::byte* const first = std::max(a.data(), b.data());
  const std::byte* const last = std::min(a.data() + a.size(), b.data() + b.size());
  return first < last ? std::span(first, last) : std::span<const std::byte>();
}

}  // namespace shoal::cuda
