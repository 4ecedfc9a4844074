// How work is shared out: host-side arithmetic on shapes, pure, tested without a GPU.
//
// Two kinds of choice. Those that a sum's order depends on (LinearSplit, kChunkTokens) are
// functions of the weight's shape or of the position alone, never of the batch or of the device.
// The others (tile widths, how many groups share a tile) may depend on anything, since they change
// no bit.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>

namespace shoal::cuda {

constexpr int64_t CeilDiv(int64_t a, int64_t b) {
  return (a + b - 1) / b;
}

// Into how many parts the inputs of a linear layer are split: each part is summed by itself, then
// the parts are added in order. Chosen so that a single row keeps about kSplitTiles thread blocks
// busy; part of the numerics.
inline constexpr int64_t kSplitTiles = 264;  // Two for each of an H200's 132 multiprocessors
inline constexpr int64_t kMaxSplit = 16;
int LinearSplit(int64_t out, int64_t in);

// The first block of 64 inputs of part `part`, which ends where the next begins.
constexpr int64_t SplitBegin(int64_t num_blocks, int split, int part) {
  return num_blocks * part / split;
}

// Rows that a thread block takes at a time: 8, 16, 32, 64 or, from 65 rows on, 128 with another
// kernel.
inline constexpr int kPrefillTokens = 128;
int LinearTokens(int64_t rows);

// The same for a grouped product of `pairs` pairs with `num_experts` experts. Wide enough for twice
// the mean, so that most experts need one tile.
int ExpertTokens(int64_t pairs, int64_t num_experts);

// Tiles of `tokens` pairs that no split of the pairs over the experts exceeds.
int64_t MaxExpertTiles(int64_t pairs, int64_t num_experts, int tokens);

// Attention's unit of sum: the scores of so many positions (from a multiple of it) are one softmax,
// and the parts are merged in rising order. Part of the numerics.
inline constexpr int kChunkTokens = 64;

// The pages that lie wholly inside a range of host memory; and what two ranges share. Empty: none.
inline constexpr size_t kPageBytes = 4096;
std::span<const std::byte> WholePages(std::span<const std::byte> range);
std::span<const std::byte> Overlap(std::span<const std::byte> a, std::span<const std::byte> b);

// Chunks that a row at `max_positions - 1` or before can see.
int64_t MaxChunks(int64_t max_positions, int64_t window);

}  // namespace shoal::cuda
