// (E3), (E9), (E10), (E17): out = x W^T + bias.
//
// Work split: chunks of output columns times panels of rows; a chunk reads its weights once for
// each panel. Kept: a panel's rows as fp32 and a chunk's sums, both in the thread's scratch.
// Bound: up to about 8 rows the bytes of W, beyond that fp32 multiply-adds. Reached on one core of
// a Sapphire Rapids with 2,880 inputs: 0.98 of the read bandwidth with one row, 0.93 with four;
// 0.75 of the FMA rate with 64.
#include <algorithm>

#include "kernels/cpu/backend.h"
#include "kernels/cpu/dot.h"
#include "kernels/cpu/thread_pool.h"
#include "kernels/kernel_check.h"

namespace shoal {
namespace {

constexpr int64_t CeilDiv(int64_t a, int64_t b) {
  return (a + b - 1) / b;
}

// Columns a thread takes at a time: enough that turning the rows into fp32 is a small part, few
// enough that the threads end together.
int64_t ChunkOuts(int64_t outs, int num_threads) {
  constexpr int64_t kMultiple = 24;
  const int64_t share = CeilDiv(outs, int64_t{8} * num_threads * kMultiple) * kMultiple;
  return std::min<int64_t>(share, 5 * kMultiple);
}

struct Chunk {
  int64_t first_row;
  int64_t num_rows;
  int64_t first_out;
  int64_t num_outs;
};

void RunChunk(const DotTable& dot, const LinearArgs& args, const Chunk& chunk, float* scratch) {
  const int64_t in = args.weight.cols;
  const int64_t x_stride = PanelStride(in);
  float* x = scratch;
  float* sums = scratch + kMaxPanelRows * x_stride;
  for (int64_t r = 0; r < chunk.num_rows; ++r) {
    dot.widen(args.x.row<const Bf16>(chunk.first_row + r), in, x + r * x_stride);
  }
  dot.linear_product({.x = x,
                      .x_stride = x_stride,
                      .num_rows = chunk.num_rows,
                      .weight = args.weight.row<const Bf16>(chunk.first_out),
                      .weight_stride = args.weight.stride,
                      .num_outs = chunk.num_outs,
                      .in = in,
                      .out = sums,
                      .out_stride = chunk.num_outs});
  const float* bias = args.bias == nullptr ? nullptr : args.bias + chunk.first_out;
  for (int64_t r = 0; r < chunk.num_rows; ++r) {
    const float* from = sums + r * chunk.num_outs;
    const int64_t row = chunk.first_row + r;
    if (args.out.dtype == DType::kBf16) {
      dot.finish_bf16(from, bias, chunk.num_outs, args.out.row<Bf16>(row) + chunk.first_out);
    } else {
      dot.finish_f32(from, bias, chunk.num_outs, args.out.row<float>(row) + chunk.first_out);
    }
  }
}

}  // namespace

void CpuBackend::Linear(const LinearArgs& args) {
  const int64_t rows = args.x.rows;
  const int64_t outs = args.weight.rows;
  KERNEL_CHECK(args.x.cols == args.weight.cols && args.out.cols == outs && args.out.rows == rows);
  const int64_t chunk_outs = ChunkOuts(outs, pool_->num_threads());
  const int64_t num_chunks = CeilDiv(outs, chunk_outs);
  const int64_t panel_rows = std::min(rows, kMaxPanelRows);
  const int64_t scratch_floats =
      kMaxPanelRows * PanelStride(args.weight.cols) + panel_rows * chunk_outs;

  pool_->ParallelFor(
      CeilDiv(rows, kMaxPanelRows) * num_chunks, 1, [&](int64_t begin, int64_t end, int thread) {
        auto* scratch = reinterpret_cast<float*>(
            pool_->Scratch(thread, static_cast<size_t>(scratch_floats) * sizeof(float)));
        for (int64_t i = begin; i < end; ++i) {
          const int64_t row = i / num_chunks * kMaxPanelRows;
          const int64_t out = i % num_chunks * chunk_outs;
          RunChunk(*dot_,
                   args,
                   {.first_row = row,
                    .num_rows = std::min(kMaxPanelRows, rows - row),
                    .first_out = out,
                    .num_outs = std::min(chunk_outs, outs - out)},
                   scratch);
        }
      });
}

}  // namespace shoal
