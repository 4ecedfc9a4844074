// Parity of what chooses: the router, the grouping of its pairs, sampling. All exact.
#include <algorithm>
#include <string>
#include <utility>
#include <vector>

#include "tests/gpu/checks.h"
#include "tests/gpu/device_arrays.h"
#include "tests/kernels/arrays.h"

namespace shoal::gpu {
namespace {

class ChoiceChecks : public Checks {
 public:
  using Checks::Checks;

  void Run() {
    Section("router", [&] { Routers(); });
    Section("slots", [&] { Slots(); });
    Section("sample", [&] { Samples(); });
  }

 private:
  void Routers() {
    for (const int experts : {8, 32, 128}) {
      const int64_t rows = 301, k = 4;
      std::vector<float> scores = RandomFloats(14, rows * experts, 3.0);
      for (size_t i = 0; i < scores.size(); i += 3) scores[i] = std::round(scores[i]);  // Ties
      scores[5] = __builtin_nanf("");
      std::fill_n(scores.begin() + experts, experts, -__builtin_inff());
      std::vector<int32_t> ids(static_cast<size_t>(rows * k), -7);
      std::vector<float> shares(ids.size(), -7.0f);
      DeviceArrays device(&gpu_);
      int32_t* const gpu_ids = device.Put(ids);
      float* const gpu_shares = device.Put(shares);
      gpu_.SelectExperts({.scores = MakeTensor(device.Put(scores), DType::kF32, rows, experts),
                          .ids = MakeTensor(gpu_ids, DType::kI32, rows, k),
                          .shares = MakeTensor(gpu_shares, DType::kF32, rows, k)});
      cpu_.SelectExperts({.scores = View(scores, rows, experts),
                          .ids = View(ids, rows, k),
                          .shares = View(shares, rows, k)});
      Check(EqualBits(device.Get(gpu_ids, ids.size()), ids), "router: ids");
      Check(RelativeError(device.Get(gpu_shares, shares.size()), shares) == 0.0, "router: shares");

      std::vector<int32_t> local(static_cast<size_t>(experts));
      for (int e = 0; e < experts; ++e) local[static_cast<size_t>(e)] = experts - 1 - e;
      std::vector<int32_t> offsets(static_cast<size_t>(experts) + 1, -7);
      std::vector<int32_t> pair_row(ids.size(), -7), pair_out(ids.size(), -7);
      int32_t* const gpu_offsets = device.Put(offsets);
      int32_t* const gpu_rows = device.Put(pair_row);
      int32_t* const gpu_outs = device.Put(pair_out);
      gpu_.GroupByExpert({.ids = MakeTensor(device.Put(ids), DType::kI32, rows, k),
                          .local_index = {device.Put(local), experts},
                          .num_local = experts,
                          .expert_offsets = gpu_offsets,
                          .pair_row = gpu_rows,
                          .pair_out = gpu_outs});
      cpu_.GroupByExpert({.ids = View(ids, rows, k),
                          .local_index = Index(local),
                          .num_local = experts,
                          .expert_offsets = offsets.data(),
                          .pair_row = pair_row.data(),
                          .pair_out = pair_out.data()});
      Check(EqualBits(device.Get(gpu_offsets, offsets.size()), offsets) &&
                EqualBits(device.Get(gpu_rows, pair_row.size()), pair_row) &&
                EqualBits(device.Get(gpu_outs, pair_out.size()), pair_out),
            "group by expert of " + std::to_string(experts));
    }
  }

