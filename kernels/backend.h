// The instruction set of a device: every operation of the model, its shapes and its contract.
//
// One class per device kind: CpuBackend (kernels/cpu, the specification) and CudaBackend
// (kernels/cuda).
// Operations are queued in order on one stream; their results are visible to the host only after
// Read() or Synchronize(). On the CPU they complete before they return.
//
// Threads: one thread uses a backend at a time (the worker's step thread; the loader before that).
//
// Bits: a row's result never depends on the other rows of a call, on the number of threads or on
// the instruction set. Each op names the order of its sums. "Lanes": lane j of 16 takes the
// elements k with k mod 16 = j in rising k, by fma, starting from +0; then the lanes are added as a
// tree: l[i] + l[i+8], then [i] + [i+4], [i] + [i+2], [i] + [i+1]. Unless said otherwise arithmetic
// is fp32 and a bf16 result is rounded once, to nearest even.
//
// Formulas: (E1) to (E17) of docs/numerics.md, after the gpt-oss reference implementation.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <span>
#include <stdexcept>
#include <string>
#include <string_view>
#include <vector>

#include "kernels/route_math.h"
#include "kernels/synthetic.h"
#include "kernels/tensor.h"

namespace shoal {

// Positions per K/V block, and per tile of attention's softmax. Part of the numerics version.
inline constexpr int kBlockTokens = 32;

// Elements that share one MXFP4 scale (OCP MX specification 1.0).
inline constexpr int kMxBlock = 32;

// Grows whenever the bits of a result may change for the same request.
inline constexpr int kNumericsVersion = 2;

// (E1) out[r] = table[ids[r]].  table [vocab, hidden] bf16; out [rows, hidden] f32.
struct EmbedArgs {
  IndexView ids;  // [rows], each in [0, vocab)
  TensorView table;
  TensorView out;
};

// (E2) If `add` is given: x = x + add, in place. Then
// out = bf16(x * (1 / sqrt(mean(x^2) + eps)) * gain). IEEE sqrt and division. Sum of squares:
// lanes.
struct RmsNormArgs {
  TensorView x;       // [rows, hidden] f32, the residual stream; written if `add` is given
  TensorView add;     // [rows, hidden] bf16, or empty
  const float* gain;  // [hidden]
  TensorView out;     // [rows, hidden] bf16; must not alias x
  float eps;
};

// out = x * weight^T + bias. Products of bf16 are exact in fp32; sum over `in`: lanes; then + bias
// in fp32; one rounding if out is bf16.
struct LinearArgs {
  TensorView x;       // [rows, in] bf16
  TensorView weight;  // [out, in] bf16, row-major as in the checkpoint
  const float* bias;  // [out], or null
  TensorView out;     // [rows, out] bf16 or f32
};

// One layer's K/V of one rank: [num_blocks, 2 (k, v), num_kv_heads, kBlockTokens, head_dim] bf16.
// k is stored after rotation.
struct KvLayer {
  void* data = nullptr;
  int64_t num_blocks = 0;
  int num_kv_heads = 0;
  int head_dim = 0;

