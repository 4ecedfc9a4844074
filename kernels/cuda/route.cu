// A dispatch planned on the device: chosen experts in, messages out; messages in, groups of pairs
// out. Fixed shapes and no wait of the host, so a step that exchanges in this way can be captured
// in a graph. Integers and copies only: nothing here adds what a result depends on.
//
// Bound: FillSlots, 2 row_bytes for each (row, rank it goes to); GroupSlots, its own latency.
// Fraction reached: not yet measured.
#include "kernels/cuda/device.cuh"
#include "kernels/cuda/ptx.cuh"

namespace shoal::cuda {
namespace {

constexpr int kFillThreads = 256;
constexpr int kGroupThreads = 1024;
constexpr int kWarp = 32;
constexpr unsigned kAllLanes = 0xffffffffu;

struct FillParams {
  RouteTable table;
  SlotShape shape;
  const SlotGuard* guard;
  const int32_t* ids;
  int64_t ids_stride;
  int32_t max_rows;
  const int32_t* num_rows;
  const uint4* x;
  std::byte* messages;
  int32_t* home;
};

struct GroupParams {
  SlotShape shape;
  SlotGuard* guard;
  const std::byte* messages;
  const int32_t* local_index;
  int32_t num_experts;
  int32_t num_local;
  int32_t* expert_offsets;
  int32_t* pair_row;
  int32_t* pair_out;
};

// The number of threads of the block before this one for which `flag` holds, and of all of them.
__device__ int CountBefore(bool flag, int* warp_counts, int* total) {
  const int lane = static_cast<int>(threadIdx.x) % kWarp;
  const int warp = static_cast<int>(threadIdx.x) / kWarp;
  const unsigned votes = __ballot_sync(kAllLanes, flag);
  if (lane == 0) warp_counts[warp] = __popc(votes);
  __syncthreads();
  int before = 0;
  *total = 0;
  for (int w = 0; w < kFillThreads / kWarp; ++w) {
    if (w < warp) before += warp_counts[w];
    *total += warp_counts[w];
  }
  __syncthreads();
  return before + __popc(votes & ((1u << lane) - 1));
}

// A block for each destination. First its threads take rows, kFillThreads at a time, and find
// places by counting; then all of them copy, 16 bytes a thread, row after row.
__global__ void __launch_bounds__(kFillThreads)
    FillSlotsKernel(const __grid_constant__ FillParams p) {
  __shared__ int warp_counts[kFillThreads / kWarp];
  extern __shared__ int32_t row_of_place[];  // [slot_rows]
  ptx::AwaitEarlierKernels();
  const auto rank = static_cast<int32_t>(blockIdx.x);
  std::byte* const message = p.messages + rank * p.shape.message_bytes();
  auto* const experts = reinterpret_cast<int32_t*>(message + sizeof(SlotHeader));
  const int32_t k = p.shape.k;
  const int32_t num_rows = *p.num_rows;
  if (rank == 0) {
    const int32_t first = num_rows * k + static_cast<int32_t>(threadIdx.x);
    for (int32_t i = first; i < p.max_rows * k; i += kFillThreads) p.home[i] = 0;
  }
  int count = 0;
  for (int32_t first = 0; first < num_rows; first += kFillThreads) {
    const int32_t row = first + static_cast<int32_t>(threadIdx.x);
    const int32_t* const ids = p.ids + row * p.ids_stride;
    const bool goes = row < num_rows && RouteGoesTo(p.table, ids, k, row, rank);
    int total = 0;
    const int place = count + CountBefore(goes, warp_counts, &total);
    if (goes) {
      row_of_place[place] = row;
      for (int32_t slot = 0; slot < k; ++slot) {
        const bool is_here = RouteDestination(p.table, ids[slot], row) == rank;
        experts[place * k + slot] = is_here ? ids[slot] : kNoExpert;
        if (is_here) p.home[row * k + slot] = RoutePlace(p.shape, rank, place, slot);
      }
    }
    count += total;
  }
  if (threadIdx.x == 0) {
    *reinterpret_cast<SlotHeader*>(message) = {.epoch = p.guard->fault == 0 ? p.guard->epoch : 0,
                                               .seq = p.guard->seq,
                                               .source = p.table.self,
                                               .count = count,
                                               .unused = 0};
  }
  __syncthreads();

  const auto words = static_cast<int64_t>(p.shape.row_bytes / sizeof(uint4));
  auto* const to = reinterpret_cast<uint4*>(message + p.shape.head_rows() * p.shape.row_bytes);
  for (int64_t i = threadIdx.x; i < count * words; i += kFillThreads) {
    to[i] = p.x[row_of_place[i / words] * words + i % words];
  }
}

// The local expert of every place, into locals [num_places]; the first rank with a fault, or
// num_ranks, into *fault.
__device__ void ReadMessages(const GroupParams& p, int16_t* locals, int* fault) {
  const int32_t num_pairs = p.shape.num_pairs();
  for (int32_t place = static_cast<int32_t>(threadIdx.x); place < p.shape.num_places();
       place += kGroupThreads) {
    const int32_t rank = place / num_pairs;
    const int32_t pair = place % num_pairs;
    const std::byte* const message = p.messages + rank * p.shape.message_bytes();
    const SlotHeader header = *reinterpret_cast<const SlotHeader*>(message);
    const bool is_expected = IsExpected(header, *p.guard, rank, p.shape);
    int32_t local = kNoExpert;
    if (is_expected && pair < header.count * p.shape.k) {
      const auto* const experts = reinterpret_cast<const int32_t*>(message + sizeof(SlotHeader));
      local = RouteLocal(experts[pair], p.local_index, p.num_experts);
    }
    if (!is_expected || local == kNotHeld) atomicMin(fault, rank);
    locals[place] = static_cast<int16_t>(local);
  }
}

// One block. Each warp takes local experts in turn and looks through all places for theirs, 32 at a
// time: once to count, and, when all offsets are known, once to write. At most 128 experts, and 64
// rows of 8 ranks, so 2,048 places.
__global__ void __launch_bounds__(kGroupThreads)
    GroupSlotsKernel(const __grid_constant__ GroupParams p) {
  extern __shared__ int16_t locals[];  // [num_places]
  __shared__ int fault;
  ptx::AwaitEarlierKernels();
  const int lane = static_cast<int>(threadIdx.x) % kWarp;
  const int warp = static_cast<int>(threadIdx.x) / kWarp;
  constexpr int kWarps = kGroupThreads / kWarp;
  const int32_t places = p.shape.num_places();
  if (threadIdx.x == 0) fault = p.shape.num_ranks;
  __syncthreads();
  ReadMessages(p, locals, &fault);
  __syncthreads();
  const auto is_of = [&](int32_t place, int32_t local) {
    return place < places && locals[place] == local;
  };
  for (int32_t local = warp; local < p.num_local; local += kWarps) {
    int32_t count = 0;
    for (int32_t first = 0; first < places; first += kWarp) {
      count += __popc(__ballot_sync(kAllLanes, is_of(first + lane, local)));
    }
    if (lane == 0) p.expert_offsets[local + 1] = count;
  }
  __syncthreads();
  if (threadIdx.x == 0) {
    p.expert_offsets[0] = 0;
    for (int32_t e = 0; e < p.num_local; ++e) p.expert_offsets[e + 1] += p.expert_offsets[e];
    if (fault < p.shape.num_ranks && p.guard->fault == 0) p.guard->fault = 1 + fault;
    ++p.guard->seq;
  }
  __syncthreads();
  for (int32_t local = warp; local < p.num_local; local += kWarps) {
    int32_t next = p.expert_offsets[local];
    for (int32_t first = 0; first < places; first += kWarp) {
      const int32_t place = first + lane;
      const bool is_ours = is_of(place, local);
      const unsigned votes = __ballot_sync(kAllLanes, is_ours);
      if (is_ours) {
        const int32_t at = next + __popc(votes & ((1u << lane) - 1));
        p.pair_row[at] = RouteRow(p.shape, place);
        p.pair_out[at] = place;
      }
      next += __popc(votes);
    }
  }
}

}  // namespace

void Device::FillSlots(const FillSlotsArgs& args) {
  const SlotShape& shape = args.shape;
  KERNEL_CHECK(args.ids.rows <= shape.slot_rows && shape.row_bytes % sizeof(uint4) == 0);
  Launch(FillSlotsKernel,
         dim3(static_cast<unsigned>(shape.num_ranks)),
         kFillThreads,
         static_cast<size_t>(shape.slot_rows) * sizeof(int32_t),
         FillParams{.table = args.table,
                    .shape = shape,
                    .guard = args.guard,
                    .ids = args.ids.row<const int32_t>(0),
                    .ids_stride = args.ids.stride,
                    .max_rows = static_cast<int32_t>(args.ids.rows),
                    .num_rows = args.num_rows,
                    .x = args.x.row<const uint4>(0),
                    .messages = args.messages.row<std::byte>(0),
                    .home = args.home});
}

void Device::GroupSlots(const GroupSlotsArgs& args) {
  Launch(GroupSlotsKernel,
         dim3(1),
         kGroupThreads,
         static_cast<size_t>(args.shape.num_places()) * sizeof(int16_t),
         GroupParams{.shape = args.shape,
                     .guard = args.guard,
                     .messages = args.messages.row<const std::byte>(0),
                     .local_index = args.local_index.data,
                     .num_experts = static_cast<int32_t>(args.local_index.size),
                     .num_local = args.num_local,
                     .expert_offsets = args.expert_offsets,
                     .pair_row = args.pair_row,
                     .pair_out = args.pair_out});
}

}  // namespace shoal::cuda
