// Parity of the dense operations: copies, norms, linear layers, rope, attention, sums.
#include <algorithm>
#include <string>
#include <utility>
#include <vector>

#include "tests/gpu/checks.h"
#include "tests/gpu/device_arrays.h"
#include "tests/kernels/arrays.h"

namespace shoal::gpu {
namespace {

class DenseChecks : public Checks {
 public:
  using Checks::Checks;

  void Run() {
    Section("copies", [&] { Copies(); });
    Section("rmsnorm", [&] { Norms(); });
    Section("linear", [&] { Linears(); });
    Section("rope", [&] { Ropes(); });
    Section("attention", [&] { Attentions(); });
    Section("sum slots", [&] { Sums(); });
  }

 private:
  // Rows of bf16 and of fp32, and those of an embedding, which become fp32.
  void Copies() {
    for (const int64_t cols : {8, 33, 64, 2'880}) {
      for (const int64_t rows : {1, 7, 65}) {
        std::vector<Bf16> table = RandomBf16(1, 100 * cols, 1.0);
        std::vector<int32_t> ids;
        for (int64_t i = 0; i < rows; ++i)
          ids.push_back(static_cast<int32_t>(RandomBits(2, i) % 100));
        std::vector<Bf16> out(static_cast<size_t>(rows * cols), kPoison);
        DeviceArrays device(&gpu_);
        Bf16* const gpu_out = device.Put(out);
        gpu_.PickRows({.x = MakeTensor(device.Put(table), DType::kBf16, 100, cols),
                       .index = {device.Put(ids), rows},
                       .out = MakeTensor(gpu_out, DType::kBf16, rows, cols)});
        cpu_.PickRows(
            {.x = View(table, 100, cols), .index = Index(ids), .out = View(out, rows, cols)});
        const std::string shape = std::to_string(rows) + " x " + std::to_string(cols);
        Check(EqualBits(device.Get(gpu_out, out.size()), out), "pick rows " + shape);

        std::vector<float> wide(out.size(), -1.0f);
        std::vector<float> stream = RandomFloats(3, 100 * cols, 1.0);
        float* const gpu_wide = device.Put(wide);
        gpu_.PickRows({.x = MakeTensor(device.Put(stream), DType::kF32, 100, cols),
                       .index = {device.Put(ids), rows},
                       .out = MakeTensor(gpu_wide, DType::kF32, rows, cols)});
        cpu_.PickRows(
            {.x = View(stream, 100, cols), .index = Index(ids), .out = View(wide, rows, cols)});
        Check(EqualBits(device.Get(gpu_wide, wide.size()), wide), "pick fp32 rows " + shape);
        gpu_.Embed({.ids = {device.Put(ids), rows},
                    .table = MakeTensor(device.Put(table), DType::kBf16, 100, cols),
                    .out = MakeTensor(gpu_wide, DType::kF32, rows, cols)});
        cpu_.Embed(
            {.ids = Index(ids), .table = View(table, 100, cols), .out = View(wide, rows, cols)});
        Check(EqualBits(device.Get(gpu_wide, wide.size()), wide), "embed " + shape);
      }
    }
  }

  void Norms() {
    for (const int64_t cols : {8, 33, 64, 2'880}) {
      for (const bool adds : {false, true}) {
        const int64_t rows = 9;
        std::vector<float> x = RandomFloats(3, rows * cols, 2.0);
        std::vector<Bf16> add = RandomBf16(4, rows * cols, 1.0);
        const std::vector<float> gain = RandomFloats(5, cols, 1.0);
        std::vector<Bf16> out(x.size(), kPoison);
        DeviceArrays device(&gpu_);
        float* const gpu_x = device.Put(x);
        Bf16* const gpu_out = device.Put(out);
        const auto view = [&](void* data) { return MakeTensor(data, DType::kBf16, rows, cols); };
        gpu_.RmsNorm({.x = MakeTensor(gpu_x, DType::kF32, rows, cols),
                      .add = adds ? view(device.Put(add)) : TensorView{},
                      .gain = device.Put(gain),
                      .out = view(gpu_out),
                      .eps = 1e-5f});
        cpu_.RmsNorm({.x = View(x, rows, cols),
                      .add = adds ? view(add.data()) : TensorView{},
                      .gain = gain.data(),
                      .out = view(out.data()),
                      .eps = 1e-5f});
        const std::string what = "rmsnorm of " + std::to_string(cols) + (adds ? " with add" : "");
        Check(EqualBits(device.Get(gpu_x, x.size()), x), what + ": the sum is not equal");
        CheckNear(device.Get(gpu_out, out.size()), out, kBf16Near, what);
      }
    }
  }

  void Linears() {
    struct Shape {
      int64_t out, in;
    };

    std::vector<Shape> shapes = {{64, 64}, {130, 96}, {1, 8}, {201, 72}, {32, 2'880}};
    if (!quick_) shapes.insert(shapes.end(), {{5'120, 2'880}, {2'880, 4'096}, {20'000, 2'880}});
    for (const Shape& shape : shapes) {
      const int64_t most = 200;
      std::vector<Bf16> x = RandomBf16(6, most * shape.in, 1.0);
      std::vector<Bf16> w = RandomBf16(7, shape.out * shape.in, 0.05);
      const std::vector<float> bias = RandomFloats(8, shape.out, 0.5);
      DeviceArrays device(&gpu_);
      Bf16* const gpu_x = device.Put(x);
      Bf16* const gpu_w = device.Put(w);
      float* const gpu_bias = device.Put(bias);
      std::vector<float> reference(static_cast<size_t>(most * shape.out));
      cpu_.Linear({.x = View(x, most, shape.in),
                   .weight = View(w, shape.out, shape.in),
                   .bias = bias.data(),
                   .out = View(reference, most, shape.out)});
      std::vector<float> first;  // Row 0 in a step of one row
      for (const int64_t rows : {1, 7, 8, 9, 16, 31, 64, 65, 128, 200}) {
        const auto count = static_cast<size_t>(rows * shape.out);
        float* const out = device.Put(std::vector<float>(count, __builtin_nanf("")));
        Bf16* const rounded = device.Put(std::vector<Bf16>(count, kPoison));
        LinearArgs args{.x = MakeTensor(gpu_x, DType::kBf16, rows, shape.in),
                        .weight = MakeTensor(gpu_w, DType::kBf16, shape.out, shape.in),
                        .bias = gpu_bias,
                        .out = MakeTensor(out, DType::kF32, rows, shape.out)};
        gpu_.Linear(args);
        args.out = MakeTensor(rounded, DType::kBf16, rows, shape.out);
        gpu_.Linear(args);
        const std::string what = "linear " + std::to_string(rows) + " x " +
                                 std::to_string(shape.in) + " -> " + std::to_string(shape.out);
        const std::vector<float> got = device.Get(out, count);
        CheckNear(got,
                  {reference.begin(), reference.begin() + static_cast<int64_t>(count)},
                  kF32Near,
                  what);
        Check(EqualBits(device.Get(rounded, count), ToBf16s(got)), what + ": bf16 is not its f32");
        const std::vector<float> row(got.begin(), got.begin() + shape.out);
        if (first.empty()) first = row;
        Check(EqualBits(row, first), what + ": row 0 has other bits than alone");
        // The last row, alone.
        float* const alone = device.Put(std::vector<float>(static_cast<size_t>(shape.out)));
        args.x = MakeTensor(gpu_x + (rows - 1) * shape.in, DType::kBf16, 1, shape.in);
        args.out = MakeTensor(alone, DType::kF32, 1, shape.out);
        gpu_.Linear(args);
        Check(EqualBits(device.Get(alone, static_cast<size_t>(shape.out)),
                        std::vector<float>(got.end() - shape.out, got.end())),
              what + ": the last row has other bits than alone");
      }
    }
  }

  void Ropes() {
    for (const int head_dim : {32, 64}) {
      const int heads = 8, kv_heads = 2;
      const int64_t rows = 11, blocks = 5;
      const int64_t cols = (heads + 2 * kv_heads) * head_dim;
      std::vector<Bf16> qkv = RandomBf16(9, rows * cols, 1.0);
      const std::vector<float> rope = RandomFloats(10, 200 * head_dim, 1.0);
      std::vector<int32_t> positions, slots;
      for (int32_t i = 0; i < rows; ++i) {
        positions.push_back(i * 17 % 200);
        slots.push_back(i * 13 % 160);
      }
      KvLayer kv{
          .data = nullptr, .num_blocks = blocks, .num_kv_heads = kv_heads, .head_dim = head_dim};
      std::vector<Bf16> cache(static_cast<size_t>(blocks * kv.block_bytes() / 2), Bf16{0});
      DeviceArrays device(&gpu_);
      Bf16* const gpu_qkv = device.Put(qkv);
      Bf16* const gpu_cache = device.Put(cache);
      RopeAndAppendArgs args{.qkv = MakeTensor(gpu_qkv, DType::kBf16, rows, cols),
                             .rope = device.Put(rope),
                             .positions = {device.Put(positions), rows},
                             .slots = {device.Put(slots), rows},
                             .num_heads = heads,
                             .kv = kv};
      args.kv.data = gpu_cache;
      gpu_.RopeAndAppend(args);
      args = {.qkv = View(qkv, rows, cols),
              .rope = rope.data(),
              .positions = Index(positions),
              .slots = Index(slots),
              .num_heads = heads,
              .kv = kv};
      args.kv.data = cache.data();
      cpu_.RopeAndAppend(args);
      Check(EqualBits(device.Get(gpu_qkv, qkv.size()), qkv), "rope: q and k are not equal");
      Check(EqualBits(device.Get(gpu_cache, cache.size()), cache), "rope: the cache is not equal");
    }
  }

  struct AttentionShape {
    int heads, kv_heads, head_dim;
    int32_t window;
  };

  void Attentions() {
    for (const AttentionShape& shape : {AttentionShape{8, 1, 64, 0},
                                        AttentionShape{16, 2, 64, 128},
                                        AttentionShape{4, 2, 32, 4},
                                        AttentionShape{3, 3, 64, 0},
                                        AttentionShape{5, 1, 40, 129}}) {
      AttendAll(shape, quick_ ? 300 : 1'500);
    }
  }

  // Sequences whose last rows are computed in one step: single rows at awkward positions, and a
  // chunk. Then each row of the chunk alone.
  void AttendAll(const AttentionShape& shape, int32_t longest) {
    const std::vector<std::pair<int32_t, int32_t>> spans = {
        {0, 1}, {63, 1}, {64, 1}, {127, 1}, {128, 1}, {longest - 1, 1}, {100, 77}, {0, 130}};
    std::vector<AttentionEntry> entries;
    std::vector<int32_t> tables;
    int32_t rows = 0;
    for (const auto& [first, count] : spans) {
      entries.push_back({.first_row = rows,
                         .num_rows = count,
                         .first_position = first,
                         .table_offset = static_cast<int32_t>(tables.size())});
      rows += count;
      const int32_t blocks = (first + count + kBlockTokens - 1) / kBlockTokens;
      for (int32_t b = 0; b < blocks; ++b) tables.push_back(static_cast<int32_t>(tables.size()));
    }
    std::reverse(tables.begin(), tables.end());
    KvLayer kv{.data = nullptr,
               .num_blocks = static_cast<int64_t>(tables.size()),
               .num_kv_heads = shape.kv_heads,
               .head_dim = shape.head_dim};
    const int64_t cols = int64_t{shape.heads} * shape.head_dim;
    std::vector<Bf16> cache = RandomBf16(11, kv.num_blocks * kv.block_bytes() / 2, 1.0);
    std::vector<Bf16> q = RandomBf16(12, rows * cols, 1.0);
    const std::vector<float> sinks = RandomFloats(13, shape.heads, 1.0);
    std::vector<Bf16> out(q.size(), kPoison);
    DeviceArrays device(&gpu_);
    Bf16* const gpu_out = device.Put(out);
    AttentionArgs args{.entries = {device.Put(entries), entries.size()},
                       .tables = {device.Put(tables), kv.num_blocks},
                       .q = MakeTensor(device.Put(q), DType::kBf16, rows, cols),
                       .kv = kv,
                       .num_heads = shape.heads,
                       .window = shape.window,
                       .sinks = device.Put(sinks),
                       .out = MakeTensor(gpu_out, DType::kBf16, rows, cols),
                       .max_entry_rows = 130,
                       .max_positions = longest + 1};
    args.kv.data = device.Put(cache);
    gpu_.Attention(args);
    AttentionArgs on_cpu{.entries = entries,
                         .tables = Index(tables),
                         .q = View(q, rows, cols),
                         .kv = kv,
                         .num_heads = shape.heads,
                         .window = shape.window,
                         .sinks = sinks.data(),
                         .out = View(out, rows, cols)};
    on_cpu.kv.data = cache.data();
    cpu_.Attention(on_cpu);
    const std::string what =
        "attention " + std::to_string(shape.heads) + "/" + std::to_string(shape.kv_heads) + " x " +
        std::to_string(shape.head_dim) + " window " + std::to_string(shape.window);
    const std::vector<Bf16> got = device.Get(gpu_out, out.size());
    CheckNear(got, out, 1e-2, what);

    // The same rows one at a time: the decode kernel, alone and all together.
    std::vector<AttentionEntry> singles;
    for (const AttentionEntry& entry : entries) {
      for (int32_t r = 0; r < entry.num_rows; ++r) {
        singles.push_back({.first_row = entry.first_row + r,
                           .num_rows = 1,
                           .first_position = entry.first_position + r,
                           .table_offset = entry.table_offset});
      }
    }
    gpu_.Write(gpu_out, std::vector<Bf16>(out.size(), kPoison).data(), out.size() * 2);
    args.entries = {device.Put(singles), singles.size()};
    args.max_entry_rows = 1;
    gpu_.Attention(args);
    Check(EqualBits(device.Get(gpu_out, out.size()), got), what + ": rows alone have other bits");
    // With larger bounds than needed: another grid.
    args.max_positions = 4 * longest;
    gpu_.Attention(args);
    Check(EqualBits(device.Get(gpu_out, out.size()), got), what + ": a larger bound changes bits");
  }

  void Sums() {
    for (const int64_t cols : {33, 64, 2'880}) {
      const int64_t rows = 7, k = 4;
      std::vector<float> x = RandomFloats(15, rows * cols, 1.0);
      std::vector<Bf16> slots = RandomBf16(16, rows * k * cols, 1.0);
      std::vector<float> shares = RandomFloats(17, rows * k, 0.4);
      DeviceArrays device(&gpu_);
      float* const gpu_x = device.Put(x);
      gpu_.SumSlots({.rows = MakeTensor(device.Put(slots), DType::kBf16, rows * k, cols),
                     .shares = MakeTensor(device.Put(shares), DType::kF32, rows, k),
                     .x = MakeTensor(gpu_x, DType::kF32, rows, cols)});
      cpu_.SumSlots({.rows = View(slots, rows * k, cols),
                     .shares = View(shares, rows, k),
                     .x = View(x, rows, cols)});
      Check(EqualBits(device.Get(gpu_x, x.size()), x), "sum slots of " + std::to_string(cols));
    }
  }
};

}  // namespace

int CheckDense(Backend* cpu, Backend* gpu, bool is_quick) {
  DenseChecks checks(cpu, gpu, is_quick);
  checks.Run();
  return checks.num_failed();
}

}  // namespace shoal::gpu
