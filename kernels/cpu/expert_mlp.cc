// (E12)-(E15): out = W2 SwiGLU(W1 x + b1) + b2 for every (row, expert) pair.
//
// MXFP4 runs in three regions: the rows become 16-bit integers; units of 64 rows of W1 (32 elements
// of h, just one block) make h and quantise it at once; units of 64 rows of W2 make the outputs.
// BF16 has the last two regions, with Linear's product. A unit belongs to one expert and serves all
// its pairs, so each weight is read from memory once for each panel of pairs: batch 1 with four
// experts of the 20b geometry has 360 and 180 units to share among the threads.
//
// Order of sums: MxProductArgs and LinearProductArgs (dot.h); bias last. Bound: the bytes of the
// weights up to a few pairs per expert, beyond that integer multiply-adds.
#include <algorithm>
#include <memory>
#include <vector>

#include "kernels/cpu/backend.h"
#include "kernels/cpu/dot.h"
#include "kernels/cpu/thread_pool.h"
#include "kernels/kernel_check.h"

namespace shoal {
namespace {

constexpr int64_t kUnitOuts = 64;  // Rows of a weight matrix per unit.
static_assert(kUnitOuts == 2 * kMxBlock && kUnitOuts % kTileRows == 0);

constexpr int64_t CeilDiv(int64_t a, int64_t b) {
  return (a + b - 1) / b;
}

// Sixty-four rows of one expert's matrix.
struct Unit {
  int64_t expert;
  int64_t first_out;
  int64_t num_outs;
};

// The units of all experts that have pairs.
std::vector<Unit> MakeUnits(std::span<const int32_t> expert_offsets, int64_t outs) {
  std::vector<Unit> units;
  for (size_t e = 0; e + 1 < expert_offsets.size(); ++e) {
    if (expert_offsets[e] == expert_offsets[e + 1]) continue;
    for (int64_t first = 0; first < outs; first += kUnitOuts) {
      units.push_back({.expert = static_cast<int64_t>(e),
                       .first_out = first,
                       .num_outs = std::min(kUnitOuts, outs - first)});
    }
  }
  return units;
}

// One call of ExpertMlp, format apart: for each unit and each panel of its expert's pairs, the
// sums.
class ExpertProduct {
 public:
  ExpertProduct(const ExpertMlpArgs& args, const DotTable& dot, ThreadPool* pool)
      : args_(args), dot_(dot), pool_(*pool) {}

  void Run() {
    switch (args_.gate_up->format) {
      case ExpertFormat::kMxfp4:
        return RunMxfp4();
      case ExpertFormat::kBf16:
        return RunBf16();
    }
  }

 private:
  int64_t num_pairs() const { return args_.expert_offsets.back(); }

  int64_t hidden() const { return args_.gate_up->in; }

  int64_t intermediate() const { return args_.down->in; }

  // Calls body(unit, first pair, number of pairs, thread) for panels of at most kMaxPanelRows
  // pairs.
  template <typename Body>
  void ForEachPanel(int64_t outs, const Body& body) {
    const std::vector<Unit> units = MakeUnits(args_.expert_offsets, outs);
    const auto count = static_cast<int64_t>(units.size());
    // Neighbours together, as long as the threads end together: a kernel fetches ahead.
    const int64_t grain = std::clamp<int64_t>(count / (int64_t{16} * pool_.num_threads()), 1, 4);
    pool_.ParallelFor(count, grain, [&](int64_t begin, int64_t end, int thread) {
      for (int64_t i = begin; i < end; ++i) {
        const Unit& unit = units[static_cast<size_t>(i)];
        const auto e = static_cast<size_t>(unit.expert);
        const int64_t last = args_.expert_offsets[e + 1];
        for (int64_t p = args_.expert_offsets[e]; p < last; p += kMaxPanelRows) {
          body(unit, p, std::min(kMaxPanelRows, last - p), thread);
        }
      }
    });
  }

  void SwiGlu(const Unit& unit, const float* sums, Bf16* h) const {
    dot_.swiglu({.sums = sums,
                 .bias = args_.gate_up_bias[static_cast<size_t>(unit.expert)] + unit.first_out,
                 .count = unit.num_outs / 2,
                 .alpha = args_.alpha,
                 .limit = args_.limit,
                 .h = h});
  }

  void Finish(const Unit& unit, const float* sums, int64_t pair) const {
    const float* bias = args_.down_bias[static_cast<size_t>(unit.expert)] + unit.first_out;
    Bf16* out = args_.out.row<Bf16>(args_.pair_out[pair]) + unit.first_out;
    dot_.finish_bf16(sums, bias, unit.num_outs, out);
  }