  int64_t block_bytes() const { return int64_t{2} * num_kv_heads * kBlockTokens * head_dim * 2; }
};

// (E4) Rotates q and k of each row in place, half-split pairs a = x[i], b = x[i + head_dim/2]:
// a' = bf16(fma(a, cos, -(b * sin))), b' = bf16(fma(b, cos, a * sin)); then writes k and v of row r
// to position slots[r] % kBlockTokens of block slots[r] / kBlockTokens, or nowhere if that is -1.
struct RopeAndAppendArgs {
  TensorView qkv;       // [rows, (num_heads + 2 * num_kv_heads) * head_dim] bf16, q then k then v
  const float* rope;    // [num_positions, head_dim / 2, 2 (cos, sin)], YaRN's factor m included
  IndexView positions;  // [rows]
  IndexView slots;      // [rows], block * kBlockTokens + offset, distinct; or -1
  int num_heads = 0;
  KvLayer kv;
};

// Consecutive rows of one sequence, or none, which asks for nothing: rows [first_row, first_row +
// num_rows) are its positions [first_position, first_position + num_rows). Their K/V has been
// appended. Position p lies in block tables[table_offset + p / kBlockTokens]; entries for blocks
// wholly outside every row's window are never read and may hold anything.
struct AttentionEntry {
  int32_t first_row = 0;
  int32_t num_rows = 0;
  int32_t first_position = 0;
  int32_t table_offset = 0;
};

// (E6)-(E8) Causal grouped-query attention with sinks: query head h reads K/V head
// h / (num_heads / num_kv_heads). Position p sees j with p - window < j <= p; a position outside
// contributes nothing and its memory is not used. Scores s_j = (q . k_j) * (1 / sqrt(head_dim)),
// the product by lanes. Softmax runs over tiles of kBlockTokens absolute positions [32 t, 32 t +
// 32) in rising t, from m = sink, l = 1 (the sink's own share) and o = 0. A tile makes
//
//     m' = the largest of m and s_j,  c = exp(m - m'),  p_j = exp(s_j - m')
//     l = fma(l, c, sum of p_j by lanes)
//     o = o * c, then for rising j: o = fma(p_j, v_j, o)
//
// and at the end out = bf16(o / l).
struct AttentionArgs {
  std::span<const AttentionEntry> entries;  // In device memory
  IndexView tables;
  TensorView q;  // [rows, >= num_heads * head_dim] bf16: the first columns of qkv
  KvLayer kv;
  int num_heads = 0;
  int32_t window = 0;  // 0: unlimited
  const float* sinks;  // [num_heads]
  TensorView out;      // [rows, num_heads * head_dim] bf16
  // Bounds of what the entries hold, for a device whose host cannot look at them: the most rows of
  // one, and one more than the last position of any. They share out the work and change no bit.
  // 0: unknown, which only the CPU backend takes.
  int32_t max_entry_rows = 0;
  int32_t max_positions = 0;
};

// (E10)-(E11) The k largest scores, falling, equal ones by lower id; shares = softmax over those k,
// with the maximum subtracted, summed in slot order.
struct SelectExpertsArgs {
  TensorView scores;  // [rows, num_experts] f32
  TensorView ids;     // [rows, k] i32
  TensorView shares;  // [rows, k] f32
};

// For a cell of one rank, whose rows are where their experts are: pair p = row * k + slot belongs
// to local expert local_index[ids[row][slot]]. Sorts the pairs by local expert, p rising within
// one: what ExpertMlp takes. REQUIRES: every chosen expert is held.
struct GroupByExpertArgs {
  TensorView ids;                // [rows, k] i32
  IndexView local_index;         // [num_experts]
  int32_t num_local = 0;         // Local experts
  int32_t* expert_offsets = {};  // [num_local + 1], written
  int32_t* pair_row = {};        // [rows * k], written: p / k
  int32_t* pair_out = {};        // [rows * k], written: p
};

// For a cell of several ranks, a dispatch that the host does not plan: each row goes into the
// message to every rank that computes one of its experts, by rank, then row (route_math.h has the
// layout and the integers). The messages' headers are written from `guard`. Of `rows` the first
// *num_rows exist; the others go nowhere, and their home is place 0.
struct FillSlotsArgs {
  TensorView ids;  // [rows, k] i32; rows at most slot_rows
  TensorView x;    // [rows, hidden] bf16, dense
  RouteTable table;
  SlotShape shape;
  const int32_t* num_rows = nullptr;  // In device memory: a step that is repeated may have others
  const SlotGuard* guard = nullptr;
  TensorView messages;  // [num_ranks * message_rows, hidden] bf16, dense; written
  int32_t* home = {};   // [rows * k], written: the place of each (row, slot) in what comes home
};

// The other end: sorts the pairs of the messages that arrived by local expert, places rising within
// one: what ExpertMlp takes. The host does not learn how many there are. A message that is not of
// this round, or names an expert that is not held, becomes guard->fault, and nothing is computed
// for it. Counts the round in guard->seq.
struct GroupSlotsArgs {
  TensorView messages;    // [num_ranks * message_rows, hidden] bf16, dense
  IndexView local_index;  // [num_experts], -1: not held
  SlotShape shape;
  int32_t num_local = 0;
  SlotGuard* guard = nullptr;
  int32_t* expert_offsets = {};  // [num_local + 1], written
  int32_t* pair_row = {};        // [num_places], written up to the last offset: row of `messages`
  int32_t* pair_out = {};        // [num_places], likewise: place of the result
};

// out[i] = x[index[i]].
struct PickRowsArgs {
  TensorView x;     // [any, cols] bf16 or f32
  IndexView index;  // [n]
  TensorView out;   // [n, cols], as x
};

// (E16) x[r] = x[r] + sum over slots s = 0, 1, ... of shares[r][s] * rows[r * k + s], one fma each.
// Nothing is rounded to bf16: the residual stream of all layers is fp32 (ADR 0015).
struct SumSlotsArgs {
  TensorView rows;    // [n * k, hidden] bf16
  TensorView shares;  // [n, k] f32
  TensorView x;       // [n, hidden] f32, updated
};

enum class ExpertFormat : uint8_t { kMxfp4, kBf16 };

// One projection of all experts that this rank holds in one layer, in the backend's own layout,
// made by Repack(). Local expert e begins at data + e * PackedBytes(format, out, in).
struct PackedMatrix {
  ExpertFormat format = ExpertFormat::kMxfp4;
  int64_t out = 0;
  int64_t in = 0;
  std::vector<const std::byte*> experts;  // [local experts]; each PackedBytes() long
};

// (E12)-(E15) For pair i: out[pair_out[i]] = W2 h + b2 with h = SwiGLU(W1 x[pair_row[i]] + b1), by
// the local expert e with expert_offsets[e] <= i < expert_offsets[e + 1]. W1's rows alternate gate,
// up.
//   a = min(gate, limit); b = clamp(up, -limit, limit); h = a / (1 + exp(-alpha * a)) * (b + 1)
// MXFP4: the rows (x, then bf16-rounded h) become 16-bit integers per block of 32 elements, with
// the smallest power-of-two scale that keeps |q| <= 32,639, q = 256 hi + lo; a block's product with
// the doubled E2M1 codes is exact; blocks are summed in fp32 in rising order; bias in fp32 at the
// end. BF16: as Linear. Output bf16.
//
// Pairs are as many as the last offset says, which a device's host need not know: pair_row and
// pair_out have room for at least so many. Rows of `x` and `out` that no pair names are not
// touched.
struct ExpertMlpArgs {
  TensorView x;                                // [any, hidden] bf16
  std::span<const int32_t> expert_offsets;     // [local experts + 1], rising; in device memory
  IndexView pair_row;                          // [at least pairs]
  IndexView pair_out;                          // [at least pairs], distinct rows of `out`
  const PackedMatrix* gate_up;                 // out = 2 * intermediate, in = hidden
  std::span<const float* const> gate_up_bias;  // [local experts] -> [2 * intermediate]
  const PackedMatrix* down;                    // out = hidden, in = intermediate
  std::span<const float* const> down_bias;     // [local experts] -> [hidden]
  float alpha = 1.702f;
  float limit = 7.0f;
  TensorView out;  // [any, hidden] bf16
  // About how many pairs there will be, where pair_row has room for many more. It shares out the
  // work and changes no bit. 0: as many as pair_row has room for.
  int64_t usual_pairs = 0;
};

// Checkpoint layout -> kernel layout, at load, one expert's matrix at a time.
struct RepackArgs {
  enum class Source : uint8_t { kHost, kDevice };