  // What four ranks would send each other, on one device; one slot is padded.
  void Slots() {
    const int32_t experts = 32, hidden = 64, rows = 37;
    const SlotShape shape{.num_ranks = 4, .slot_rows = 40, .k = 4, .row_bytes = hidden * 2};
    const int64_t message_rows = int64_t{shape.num_ranks} * shape.message_rows();
    std::vector<int32_t> ids, replicas, local;
    for (int32_t i = 0; i < shape.slot_rows * shape.k; ++i)
      ids.push_back((i * 7 + i / 9) % experts);
    for (int32_t e = 0; e < experts; ++e) {
      replicas.insert(replicas.end(), {e % 3, e % 2 == 0 ? 3 : -1});
      local.push_back(e % 3 == 2 || e % 2 == 0 ? e : -1);  // More than rank 2 or 3 hold
    }
    std::vector<Bf16> x = RandomBf16(15, int64_t{shape.slot_rows} * hidden, 1.0);
    std::vector<Bf16> messages(static_cast<size_t>(message_rows * hidden));
    std::vector<int32_t> home(ids.size(), -7), num_rows = {rows};
    std::vector<SlotGuard> guard = {{.epoch = 5, .seq = 3}};
    DeviceArrays device(&gpu_);
    Bf16* const gpu_messages = device.Put(messages);
    int32_t* const gpu_home = device.Put(home);
    SlotGuard* const gpu_guard = device.Put(guard);
    const RouteTable table{.num_experts = experts, .max_replicas = 2, .self = 2};
    RouteTable gpu_table = table, cpu_table = table;
    gpu_table.replicas = device.Put(replicas);
    cpu_table.replicas = replicas.data();
    gpu_.FillSlots({.ids = MakeTensor(device.Put(ids), DType::kI32, shape.slot_rows, shape.k),
                    .x = MakeTensor(device.Put(x), DType::kBf16, shape.slot_rows, hidden),
                    .table = gpu_table,
                    .shape = shape,
                    .num_rows = device.Put(num_rows),
                    .guard = gpu_guard,
                    .messages = MakeTensor(gpu_messages, DType::kBf16, message_rows, hidden),
                    .home = gpu_home});
    cpu_.FillSlots({.ids = View(ids, shape.slot_rows, shape.k),
                    .x = View(x, shape.slot_rows, hidden),
                    .table = cpu_table,
                    .shape = shape,
                    .num_rows = num_rows.data(),
                    .guard = guard.data(),
                    .messages = View(messages, message_rows, hidden),
                    .home = home.data()});
    Check(EqualBits(device.Get(gpu_messages, messages.size()), messages) &&
              EqualBits(device.Get(gpu_home, home.size()), home),
          "fill slots");

    // As if all four had come from this rank: three of them are not of their source.
    std::vector<int32_t> offsets(static_cast<size_t>(experts) + 1, -7);
    std::vector<int32_t> pair_row(static_cast<size_t>(shape.num_places()), -7);
    std::vector<int32_t> pair_out = pair_row;
    int32_t* const gpu_offsets = device.Put(offsets);
    int32_t* const gpu_rows = device.Put(pair_row);
    int32_t* const gpu_outs = device.Put(pair_out);
    gpu_.GroupSlots({.messages = MakeTensor(gpu_messages, DType::kBf16, message_rows, hidden),
                     .local_index = {device.Put(local), experts},
                     .shape = shape,
                     .num_local = experts,
                     .guard = gpu_guard,
                     .expert_offsets = gpu_offsets,
                     .pair_row = gpu_rows,
                     .pair_out = gpu_outs});
    cpu_.GroupSlots({.messages = View(messages, message_rows, hidden),
                     .local_index = Index(local),
                     .shape = shape,
                     .num_local = experts,
                     .guard = guard.data(),
                     .expert_offsets = offsets.data(),
                     .pair_row = pair_row.data(),
                     .pair_out = pair_out.data()});
    const SlotGuard got = device.Get(gpu_guard, 1)[0];
    Check(EqualBits(device.Get(gpu_offsets, offsets.size()), offsets) &&
              EqualBits(device.Get(gpu_rows, pair_row.size()), pair_row) &&
              EqualBits(device.Get(gpu_outs, pair_out.size()), pair_out) &&
              got.seq == guard[0].seq && got.fault == guard[0].fault,
          "group slots");
  }

