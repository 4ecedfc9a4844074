#include "tests/support/parity_backend.h"

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstring>

#include "kernels/kernel_check.h"
#include "kernels/numeric.h"

namespace shoal {
namespace {

// Two roundings to bf16 on the way and one at the end; attention rounds its weights, too.
constexpr double kNear = 6e-3;
constexpr double kAttentionNear = 1e-2;
constexpr double kF32Near = 3e-5;
constexpr double kEqual = 0.0;

double Number(float x) {
  return static_cast<double>(x);
}

double Number(Bf16 x) {
  return static_cast<double>(ToFloat(x));
}

double Number(int32_t x) {
  return static_cast<double>(x);
}

}  // namespace

ParityBackend::ParityBackend(Backend* specification, Backend* device)
    : specification_(*specification), device_(*device) {}

ParityBackend::~ParityBackend() {
  for (const auto& [data, memory] : memory_) specification_.Free(memory.shadow, memory.bytes);
}

void* ParityBackend::Allocate(size_t bytes) {
  void* const data = device_.Allocate(bytes);
  if (data == nullptr) return nullptr;
  void* const shadow = specification_.Allocate(bytes);
  KERNEL_CHECK(shadow != nullptr);
  memory_[static_cast<const std::byte*>(data)] = {shadow, bytes};
  return data;
}

void ParityBackend::Free(void* data, size_t bytes) {
  if (data == nullptr) return;
  const auto at = memory_.find(static_cast<const std::byte*>(data));
  KERNEL_CHECK(at != memory_.end());
  specification_.Free(at->second.shadow, at->second.bytes);
  memory_.erase(at);
  device_.Free(data, bytes);
}

void ParityBackend::Write(void* device, const void* host, size_t bytes) {
  if (bytes == 0) return;
  std::memcpy(Shadow(static_cast<std::byte*>(device)), host, bytes);
  device_.Write(device, host, bytes);
}

void ParityBackend::Read(void* host, const void* device, size_t bytes) {
  device_.Read(host, device, bytes);
}

template <typename T>
T* ParityBackend::Shadow(T* device) const {
  if (device == nullptr) return nullptr;
  const auto* const bytes = reinterpret_cast<const std::byte*>(device);
  auto at = memory_.upper_bound(bytes);
  KERNEL_CHECK(at != memory_.begin());
  --at;
  const auto offset = static_cast<size_t>(bytes - at->first);
  KERNEL_CHECK(offset < std::max<size_t>(at->second.bytes, 1));
  return reinterpret_cast<T*>(static_cast<std::byte*>(at->second.shadow) + offset);
}

TensorView ParityBackend::Shadow(TensorView view) const {
  if (!view.empty()) view.data = Shadow(static_cast<std::byte*>(view.data));
  return view;
}

IndexView ParityBackend::Shadow(const IndexView& view) const {
  return {.data = view.size == 0 ? nullptr : Shadow(view.data), .size = view.size};
}

KvLayer ParityBackend::Shadow(KvLayer layer) const {
  layer.data = Shadow(static_cast<std::byte*>(layer.data));
  return layer;
}

PackedMatrix ParityBackend::Shadow(const PackedMatrix& matrix) const {
  PackedMatrix shadow = matrix;
  for (const std::byte*& expert : shadow.experts) {
    const auto at = packed_.find(expert);
    KERNEL_CHECK(at != packed_.end());
    expert = at->second.data();
  }
  return shadow;
}

template <typename T>
void ParityBackend::Compare(const char* operation, const T* device, int64_t count, double bound) {
  std::vector<T> got(static_cast<size_t>(count));
  const auto bytes = static_cast<size_t>(count) * sizeof(T);
  if (bytes == 0) return;
  device_.Read(got.data(), device, bytes);
  T* const shadow = const_cast<T*>(Shadow(device));
  double difference = 0.0;
  double norm = 0.0;
  bool is_equal = std::memcmp(got.data(), shadow, bytes) == 0;
  for (int64_t i = 0; i < count && !is_equal; ++i) {
    const double x = Number(got[static_cast<size_t>(i)]), y = Number(shadow[i]);
    if (std::isnan(x) && std::isnan(y)) continue;
    difference += (x - y) * (x - y);
    norm += y * y;
  }
  const double error = is_equal ? 0.0 : std::sqrt(difference / std::max(norm, 1e-30));
  if (!(error <= bound) || (bound == kEqual && !is_equal)) {
    char text[160];
    std::snprintf(text,
                  sizeof(text),
                  "operation %lld, %s: relative error %.3e, at most %.3e was expected",
                  static_cast<long long>(num_operations_),
                  operation,
                  error,
                  bound);
    throw DeviceFault(text);
  }
  largest_error_ = std::max(largest_error_, error);
  std::memcpy(shadow, got.data(), bytes);
}

void ParityBackend::Compare(const char* operation, const TensorView& device, double bound) {
  const bool is_dense = device.stride == device.cols;
  const int64_t num_runs = is_dense ? std::min<int64_t>(1, device.rows) : device.rows;
  const int64_t length = is_dense ? device.rows * device.cols : device.cols;
  for (int64_t r = 0; r < num_runs; ++r) {
    switch (device.dtype) {
      case DType::kBf16:
        Compare(operation, device.row<const Bf16>(r), length, bound);
        break;
      case DType::kF32:
        Compare(operation, device.row<const float>(r), length, bound);
        break;
      default:
        Compare(operation, device.row<const int32_t>(r), length, bound);
    }
  }
}

int64_t ParityBackend::PackedBytes(ExpertFormat format, int64_t out, int64_t in) const {
  return device_.PackedBytes(format, out, in);
}

void ParityBackend::Repack(const RepackArgs& args) {
  device_.Repack(args);
  const int64_t bytes = specification_.PackedBytes(args.format, args.out, args.in);
  std::vector<std::byte>& packed = packed_[args.packed];
  packed.resize(static_cast<size_t>(bytes));
  RepackArgs shadow = args;
  shadow.packed = packed.data();
  specification_.Repack(shadow);
}

void ParityBackend::Embed(const EmbedArgs& args) {
  ++num_operations_;
  device_.Embed(args);
  specification_.Embed(
      {.ids = Shadow(args.ids), .table = Shadow(args.table), .out = Shadow(args.out)});
  Compare("Embed", args.out, kEqual);
}

void ParityBackend::RmsNorm(const RmsNormArgs& args) {
  ++num_operations_;
  device_.RmsNorm(args);
  specification_.RmsNorm({.x = Shadow(args.x),
                          .add = Shadow(args.add),
                          .gain = Shadow(args.gain),
                          .out = Shadow(args.out),
                          .eps = args.eps});
  Compare("RmsNorm's sum", args.x, kEqual);
  Compare("RmsNorm", args.out, kNear);
}

void ParityBackend::Linear(const LinearArgs& args) {
  ++num_operations_;
  device_.Linear(args);
  specification_.Linear({.x = Shadow(args.x),
                         .weight = Shadow(args.weight),
                         .bias = Shadow(args.bias),
                         .out = Shadow(args.out)});
  Compare("Linear", args.out, args.out.dtype == DType::kF32 ? kF32Near : kNear);
}

void ParityBackend::RopeAndAppend(const RopeAndAppendArgs& args) {
  ++num_operations_;
  device_.RopeAndAppend(args);
  specification_.RopeAndAppend({.qkv = Shadow(args.qkv),
                                .rope = Shadow(args.rope),
                                .positions = Shadow(args.positions),
                                .slots = Shadow(args.slots),
                                .num_heads = args.num_heads,
                                .kv = Shadow(args.kv)});
  Compare("RopeAndAppend", args.qkv, kEqual);
  Compare("RopeAndAppend's cache",
          static_cast<const Bf16*>(args.kv.data),
          args.kv.num_blocks * args.kv.block_bytes() / 2,
          kEqual);
}

void ParityBackend::Attention(const AttentionArgs& args) {
  ++num_operations_;
  device_.Attention(args);
  AttentionArgs shadow = args;
  shadow.entries = {Shadow(args.entries.data()), args.entries.size()};
  shadow.tables = Shadow(args.tables);
  shadow.q = Shadow(args.q);
  shadow.kv = Shadow(args.kv);
  shadow.sinks = Shadow(args.sinks);
  shadow.out = Shadow(args.out);
  specification_.Attention(shadow);
  Compare("Attention", args.out, kAttentionNear);
}

void ParityBackend::SelectExperts(const SelectExpertsArgs& args) {
  ++num_operations_;
  device_.SelectExperts(args);
  specification_.SelectExperts(
      {.scores = Shadow(args.scores), .ids = Shadow(args.ids), .shares = Shadow(args.shares)});
  Compare("SelectExperts' ids", args.ids, kEqual);
  Compare("SelectExperts' shares", args.shares, kEqual);
}

void ParityBackend::GroupByExpert(const GroupByExpertArgs& args) {
  ++num_operations_;
  device_.GroupByExpert(args);
  specification_.GroupByExpert({.ids = Shadow(args.ids),
                                .local_index = Shadow(args.local_index),
                                .num_local = args.num_local,
                                .expert_offsets = Shadow(args.expert_offsets),
                                .pair_row = Shadow(args.pair_row),
                                .pair_out = Shadow(args.pair_out)});
  const int64_t pairs = args.ids.rows * args.ids.cols;
  Compare("GroupByExpert's offsets", args.expert_offsets, args.num_local + 1, kEqual);
  Compare("GroupByExpert's rows", args.pair_row, pairs, kEqual);
  Compare("GroupByExpert's places", args.pair_out, pairs, kEqual);
}

void ParityBackend::FillSlots(const FillSlotsArgs& args) {
  ++num_operations_;
  device_.FillSlots(args);
  FillSlotsArgs shadow = args;
  shadow.ids = Shadow(args.ids);
  shadow.x = Shadow(args.x);
  shadow.table.replicas = Shadow(args.table.replicas);
  shadow.num_rows = Shadow(args.num_rows);
  shadow.guard = Shadow(args.guard);
  shadow.messages = Shadow(args.messages);
  shadow.home = Shadow(args.home);
  specification_.FillSlots(shadow);
  // Neither touches what is undefined, so that is equal, too.
  Compare("FillSlots' messages", args.messages, kEqual);
  Compare("FillSlots' places", args.home, args.ids.rows * args.ids.cols, kEqual);
}

void ParityBackend::GroupSlots(const GroupSlotsArgs& args) {
  ++num_operations_;
  device_.GroupSlots(args);
  GroupSlotsArgs shadow = args;
  shadow.messages = Shadow(args.messages);
  shadow.local_index = Shadow(args.local_index);
  shadow.guard = Shadow(args.guard);
  shadow.expert_offsets = Shadow(args.expert_offsets);
  shadow.pair_row = Shadow(args.pair_row);
  shadow.pair_out = Shadow(args.pair_out);
  specification_.GroupSlots(shadow);
  const int64_t pairs = shadow.expert_offsets[args.num_local];
  Compare("GroupSlots' guard",
          reinterpret_cast<const int32_t*>(args.guard),
          static_cast<int64_t>(sizeof(SlotGuard) / sizeof(int32_t)),
          kEqual);
  Compare("GroupSlots' offsets", args.expert_offsets, args.num_local + 1, kEqual);
  Compare("GroupSlots' rows", args.pair_row, pairs, kEqual);
  Compare("GroupSlots' places", args.pair_out, pairs, kEqual);
}

void ParityBackend::PickRows(const PickRowsArgs& args) {
  ++num_operations_;
  device_.PickRows(args);
  specification_.PickRows(
      {.x = Shadow(args.x), .index = Shadow(args.index), .out = Shadow(args.out)});
  Compare("PickRows", args.out, kEqual);
}

void ParityBackend::SumSlots(const SumSlotsArgs& args) {
  ++num_operations_;
  device_.SumSlots(args);
  specification_.SumSlots(
      {.rows = Shadow(args.rows), .shares = Shadow(args.shares), .x = Shadow(args.x)});
  Compare("SumSlots", args.x, kEqual);
}

void ParityBackend::ExpertMlp(const ExpertMlpArgs& args) {
  ++num_operations_;
  device_.ExpertMlp(args);
  const PackedMatrix gate_up = Shadow(*args.gate_up);
  const PackedMatrix down = Shadow(*args.down);
  std::vector<const float*> gate_up_bias, down_bias;
  for (const float* bias : args.gate_up_bias) gate_up_bias.push_back(Shadow(bias));
  for (const float* bias : args.down_bias) down_bias.push_back(Shadow(bias));
  ExpertMlpArgs shadow = args;
  shadow.x = Shadow(args.x);
  shadow.expert_offsets = {Shadow(args.expert_offsets.data()), args.expert_offsets.size()};
  shadow.pair_row = Shadow(args.pair_row);
  shadow.pair_out = Shadow(args.pair_out);
  shadow.gate_up = &gate_up;
  shadow.gate_up_bias = gate_up_bias;
  shadow.down = &down;
  shadow.down_bias = down_bias;
  shadow.out = Shadow(args.out);
  specification_.ExpertMlp(shadow);
  Compare("ExpertMlp", args.out, kNear);
}

void ParityBackend::Sample(const SampleArgs& args) {
  ++num_operations_;
  std::vector<SampleResult> expected(args.results.size());
  device_.Sample(args);
  specification_.Sample({.logits = Shadow(args.logits), .rows = args.rows, .results = expected});
  for (size_t i = 0; i < expected.size(); ++i) {
    if (args.results[i].id == expected[i].id && args.results[i].logprob == expected[i].logprob) {
      continue;
    }
    throw DeviceFault("operation " + std::to_string(num_operations_) + ", Sample: row " +
                      std::to_string(i) + " draws " + std::to_string(args.results[i].id) +
                      ", the specification " + std::to_string(expected[i].id));
  }
}

}  // namespace shoal