  ExpertFormat format = ExpertFormat::kMxfp4;
  int64_t out = 0;
  int64_t in = 0;
  const std::byte* codes =
      nullptr;  // MXFP4: [out, in / 32, 16] bytes. BF16: [in, out] bf16 (transposed)
  const uint8_t* scales = nullptr;  // MXFP4: [out, in / 32] E8M0; none is 255
  std::byte* packed = nullptr;      // PackedBytes(format, out, in)
  Source source = Source::kHost;    // Whose memory codes and scales lie in
};

// Elements [first, first + count) of a synthetic tensor. out: kU8 for codes and scales, kBf16 or
// kF32 for numbers and gains.
struct SynthesizeArgs {
  SyntheticFormula formula;
  int64_t first = 0;
  int64_t count = 0;
  DType dtype = DType::kU8;
  void* out = nullptr;
};

// What one sampled token depends on, besides its logits. Host memory, valid during the call.
// Order: forbidden, allowed -> bias -> repetition, frequency, presence -> temperature -> min_p ->
// top_k -> top_p -> draw. Sorted by logit falling, then id rising. A token with logit -inf or NaN
// is never drawn, nor is one less than 2^-40 times as likely as the likeliest. Sums of
// probabilities are exact, see cpu/sample.cc.
struct SampleRow {
  float temperature = 1.0f;  // Below 1e-5: the largest logit, ties by lower id.
  float top_p = 1.0f;
  float min_p = 0.0f;
  int32_t top_k = 0;  // 0: off
  float presence_penalty = 0.0f;
  float frequency_penalty = 0.0f;
  float repetition_penalty = 1.0f;
  int32_t penalty_exempt_from = 0x7fffffff;  // Ids from here on (special tokens) take no penalty.
  uint64_t seed = 0;
  int32_t position = 0;  // Of the token to be sampled; the random number is f(seed, position).

  struct Count {
    int32_t id;
    int32_t count;
  };

  struct Bias {
    int32_t id;
    float value;
  };