  void Samples() {
    for (const int64_t vocab : {2, 128, 5'000, 201'088}) {
      if (quick_ && vocab > 5'000) continue;
      for (const double spread : {0.01, 1.0, 4.0}) SampleAll(vocab, spread);
    }
  }

  // Rows of all kinds of settings over the same logits.
  void SampleAll(int64_t vocab, double spread) {
    std::vector<float> row = RandomFloats(21, vocab, spread);
    for (size_t i = 0; i < row.size(); i += 7) row[i] = std::round(row[i]);
    if (vocab > 100) {
      row[3] = __builtin_nanf("");
      row[4] = -__builtin_inff();
      row[50] = -0.0f;
      row[51] = 0.0f;
    }
    const auto last = static_cast<int32_t>(vocab - 1);
    const std::vector<SampleRow::Count> counts = {{0, 3}, {last, 1}};
    const std::vector<int32_t> prompt = {0};
    const std::vector<SampleRow::Bias> bias = {{1, 0.5f}, {0, -1.0f}, {1, 0.25f}};
    const std::vector<int32_t> forbidden = {1};
    std::vector<uint32_t> allowed(static_cast<size_t>(vocab + 31) / 32, 0xaaaaaaaau);
    std::vector<SampleRow> rows;
    for (int i = 0; i < 48; ++i) {
      SampleRow settings;
      settings.seed = static_cast<uint64_t>(i);
      settings.position = i;
      settings.temperature = i % 4 == 0 ? 0.0f : 0.3f * static_cast<float>(i % 5 + 1);
      settings.top_p = i % 3 == 0 ? 1.0f : 0.2f * static_cast<float>(i % 5 + 1) - 0.1f;
      settings.min_p = i % 7 == 0 ? 0.05f : 0.0f;
      settings.top_k = i % 5 == 0 ? i : 0;
      settings.num_top_logprobs = i % 6 - 1;
      if (i % 2 == 0) {
        settings.repetition_penalty = 1.3f;
        settings.frequency_penalty = 0.4f;
        settings.presence_penalty = 0.2f;
        settings.output_counts = counts;
        settings.prompt_ids = prompt;
      }
      if (i % 3 == 1) settings.bias = bias;
      if (i % 8 == 1 && vocab > 2) settings.forbidden = forbidden;
      if (i % 8 == 5) settings.allowed = allowed;
      rows.push_back(settings);
    }
    const auto n = static_cast<int64_t>(rows.size());
    std::vector<float> logits;
    for (int64_t i = 0; i < n; ++i) logits.insert(logits.end(), row.begin(), row.end());
    std::vector<SampleResult> on_cpu(rows.size()), on_gpu(rows.size());
    DeviceArrays device(&gpu_);
    gpu_.Sample({.logits = MakeTensor(device.Put(logits), DType::kF32, n, vocab),
                 .rows = rows,
                 .results = on_gpu});
    cpu_.Sample({.logits = View(logits, n, vocab), .rows = rows, .results = on_cpu});
    for (size_t i = 0; i < rows.size(); ++i) {
      bool equal = on_cpu[i].id == on_gpu[i].id && on_cpu[i].logprob == on_gpu[i].logprob &&
                   on_cpu[i].top.size() == on_gpu[i].top.size();
      for (size_t t = 0; equal && t < on_cpu[i].top.size(); ++t) {
        equal = on_cpu[i].top[t].id == on_gpu[i].top[t].id &&
                on_cpu[i].top[t].logprob == on_gpu[i].top[t].logprob;
      }
      Check(equal,
            "sample row " + std::to_string(i) + " of " + std::to_string(vocab) + " logits: " +
                std::to_string(on_gpu[i].id) + ", the CPU draws " + std::to_string(on_cpu[i].id));
    }
  }
};

}  // namespace

int CheckChoices(Backend* cpu, Backend* gpu, bool is_quick) {
  ChoiceChecks checks(cpu, gpu, is_quick);
  checks.Run();
  return checks.num_failed();
}

}  // namespace shoal::gpu
