#include "kernels/checked_backend.h"

#include <algorithm>
#include <cmath>
#include <utility>
#include <vector>

#include "kernels/kernel_check.h"

namespace shoal {
namespace {

void CheckTensor(const TensorView& x, DType dtype) {
  KERNEL_CHECK(x.dtype == dtype);
  KERNEL_CHECK(x.rows >= 0 && x.cols > 0 && x.stride >= x.cols);
  KERNEL_CHECK(x.rows == 0 || x.data != nullptr);
  KERNEL_CHECK(reinterpret_cast<uintptr_t>(x.data) % static_cast<uintptr_t>(DTypeBytes(dtype)) ==
               0);
}

void CheckShape(const TensorView& x, DType dtype, int64_t rows, int64_t cols) {
  CheckTensor(x, dtype);
  KERNEL_CHECK(x.rows == rows);
  KERNEL_CHECK(x.cols == cols);
}

void CheckDisjoint(const TensorView& a, const TensorView& b) {
  if (a.empty() || b.empty()) return;
  const auto begin = [](const TensorView& x) { return reinterpret_cast<uintptr_t>(x.data); };
  const auto end = [&](const TensorView& x) {
    const int64_t elements = (x.rows - 1) * x.stride + x.cols;
    return begin(x) + static_cast<uintptr_t>(elements * DTypeBytes(x.dtype));
  };
  KERNEL_CHECK(end(a) <= begin(b) || end(b) <= begin(a));
}

bool IsIndex(int64_t value, int64_t size) {
  return 0 <= value && value < size;
}

void CheckIndices(const IndexView& index, int64_t count, int64_t size) {
  KERNEL_CHECK(index.size == count);
  for (int64_t i = 0; i < count; ++i) KERNEL_CHECK(IsIndex(index[i], size));
}

void CheckDistinct(const IndexView& index) {
  std::vector<int32_t> sorted(index.data, index.data + index.size);
  std::ranges::sort(sorted);
  KERNEL_CHECK(std::ranges::adjacent_find(sorted) == sorted.end());
}

void CheckKv(const KvLayer& kv, int num_heads) {
  KERNEL_CHECK(kv.data != nullptr && kv.num_blocks > 0);
  KERNEL_CHECK(kv.num_kv_heads > 0 && num_heads > 0 && num_heads % kv.num_kv_heads == 0);
  KERNEL_CHECK(kv.head_dim > 0 && kv.head_dim % 2 == 0);
}

// The entry's rows are there, and so is every block that they see.
void CheckEntry(const AttentionArgs& args, const AttentionEntry& entry) {
  if (entry.num_rows == 0) return;
  KERNEL_CHECK(entry.num_rows > 0 && entry.first_row >= 0);
  KERNEL_CHECK(int64_t{entry.first_row} + entry.num_rows <= args.q.rows);
  KERNEL_CHECK(entry.first_position >= 0 && entry.table_offset >= 0);
  const int64_t first = int64_t{entry.first_position} - args.window + 1;
  const int64_t first_seen = args.window > 0 ? std::max<int64_t>(first, 0) : 0;
  const int64_t last = int64_t{entry.first_position} + entry.num_rows - 1;
  for (int64_t tile = first_seen / kBlockTokens; tile <= last / kBlockTokens; ++tile) {
    KERNEL_CHECK(entry.table_offset + tile < args.tables.size);
    KERNEL_CHECK(IsIndex(args.tables[entry.table_offset + tile], args.kv.num_blocks));
  }
}

void CheckMatrix(const PackedMatrix& matrix, int64_t num_experts) {
  KERNEL_CHECK(matrix.out > 0 && matrix.in > 0);
  KERNEL_CHECK(matrix.format != ExpertFormat::kMxfp4 || matrix.in % kMxBlock == 0);
  KERNEL_CHECK(static_cast<int64_t>(matrix.experts.size()) == num_experts);
  for (const std::byte* expert : matrix.experts) {
    KERNEL_CHECK(expert != nullptr && reinterpret_cast<uintptr_t>(expert) % 64 == 0);
  }
}

void CheckSlots(const SlotShape& shape, const TensorView& messages) {
  KERNEL_CHECK(shape.num_ranks > 0 && shape.slot_rows > 0 && shape.k > 0);
  KERNEL_CHECK(shape.row_bytes == messages.cols * DTypeBytes(DType::kBf16));
  CheckShape(
      messages, DType::kBf16, int64_t{shape.num_ranks} * shape.message_rows(), messages.cols);
  KERNEL_CHECK(messages.stride == messages.cols);
  KERNEL_CHECK(reinterpret_cast<uintptr_t>(messages.data) % alignof(SlotHeader) == 0);
  KERNEL_CHECK(shape.message_bytes() % static_cast<int64_t>(alignof(SlotHeader)) == 0);
}

void CheckSampleRow(const SampleRow& row, int64_t vocab) {
  KERNEL_CHECK(row.temperature >= 0.0f && std::isfinite(row.temperature));
  KERNEL_CHECK(row.top_p > 0.0f && row.top_p <= 1.0f);
  KERNEL_CHECK(row.min_p >= 0.0f && row.min_p <= 1.0f);
  KERNEL_CHECK(row.top_k >= 0 && row.num_top_logprobs >= -1);
  KERNEL_CHECK(std::isfinite(row.presence_penalty) && std::isfinite(row.frequency_penalty));
  KERNEL_CHECK(row.repetition_penalty > 0.0f && std::isfinite(row.repetition_penalty));
  int32_t previous = -1;
  for (const SampleRow::Count& count : row.output_counts) {
    KERNEL_CHECK(IsIndex(count.id, vocab) && count.id > std::exchange(previous, count.id));
  }
  previous = -1;
  for (const int32_t id : row.prompt_ids) {
    KERNEL_CHECK(IsIndex(id, vocab) && id > std::exchange(previous, id));
  }
  for (const SampleRow::Bias& bias : row.bias) {
    KERNEL_CHECK(IsIndex(bias.id, vocab) && std::isfinite(bias.value));
  }
  for (const int32_t id : row.forbidden) KERNEL_CHECK(IsIndex(id, vocab));
  KERNEL_CHECK(row.allowed.empty() || static_cast<int64_t>(row.allowed.size()) * 32 >= vocab);
}

}  // namespace

CheckedBackend::CheckedBackend(std::unique_ptr<Backend> inner) : inner_(std::move(inner)) {
  KERNEL_CHECK(inner_ != nullptr);
}

CheckedBackend::~CheckedBackend() = default;

void* CheckedBackend::Allocate(size_t bytes) {
  void* const data = inner_->Allocate(bytes);
  KERNEL_CHECK(reinterpret_cast<uintptr_t>(data) % 64 == 0);
  return data;
}

void CheckedBackend::Free(void* data, size_t bytes) {
  inner_->Free(data, bytes);
}

void CheckedBackend::Write(void* device, const void* host, size_t bytes) {
  KERNEL_CHECK(bytes == 0 || (device != nullptr && host != nullptr));
  inner_->Write(device, host, bytes);
}

void CheckedBackend::Read(void* host, const void* device, size_t bytes) {
  KERNEL_CHECK(bytes == 0 || (device != nullptr && host != nullptr));
  inner_->Read(host, device, bytes);
}

int64_t CheckedBackend::PackedBytes(ExpertFormat format, int64_t out, int64_t in) const {
  KERNEL_CHECK(out > 0 && in > 0);
  KERNEL_CHECK(format != ExpertFormat::kMxfp4 || in % kMxBlock == 0);
  const int64_t bytes = inner_->PackedBytes(format, out, in);
  KERNEL_CHECK(bytes > 0 && bytes % 64 == 0);
  return bytes;
}

void CheckedBackend::Repack(const RepackArgs& args) {
  KERNEL_CHECK(args.out > 0 && args.in > 0);
  KERNEL_CHECK(args.codes != nullptr && args.packed != nullptr);
  if (args.format == ExpertFormat::kMxfp4) {
    KERNEL_CHECK(args.in % kMxBlock == 0 && args.scales != nullptr);
    const uint8_t* const end = args.scales + args.out * (args.in / kMxBlock);
    KERNEL_CHECK(std::find(args.scales, end, uint8_t{255}) == end);
  }
  inner_->Repack(args);
}

void CheckedBackend::Embed(const EmbedArgs& args) {
  CheckTensor(args.table, DType::kBf16);
  CheckShape(args.out, DType::kF32, args.ids.size, args.table.cols);
  CheckIndices(args.ids, args.out.rows, args.table.rows);
  inner_->Embed(args);
}

void CheckedBackend::RmsNorm(const RmsNormArgs& args) {
  CheckTensor(args.x, DType::kF32);
  CheckShape(args.out, DType::kBf16, args.x.rows, args.x.cols);
  if (!args.add.empty()) CheckShape(args.add, DType::kBf16, args.x.rows, args.x.cols);
  KERNEL_CHECK(args.gain != nullptr && args.eps >= 0.0f);
  CheckDisjoint(args.x, args.out);
  inner_->RmsNorm(args);
}

void CheckedBackend::Linear(const LinearArgs& args) {
  CheckTensor(args.x, DType::kBf16);
  CheckTensor(args.weight, DType::kBf16);
  KERNEL_CHECK(args.weight.cols == args.x.cols);
  KERNEL_CHECK(args.out.dtype == DType::kBf16 || args.out.dtype == DType::kF32);
  CheckShape(args.out, args.out.dtype, args.x.rows, args.weight.rows);
  CheckDisjoint(args.x, args.out);
  inner_->Linear(args);
}

void CheckedBackend::RopeAndAppend(const RopeAndAppendArgs& args) {
  CheckKv(args.kv, args.num_heads);
  const int64_t heads = args.num_heads + int64_t{2} * args.kv.num_kv_heads;
  CheckShape(args.qkv, DType::kBf16, args.qkv.rows, heads * args.kv.head_dim);
  KERNEL_CHECK(args.rope != nullptr);
  CheckIndices(args.positions, args.qkv.rows, int64_t{1} << 31);
  KERNEL_CHECK(args.slots.size == args.qkv.rows);
  std::vector<int32_t> slots(args.slots.data, args.slots.data + args.slots.size);
  std::erase(slots, -1);  // Kept nowhere
  const IndexView kept = {.data = slots.data(), .size = static_cast<int64_t>(slots.size())};
  CheckIndices(kept, kept.size, args.kv.num_blocks * kBlockTokens);
  CheckDistinct(kept);
  inner_->RopeAndAppend(args);
}

void CheckedBackend::Attention(const AttentionArgs& args) {
  CheckKv(args.kv, args.num_heads);
  CheckTensor(args.q, DType::kBf16);
  const int64_t cols = int64_t{args.num_heads} * args.kv.head_dim;
  KERNEL_CHECK(args.q.cols >= cols);
  CheckShape(args.out, DType::kBf16, args.q.rows, cols);
  CheckDisjoint(args.q, args.out);
  KERNEL_CHECK(args.window >= 0 && args.sinks != nullptr);
  for (const AttentionEntry& entry : args.entries) {
    CheckEntry(args, entry);
    const int64_t end = int64_t{entry.first_position} + entry.num_rows;
    KERNEL_CHECK(args.max_entry_rows == 0 || entry.num_rows <= args.max_entry_rows);
    KERNEL_CHECK(args.max_positions == 0 || end <= args.max_positions);
  }
  inner_->Attention(args);
}

void CheckedBackend::SelectExperts(const SelectExpertsArgs& args) {
  CheckTensor(args.scores, DType::kF32);
  const int64_t k = args.ids.cols;
  CheckShape(args.ids, DType::kI32, args.scores.rows, k);
  CheckShape(args.shares, DType::kF32, args.scores.rows, k);
  KERNEL_CHECK(k <= args.scores.cols);
  inner_->SelectExperts(args);
}

void CheckedBackend::GroupByExpert(const GroupByExpertArgs& args) {
  CheckTensor(args.ids, DType::kI32);
  KERNEL_CHECK(args.num_local > 0 && args.expert_offsets != nullptr);
  KERNEL_CHECK(args.ids.rows == 0 || (args.pair_row != nullptr && args.pair_out != nullptr));
  for (int64_t r = 0; r < args.ids.rows; ++r) {
    for (int64_t s = 0; s < args.ids.cols; ++s) {
      const int32_t id = args.ids.row<int32_t>(r)[s];
      KERNEL_CHECK(IsIndex(id, args.local_index.size));
      KERNEL_CHECK(IsIndex(args.local_index[id], args.num_local));
    }
  }
  inner_->GroupByExpert(args);
}

void CheckedBackend::FillSlots(const FillSlotsArgs& args) {
  const SlotShape& shape = args.shape;
  const RouteTable& table = args.table;
  CheckSlots(shape, args.messages);
  CheckShape(args.ids, DType::kI32, args.ids.rows, shape.k);
  CheckShape(args.x, DType::kBf16, args.ids.rows, args.messages.cols);
  KERNEL_CHECK(args.ids.rows <= shape.slot_rows && args.x.stride == args.x.cols);
  KERNEL_CHECK(args.guard != nullptr && (args.ids.rows == 0 || args.home != nullptr));
  KERNEL_CHECK(args.num_rows != nullptr);
  KERNEL_CHECK(*args.num_rows >= 0 && *args.num_rows <= args.ids.rows);
  KERNEL_CHECK(table.replicas != nullptr && IsIndex(table.self, shape.num_ranks));
  for (int64_t r = 0; r < *args.num_rows; ++r) {
    for (int64_t s = 0; s < shape.k; ++s) {
      const int32_t id = args.ids.row<int32_t>(r)[s];
      KERNEL_CHECK(IsIndex(id, table.num_experts));
      KERNEL_CHECK(IsIndex(table.replicas[int64_t{id} * table.max_replicas], shape.num_ranks));
      KERNEL_CHECK(IsIndex(RouteDestination(table, id, static_cast<int32_t>(r)), shape.num_ranks));
    }
  }
  CheckDisjoint(args.x, args.messages);
  inner_->FillSlots(args);
}

// What the messages hold came from outside: the operation itself judges that.
void CheckedBackend::GroupSlots(const GroupSlotsArgs& args) {
  CheckSlots(args.shape, args.messages);
  KERNEL_CHECK(args.guard != nullptr && args.expert_offsets != nullptr && args.num_local >= 0);
  KERNEL_CHECK(args.pair_row != nullptr && args.pair_out != nullptr);
  for (int64_t e = 0; e < args.local_index.size; ++e) {
    KERNEL_CHECK(args.local_index[e] >= -1 && args.local_index[e] < args.num_local);
  }
  inner_->GroupSlots(args);
}

void CheckedBackend::PickRows(const PickRowsArgs& args) {
  KERNEL_CHECK(args.x.dtype == DType::kBf16 || args.x.dtype == DType::kF32);
  CheckTensor(args.x, args.x.dtype);
  CheckShape(args.out, args.x.dtype, args.index.size, args.x.cols);
  CheckIndices(args.index, args.out.rows, args.x.rows);
  CheckDisjoint(args.x, args.out);
  inner_->PickRows(args);
}

void CheckedBackend::SumSlots(const SumSlotsArgs& args) {
  CheckTensor(args.x, DType::kF32);
  CheckTensor(args.shares, DType::kF32);
  KERNEL_CHECK(args.shares.rows == args.x.rows);
  CheckShape(args.rows, DType::kBf16, args.x.rows * args.shares.cols, args.x.cols);
  CheckDisjoint(args.x, args.rows);
  inner_->SumSlots(args);
}

void CheckedBackend::ExpertMlp(const ExpertMlpArgs& args) {
  const auto num_experts = static_cast<int64_t>(args.expert_offsets.size()) - 1;
  KERNEL_CHECK(!args.expert_offsets.empty());
  const int64_t num_pairs = args.expert_offsets.back();
  KERNEL_CHECK(num_experts >= 0 && args.gate_up != nullptr && args.down != nullptr);
  CheckMatrix(*args.gate_up, num_experts);
  CheckMatrix(*args.down, num_experts);
  KERNEL_CHECK(args.gate_up->format == args.down->format);
  KERNEL_CHECK(args.gate_up->out == 2 * args.down->in);
  KERNEL_CHECK(static_cast<int64_t>(args.gate_up_bias.size()) == num_experts);
  KERNEL_CHECK(static_cast<int64_t>(args.down_bias.size()) == num_experts);
  KERNEL_CHECK(args.expert_offsets.front() == 0 && args.usual_pairs >= 0);
  KERNEL_CHECK(std::ranges::is_sorted(args.expert_offsets));
  CheckShape(args.x, DType::kBf16, args.x.rows, args.gate_up->in);
  CheckShape(args.out, DType::kBf16, args.out.rows, args.down->out);
  KERNEL_CHECK(args.pair_row.size == args.pair_out.size && args.pair_row.size >= num_pairs);
  const IndexView pair_out = {.data = args.pair_out.data, .size = num_pairs};
  CheckIndices({.data = args.pair_row.data, .size = num_pairs}, num_pairs, args.x.rows);
  CheckIndices(pair_out, num_pairs, args.out.rows);
  CheckDistinct(pair_out);
  CheckDisjoint(args.x, args.out);
  inner_->ExpertMlp(args);
}

void CheckedBackend::Sample(const SampleArgs& args) {
  CheckTensor(args.logits, DType::kF32);
  KERNEL_CHECK(static_cast<int64_t>(args.rows.size()) == args.logits.rows);
  KERNEL_CHECK(args.results.size() == args.rows.size());
  for (const SampleRow& row : args.rows) CheckSampleRow(row, args.logits.cols);
  inner_->Sample(args);
}

}  // namespace shoal