  std::span<const Count> output_counts;  // Of the generated ids, rising id
  std::span<const int32_t> prompt_ids;   // Distinct, rising; for repetition_penalty
  std::span<const Bias> bias;
  std::span<const int32_t> forbidden;
  std::span<const uint32_t> allowed;  // Bit i % 32 of word i / 32; empty: all
  int32_t num_top_logprobs = -1;      // -1: no logprobs; 0: the sampled token's only
};

struct SampledLogprob {
  int32_t id = 0;
  float logprob = 0.0f;  // log-softmax of the unmodified logits, natural logarithm
};

struct SampleResult {
  int32_t id = -1;  // -1: every logit was NaN or -inf
  float logprob = 0.0f;
  std::vector<SampledLogprob> top;  // Falling
};

struct SampleArgs {
  TensorView logits;                // [n, vocab] f32
  std::span<const SampleRow> rows;  // [n]
  std::span<SampleResult> results;  // [n], host memory; complete on return
};

// The device failed: what it computed since the last Read or Synchronize is lost, and so is the
// device for this process. The one exception of ours: operations return nothing, and the step that
// queued them must end where it waits. The step thread catches it (worker.cc).
class DeviceFault : public std::runtime_error {
 public:
  using std::runtime_error::runtime_error;
};

// A device. Errors of the device itself (CUDA) surface as DeviceFault from Read, Synchronize and
// Sample; the CPU backend has none. Shapes are our own business: a wrong one is a crash (see
// CheckedBackend).
class Backend {
 public:
  virtual ~Backend() = default;

  // "cpu-avx512", "cpu-avx2", "cpu-scalar", ...: for people. The numerics class is "cpu" for all of
  // them.
  virtual std::string_view name() const = 0;
  virtual std::string_view numerics_class() const = 0;

  // Memory of the device, zeroed, aligned to 64 bytes (huge pages for large sizes where there are
  // any); null if there is not enough. Freed with Free(), which holds back what kept steps may name
  // until they are forgotten.
  virtual void* Allocate(size_t bytes) = 0;
  virtual void Free(void* data, size_t bytes) = 0;
  // Host to device; device to host (waits for what was queued before).
  virtual void Write(void* device, const void* host, size_t bytes) = 0;
  virtual void Read(void* host, const void* device, size_t bytes) = 0;
  virtual void Synchronize() = 0;

  // Runs `ops`, which calls operations of this backend, or of others in its queue, and waits for
  // nothing. A backend may keep what they queued under `key` and queue that again without calling
  // `ops` (a CUDA graph). Whether a call runs, keeps or repeats depends on nothing but the keys of
  // the calls since ForgetReplays, so the ranks of a cell do the same. False: `ops` gave up and
  // returned false; nothing is kept. REQUIRES: calls with one key differ in nothing but what device
  // memory holds. A key of 0 is never kept.
  virtual bool Replay(uint64_t key, const std::function<bool()>& ops) {
    static_cast<void>(key);
    return ops();
  }

  virtual void ForgetReplays() {}

  // Bytes of one expert's matrix in this backend's layout; a multiple of 64.
  virtual int64_t PackedBytes(ExpertFormat format, int64_t out, int64_t in) const = 0;
  virtual void Repack(const RepackArgs& args) = 0;

  // Makes synthetic weights in the device's memory. False, and nothing done, where that is as well
  // left to the host (model/synthetic.h); an empty call asks.
  virtual bool Synthesize(const SynthesizeArgs& args) {
    static_cast<void>(args);
    return false;
  }

  // How many threads may read weights for it at a time. More than one where the processor's cores
  // have nothing else to do.
  virtual int num_readers() const { return 1; }

  // While a range of host memory is pinned, Write() and Repack() read it without a copy between.
  // For speed alone; the range must stay where it is. Thread-safe as Write().
  virtual void Pin(const void* host, size_t bytes) {
    static_cast<void>(host);
    static_cast<void>(bytes);
  }

  virtual void Unpin(const void* host) { static_cast<void>(host); }

  virtual void Embed(const EmbedArgs& args) = 0;
  virtual void RmsNorm(const RmsNormArgs& args) = 0;
  virtual void Linear(const LinearArgs& args) = 0;
  virtual void RopeAndAppend(const RopeAndAppendArgs& args) = 0;
  virtual void Attention(const AttentionArgs& args) = 0;
  virtual void SelectExperts(const SelectExpertsArgs& args) = 0;
  virtual void GroupByExpert(const GroupByExpertArgs& args) = 0;
  virtual void FillSlots(const FillSlotsArgs& args) = 0;
  virtual void GroupSlots(const GroupSlotsArgs& args) = 0;
  virtual void PickRows(const PickRowsArgs& args) = 0;
  virtual void SumSlots(const SumSlotsArgs& args) = 0;
  virtual void ExpertMlp(const ExpertMlpArgs& args) = 0;
  virtual void Sample(const SampleArgs& args) = 0;
};

}  // namespace shoal
