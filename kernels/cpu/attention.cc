// (E6)-(E8) Attention: who computes what. The formula and its inner loops are in
// attention_kernel.h.
//
// A task is (up to kTaskRows rows of one entry) x (one K/V head with its query heads): it reads
// each of its K/V tiles once. Tasks write disjoint outputs and may run in any order on any thread.
#include <algorithm>
#include <vector>

#include "kernels/cpu/attention_kernel.h"
#include "kernels/cpu/backend.h"
#include "kernels/cpu/row_kernels.h"
#include "kernels/cpu/thread_pool.h"
#include "kernels/numeric.h"

namespace shoal {
namespace {

// Enough rows that moving a tile costs little beside using it; few enough that the task's fp32
// queries and outputs (128 KB for 8 heads of 64) stay in the second-level cache.
constexpr int kTaskRows = 32;

struct RowBlock {
  const AttentionEntry* entry;
  int32_t row;  // Within the entry.
};

std::vector<RowBlock> SplitRows(std::span<const AttentionEntry> entries) {
  std::vector<RowBlock> blocks;
  for (const AttentionEntry& entry : entries) {
    for (int32_t row = 0; row < entry.num_rows; row += kTaskRows) blocks.push_back({&entry, row});
  }
  return blocks;
}

AttentionTask MakeTask(const AttentionArgs& args, const RowBlock& block, int kv_head) {
  const KvLayer& kv = args.kv;
  const AttentionEntry& entry = *block.entry;
  const int group = args.num_heads / kv.num_kv_heads;
  const int64_t first_column = int64_t{kv_head} * group * kv.head_dim;
  const int64_t head_size = int64_t{kBlockTokens} * kv.head_dim;
  const Bf16* const keys = static_cast<const Bf16*>(kv.data) + kv_head * head_size;
  return {.q = args.q.row<Bf16>(entry.first_row + block.row) + first_column,
          .q_stride = args.q.stride,
          .out = args.out.row<Bf16>(entry.first_row + block.row) + first_column,
          .out_stride = args.out.stride,
          .sinks = args.sinks + int64_t{kv_head} * group,
          .num_rows = std::min(kTaskRows, entry.num_rows - block.row),
          .group = group,
          .head_dim = kv.head_dim,
          .first_position = entry.first_position + block.row,
          .window = args.window,
          .table = args.tables.data + entry.table_offset,
          .keys = keys,
          .values = keys + kv.num_kv_heads * head_size,
          .block_stride = 2 * kv.num_kv_heads * head_size};
}

}  // namespace

void CpuBackend::Attention(const AttentionArgs& args) {
  const std::vector<RowBlock> blocks = SplitRows(args.entries);
  const int num_kv_heads = args.kv.num_kv_heads;
  const int64_t num_tasks = static_cast<int64_t>(blocks.size()) * num_kv_heads;
  pool_->ParallelFor(num_tasks, /*grain=*/1, [&](int64_t begin, int64_t end, int thread) {
    for (int64_t i = begin; i < end; ++i) {
      const RowBlock& block = blocks[static_cast<size_t>(i / num_kv_heads)];
      const AttentionTask task = MakeTask(args, block, static_cast<int>(i % num_kv_heads));
      const size_t bytes = AttentionScratchBytes(task.num_rows, task.group, task.head_dim);
      row_kernels_->attend(task, pool_->Scratch(thread, bytes));
    }
  });
}

}  // namespace shoal