  void RunMxfp4() {
    const int64_t x_blocks = hidden() / kMxBlock;
    const int64_t h_blocks = intermediate() / kMxBlock;
    const std::unique_ptr<QuantBlock[]> x(
        new QuantBlock[static_cast<size_t>(args_.x.rows * x_blocks)]);
    const std::unique_ptr<QuantBlock[]> h(
        new QuantBlock[static_cast<size_t>(num_pairs() * h_blocks)]);
    QuantizeRows(x.get(), x_blocks);
    ForEachPanel(
        args_.gate_up->out, [&](const Unit& unit, int64_t first, int64_t count, int thread) {
          const QuantBlock* rows[kMaxPanelRows];
          for (int64_t i = 0; i < count; ++i)
            rows[i] = x.get() + args_.pair_row[first + i] * x_blocks;
          const float* sums = MxSums(*args_.gate_up, unit, rows, count, thread);
          for (int64_t i = 0; i < count; ++i) {
            Bf16 values[kMxBlock];
            SwiGlu(unit, sums + i * kUnitOuts, values);
            dot_.quantize(values, 1, h.get() + (first + i) * h_blocks + unit.first_out / kUnitOuts);
          }
        });
    ForEachPanel(args_.down->out, [&](const Unit& unit, int64_t first, int64_t count, int thread) {
      const QuantBlock* rows[kMaxPanelRows];
      for (int64_t i = 0; i < count; ++i) rows[i] = h.get() + (first + i) * h_blocks;
      const float* sums = MxSums(*args_.down, unit, rows, count, thread);
      const int64_t stride = CeilDiv(unit.num_outs, kTileRows) * kTileRows;
      for (int64_t i = 0; i < count; ++i) Finish(unit, sums + i * stride, first + i);
    });
  }

  // Only the rows that some pair names: x may hold others.
  void QuantizeRows(QuantBlock* x, int64_t num_blocks) {
    std::vector<uint8_t> is_used(static_cast<size_t>(args_.x.rows), 0);
    for (int64_t i = 0; i < num_pairs(); ++i) is_used[static_cast<size_t>(args_.pair_row[i])] = 1;
    pool_.ParallelFor(args_.x.rows, 4, [&](int64_t begin, int64_t end, int /*thread*/) {
      for (int64_t r = begin; r < end; ++r) {
        if (is_used[static_cast<size_t>(r)] == 0) continue;
        dot_.quantize(args_.x.row<const Bf16>(r), num_blocks, x + r * num_blocks);
      }
    });
  }

  const float* MxSums(const PackedMatrix& matrix,
                      const Unit& unit,
                      const QuantBlock* const* rows,
                      int64_t num_rows,
                      int thread) {
    const int64_t num_blocks = matrix.in / kMxBlock;
    auto* sums = reinterpret_cast<float*>(
        pool_.Scratch(thread, size_t{kMaxPanelRows * kUnitOuts} * sizeof(float)));
    dot_.mx_product({.tiles = matrix.experts[static_cast<size_t>(unit.expert)] +
                              unit.first_out / kTileRows * MxTileBytes(num_blocks),
                     .num_tiles = CeilDiv(unit.num_outs, kTileRows),
                     .num_blocks = num_blocks,
                     .rows = rows,
                     .num_rows = num_rows,
                     .sums = sums});
    return sums;
  }

  void RunBf16() {
    const std::unique_ptr<Bf16[]> h(new Bf16[static_cast<size_t>(num_pairs() * intermediate())]);
    ForEachPanel(args_.gate_up->out,
                 [&](const Unit& unit, int64_t first, int64_t count, int thread) {
                   const Bf16* rows[kMaxPanelRows];
                   for (int64_t i = 0; i < count; ++i)
                     rows[i] = args_.x.row<Bf16>(args_.pair_row[first + i]);
                   const float* sums = Bf16Sums(*args_.gate_up, unit, rows, count, thread);
                   for (int64_t i = 0; i < count; ++i) {
                     SwiGlu(unit,
                            sums + i * unit.num_outs,
                            h.get() + (first + i) * intermediate() + unit.first_out / 2);
                   }
                 });
    ForEachPanel(args_.down->out, [&](const Unit& unit, int64_t first, int64_t count, int thread) {
      const Bf16* rows[kMaxPanelRows];
      for (int64_t i = 0; i < count; ++i) rows[i] = h.get() + (first + i) * intermediate();
      const float* sums = Bf16Sums(*args_.down, unit, rows, count, thread);
      for (int64_t i = 0; i < count; ++i) Finish(unit, sums + i * unit.num_outs, first + i);
    });
  }

  const float* Bf16Sums(const PackedMatrix& matrix,
                        const Unit& unit,
                        const Bf16* const* rows,
                        int64_t num_rows,
                        int thread) {
    const int64_t x_stride = PanelStride(matrix.in);
    const int64_t floats = kMaxPanelRows * (x_stride + kUnitOuts);
    auto* x = reinterpret_cast<float*>(
        pool_.Scratch(thread, static_cast<size_t>(floats) * sizeof(float)));
    float* sums = x + kMaxPanelRows * x_stride;
    for (int64_t r = 0; r < num_rows; ++r) dot_.widen(rows[r], matrix.in, x + r * x_stride);
    const std::byte* weight = matrix.experts[static_cast<size_t>(unit.expert)];
    dot_.linear_product(
        {.x = x,
         .x_stride = x_stride,
         .num_rows = num_rows,
         .weight = reinterpret_cast<const Bf16*>(weight) + unit.first_out * matrix.in,
         .weight_stride = matrix.in,
         .num_outs = unit.num_outs,
         .in = matrix.in,
         .out = sums,
         .out_stride = unit.num_outs});
    return sums;
  }

  const ExpertMlpArgs& args_;
  const DotTable& dot_;
  ThreadPool& pool_;
};

}  // namespace

void CpuBackend::ExpertMlp(const ExpertMlpArgs& args) {
  KERNEL_CHECK(args.gate_up->out == 2 * args.down->in && args.gate_up->format == args.down->format);
  KERNEL_CHECK(args.pair_row.size == args.pair_out.size &&
               args.pair_row.size >= args.expert_offsets.back());
  KERNEL_CHECK(args.x.cols == args.gate_up->in && args.out.cols == args.down->out);
  ExpertProduct(args, *dot_, pool_.get()).Run();
}

}  // namespace shoal
