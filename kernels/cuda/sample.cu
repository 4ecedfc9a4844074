// One token per row of logits, by the rules of cpu/sample.cc and with its bits: the same steps in
// fp32 and fp64, sums of integer weights, which need no order, and the same lanes for logprobs.
//
// A thread block of 1,024 a row. The adjusted logits lie in scratch, 0.8 MB that stay in the L2.
// The heavy tokens (at least 2^-10 of the likeliest) are gathered, sorted in shared memory and
// summed: top_k, top_p and the draw are places in that list. Where the list does not hold the
// answer (the draw is in the tail, or more than 4,096 tokens are heavy) the place is found by
// bisection over (logit, id), one pass over the vocabulary each.
//
// Bound: a handful of passes over the row by one multiprocessor, about 8 us each; 64 passes in the
// tail. Time taken: not yet measured.
#include <algorithm>
#include <cfloat>
#include <cstring>
#include <vector>

#include "kernels/cuda/device.cuh"
#include "kernels/cuda/ptx.cuh"
#include "kernels/cuda/sampling.h"
#include "kernels/cuda/tuning.h"
#include "kernels/cuda/warp.cuh"
#include "kernels/numeric.h"

namespace shoal::cuda {
namespace {

constexpr int kThreads = 1024;
constexpr int kMaxHeavy = 4096;
constexpr int kHeavyPerThread = kMaxHeavy / kThreads;
constexpr int kSumChunk = 4096;  // As cpu/row_kernels.h
constexpr float kNever = -__builtin_inff();

// Words [begin, begin + size) of the settings.
struct List {
  int32_t begin;
  int32_t size;
};

struct RowSettings {
  float temperature, top_p, min_p;
  int32_t top_k;
  float presence_penalty, frequency_penalty, repetition_penalty;
  int32_t penalty_exempt_from;
  uint64_t seed;
  int32_t position;
  int32_t num_top;  // -1: no logprobs
  List counts;      // Pairs (id, count)
  List prompt;
  List bias;  // Pairs (id, value)
  List forbidden;
  List allowed;  // Words of bits
};

struct SampleParams {
  const float* logits;
  int64_t stride;
  int vocab;
  const RowSettings* rows;
  const int32_t* words;
  float* work;  // [rows, work_stride]: adjusted logits, then the lanes' sums
  int64_t work_stride;
  int32_t* results;  // [rows, result_words]: id, logprob, number of tops, then (id, logprob) pairs
  int result_words;
};

// f(i) summed over i < n by the whole thread block; exact, so the order is free.
template <typename F>
__device__ uint64_t BlockTotal(int n, const F& f) {
  __shared__ unsigned long long total;
  __syncthreads();
  if (threadIdx.x == 0) total = 0;
  __syncthreads();
  unsigned long long sum = 0;
  for (int i = static_cast<int>(threadIdx.x); i < n; i += kThreads) sum += f(i);
  for (int offset = 16; offset > 0; offset /= 2) sum += __shfl_xor_sync(kAllLanes, sum, offset);
  if (threadIdx.x % 32 == 0) atomicAdd(&total, sum);
  __syncthreads();
  return total;
}

template <typename F>
__device__ float MaxOver(int n, const F& f) {
  __shared__ float scratch[kThreads / 32];
  float max = kNever;
  for (int i = static_cast<int>(threadIdx.x); i < n; i += kThreads) {
    const float value = f(i);
    max = value > max ? value : max;
  }
  __syncthreads();
  return BlockMax<kThreads>(max, scratch);
}

// The first in the order of tokens among those after (last, last_id); id 0x7fffffff: none.
struct Best {
  float logit;
  int id;
};

__device__ Best FirstAfter(const float* logits, int n, float last, int last_id) {
  __shared__ float best_logit[kThreads / 32];
  __shared__ int best_ids[kThreads / 32];
  float best = kNever;
  int best_id = 0x7fffffff;
  for (int i = static_cast<int>(threadIdx.x); i < n; i += kThreads) {
    const float logit = logits[i];  // A NaN is before and after nothing.
    if (IsBefore(last, last_id, logit, i) && IsBefore(logit, i, best, best_id)) {
      best = logit;
      best_id = i;
    }
  }
  for (int offset = 16; offset > 0; offset /= 2) {
    const float other = __shfl_xor_sync(kAllLanes, best, offset);
    const int other_id = __shfl_xor_sync(kAllLanes, best_id, offset);
    if (IsBefore(other, other_id, best, best_id)) {
      best = other;
      best_id = other_id;
    }
  }
  __syncthreads();
  if (threadIdx.x % 32 == 0) {
    best_logit[threadIdx.x / 32] = best;
    best_ids[threadIdx.x / 32] = best_id;
  }
  __syncthreads();
  for (int w = 0; w < kThreads / 32; ++w) {
    if (IsBefore(best_logit[w], best_ids[w], best, best_id)) {
      best = best_logit[w];
      best_id = best_ids[w];
    }
  }
  return {best, best_id};
}

__device__ bool Holds(const int32_t* sorted, int size, int id) {
  int begin = 0;
  int end = size;
  while (begin < end) {
    const int middle = (begin + end) / 2;
    if (sorted[middle] < id) {
      begin = middle + 1;
    } else {
      end = middle;
    }
  }
  return begin < size && sorted[begin] == id;
}

__device__ void Penalise(const SampleParams& p, const RowSettings& row, float* z) {
  const auto thread = static_cast<int>(threadIdx.x);
  const int32_t* const counts = p.words + row.counts.begin;
  const int32_t* const prompt = p.words + row.prompt.begin;
  const auto repeat = [&](int id) {
    z[id] = z[id] > 0.0f ? z[id] / row.repetition_penalty : z[id] * row.repetition_penalty;
  };
  const auto is_exempt = [&](int i) {
    return counts[2 * i + 1] <= 0 || counts[2 * i] >= row.penalty_exempt_from;
  };
  if (row.repetition_penalty != 1.0f) {
    for (int i = thread; i < row.prompt.size; i += kThreads) {
      if (prompt[i] < row.penalty_exempt_from) repeat(prompt[i]);
    }
    for (int i = thread; i < row.counts.size / 2; i += kThreads) {
      if (is_exempt(i)) continue;
      if (!Holds(prompt, row.prompt.size, counts[2 * i])) repeat(counts[2 * i]);
    }
    __syncthreads();
  }
  for (int i = thread; i < row.counts.size / 2; i += kThreads) {
    if (is_exempt(i)) continue;
    const float penalty =
        row.frequency_penalty * static_cast<float>(counts[2 * i + 1]) + row.presence_penalty;
    z[counts[2 * i]] -= penalty;
  }
}

// The row's logits up to temperature.
__device__ void Adjust(const SampleParams& p, const RowSettings& row, const float* x, float* z) {
  const auto thread = static_cast<int>(threadIdx.x);
  const auto* const allowed = reinterpret_cast<const uint32_t*>(p.words + row.allowed.begin);
  for (int i = thread; i < p.vocab; i += kThreads) {
    const bool is_allowed = row.allowed.size == 0 || (allowed[i / 32] >> (i % 32) & 1u) != 0;
    z[i] = is_allowed && x[i] == x[i] ? x[i] : kNever;
  }
  __syncthreads();
  for (int i = thread; i < row.forbidden.size; i += kThreads) {
    z[p.words[row.forbidden.begin + i]] = kNever;
  }
  __syncthreads();
  // An id may be named twice: its first mention adds all, in order.
  const int32_t* const bias = p.words + row.bias.begin;
  for (int i = thread; i < row.bias.size / 2; i += kThreads) {
    const int id = bias[2 * i];
    bool is_first = true;
    for (int j = 0; j < i && is_first; ++j) is_first = bias[2 * j] != id;
    if (!is_first) continue;
    for (int j = i; j < row.bias.size / 2; ++j) {
      if (bias[2 * j] == id) z[id] += __int_as_float(bias[2 * j + 1]);
    }
  }
  __syncthreads();
  Penalise(p, row, z);
  __syncthreads();
  const bool is_scaled = row.temperature >= kGreedyBelow && row.temperature != 1.0f;
  for (int i = thread; i < p.vocab; i += kThreads) {
    const float value = is_scaled ? z[i] / row.temperature : z[i];
    z[i] = value < FLT_MAX ? value : FLT_MAX;
  }
  __syncthreads();
}

// What a draw looks at: tokens with exp(z_i - max) >= least.
struct Tokens {
  const float* z;
  int vocab;
  float max;
  float least;

  // 0 for a token that is never drawn.
  __device__ uint64_t WeightOf(float logit) const {
    const float exp = Exp(logit - max);
    return exp >= least ? TokenWeight(exp) : 0;
  }
};

// The sort key at which the sum of measures, over tokens no later than `cut`, reaches `need`; the
// keys' own order makes it the last token of the shortest such prefix. A bit at a time.
template <typename Measure>
__device__ uint64_t
PrefixEnd(const Tokens& t, uint64_t cut, uint64_t need, const Measure& measure) {
  uint64_t end = 0;
  for (int bit = 63; bit >= 0; --bit) {
    const uint64_t candidate = end | uint64_t{1} << bit;
    const uint64_t sum = BlockTotal(t.vocab, [&](int i) -> uint64_t {
      const uint64_t key = SortKey(t.z[i], static_cast<uint32_t>(i));
      return key >= candidate && key >= cut ? measure(t.z[i]) : 0;
    });
    if (sum >= need) end = candidate;
  }
  return end;
}

// By passes over the whole vocabulary.
__device__ int DrawSlowly(const RowSettings& row, const Tokens& t) {
  const auto weight = [&](float logit) { return t.WeightOf(logit); };
  const auto total_from = [&](uint64_t cut) {
    return BlockTotal(t.vocab, [&](int i) -> uint64_t {
      return SortKey(t.z[i], static_cast<uint32_t>(i)) >= cut ? t.WeightOf(t.z[i]) : 0;
    });
  };
  uint64_t cut = 0;
  if (row.top_k > 0) {
    const auto one = [&](float logit) -> uint64_t { return t.WeightOf(logit) > 0 ? 1 : 0; };
    const uint64_t count = BlockTotal(t.vocab, [&](int i) { return one(t.z[i]); });
    const auto k = static_cast<uint64_t>(row.top_k);
    if (count > k) cut = PrefixEnd(t, cut, k, one);
  }
  uint64_t total = total_from(cut);
  if (row.top_p < 1.0f) {
    cut = PrefixEnd(t, cut, ShareOfWeight(total, row.top_p), weight);
    total = total_from(cut);
  }
  const uint64_t need = __umul64hi(RandomBits(row.seed, row.position), total) + 1;
  return static_cast<int>(IdOfSortKey(PrefixEnd(t, cut, need, weight)));
}

// The heavy tokens in order, with their running sums.
struct HeavyTokens {
  unsigned long long keys[kMaxHeavy];
  unsigned long long warp_sums[kThreads / 32];
  int count;
  int found;
};

// Falling; the places beyond `count` are 0 and stay behind.
__device__ void SortFalling(unsigned long long* keys, int size) {
  for (int width = 2; width <= size; width *= 2) {
    for (int step = width / 2; step > 0; step /= 2) {
      __syncthreads();
      for (int i = static_cast<int>(threadIdx.x); i < size; i += kThreads) {
        const int other = i ^ step;
        if (other <= i) continue;
        const bool falls = (i & width) == 0;
        const unsigned long long a = keys[i];
        const unsigned long long b = keys[other];
        if ((a < b) == falls && a != b) {
          keys[i] = b;
          keys[other] = a;
        }
      }
    }
  }
  __syncthreads();
}

// Running sums of the thread's kHeavyPerThread tokens, those before included.
__device__ void SumHeavy(const Tokens& t,
                         HeavyTokens* heavy,
                         unsigned long long (&sums)[kHeavyPerThread]) {
  const auto thread = static_cast<int>(threadIdx.x);
  unsigned long long own = 0;
  for (int i = 0; i < kHeavyPerThread; ++i) {
    const int at = thread * kHeavyPerThread + i;
    own += at < heavy->count ? t.WeightOf(LogitOfSortKey(heavy->keys[at])) : 0;
    sums[i] = own;
  }
  unsigned long long before = own;  // Of the lanes up to this one
  for (int offset = 1; offset < 32; offset *= 2) {
    const unsigned long long other = __shfl_up_sync(kAllLanes, before, offset);
    if (thread % 32 >= offset) before += other;
  }
  if (thread % 32 == 31) heavy->warp_sums[thread / 32] = before;
  __syncthreads();
  before -= own;
  for (int w = 0; w < thread / 32; ++w) before += heavy->warp_sums[w];
  for (unsigned long long& sum : sums) sum += before;
}

// Of the sorted list: the first place whose running sum reaches `need`, or -1; and the sum there.
struct Place {
  int index;
  uint64_t sum;
};

__device__ Place PlaceReaching(HeavyTokens* heavy,
                               const unsigned long long (&sums)[kHeavyPerThread],
                               int size,
                               uint64_t need) {
  __shared__ unsigned long long at;
  const int first = static_cast<int>(threadIdx.x) * kHeavyPerThread;
  __syncthreads();
  if (threadIdx.x == 0) heavy->found = 0x7fffffff;
  __syncthreads();
  for (int i = kHeavyPerThread - 1; i >= 0; --i) {
    if (first + i < size && sums[i] >= need) atomicMin(&heavy->found, first + i);
  }
  __syncthreads();
  const int found = heavy->found;
  if (found == 0x7fffffff) return {-1, 0};
  if (found / kHeavyPerThread == static_cast<int>(threadIdx.x)) at = sums[found % kHeavyPerThread];
  __syncthreads();
  return {found, at};
}

// -1: the list does not hold the answer.
__device__ int DrawHeavy(const RowSettings& row, const Tokens& t, HeavyTokens* heavy) {
  const float least = t.least > kHeavy ? t.least : kHeavy;
  const bool is_all = t.least >= kHeavy;
  __syncthreads();
  if (threadIdx.x == 0) heavy->count = 0;
  __syncthreads();
  for (int i = static_cast<int>(threadIdx.x); i < t.vocab; i += kThreads) {
    if (!(Exp(t.z[i] - t.max) >= least)) continue;
    const int at = atomicAdd(&heavy->count, 1);
    if (at < kMaxHeavy) heavy->keys[at] = SortKey(t.z[i], static_cast<uint32_t>(i));
  }
  __syncthreads();
  int size = heavy->count;
  if (size > kMaxHeavy) return -1;
  int padded = 2;
  while (padded < size) padded *= 2;
  for (int i = size + static_cast<int>(threadIdx.x); i < padded; i += kThreads) heavy->keys[i] = 0;
  SortFalling(heavy->keys, padded);
  unsigned long long sums[kHeavyPerThread];
  SumHeavy(t, heavy, sums);

  uint64_t total = 0;
  if (row.top_k > 0) {
    if (size < row.top_k && !is_all) return -1;
    size = min(size, row.top_k);
    total = BlockTotal(size, [&](int i) { return t.WeightOf(LogitOfSortKey(heavy->keys[i])); });
  } else {
    total = BlockTotal(t.vocab, [&](int i) { return t.WeightOf(t.z[i]); });
  }
  if (row.top_p < 1.0f) {
    const Place place = PlaceReaching(heavy, sums, size, ShareOfWeight(total, row.top_p));
    if (place.index < 0) return -1;
    size = place.index + 1;
    total = place.sum;
  }
  const uint64_t need = __umul64hi(RandomBits(row.seed, row.position), total) + 1;
  const Place place = PlaceReaching(heavy, sums, size, need);
  return place.index < 0 ? -1 : static_cast<int>(IdOfSortKey(heavy->keys[place.index]));
}

__device__ int Draw(const SampleParams& p, const RowSettings& row, float* z, HeavyTokens* heavy) {
  const float max = MaxOver(p.vocab, [&](int i) { return z[i]; });
  if (max == kNever) return -1;
  if (row.temperature < kGreedyBelow) {
    return FirstAfter(z, p.vocab, __builtin_inff(), -1).id;
  }
  constexpr float kNeverDrawn = 1.0f / kWeightOfLikeliest;
  const Tokens tokens{z, p.vocab, max, row.min_p > kNeverDrawn ? row.min_p : kNeverDrawn};
  const int id = DrawHeavy(row, tokens, heavy);
  return id >= 0 ? id : DrawSlowly(row, tokens);
}

// ln of the sum of exp(x_i - max), by the CPU's lanes: a thread a lane of a chunk of 4,096.
__device__ double LogSum(const float* x, int vocab, float max, float* lanes) {
  __shared__ double log_sum;
  const int num_chunks = (vocab + kSumChunk - 1) / kSumChunk;
  for (int l = static_cast<int>(threadIdx.x); l < 16 * num_chunks; l += kThreads) {
    const int end = min(vocab, (l / 16 + 1) * kSumChunk);
    float sum = 0.0f;
    for (int i = l / 16 * kSumChunk + l % 16; i < end; i += 16) {
      const float value = x[i] == x[i] ? x[i] : kNever;
      sum += Exp(value - max);
    }
    lanes[l] = sum;
  }
  __syncthreads();
  if (threadIdx.x == 0) {
    double total = 0.0;
    for (int c = 0; c < num_chunks; ++c) {
      const float* const l = lanes + 16 * c;
      float sum[8];
      for (int i = 0; i < 8; ++i) sum[i] = l[i] + l[i + 8];
      for (int i = 0; i < 4; ++i) sum[i] = sum[i] + sum[i + 4];
      total += static_cast<double>((sum[0] + sum[2]) + (sum[1] + sum[3]));
    }
    log_sum = Log(total);
  }
  __syncthreads();
  return log_sum;
}

__device__ void AddLogprobs(
    const SampleParams& p, const RowSettings& row, const float* x, float* lanes, int32_t* result) {
  const float max = MaxOver(p.vocab, [&](int i) { return x[i]; });  // A NaN is never larger.
  const double log_sum = LogSum(x, p.vocab, max, lanes);
  const auto logprob = [&](float logit) {
    return __float_as_int(
        static_cast<float>(static_cast<double>(logit) - static_cast<double>(max) - log_sum));
  };
  const bool writes = threadIdx.x == 0;
  if (writes) result[1] = logprob(x[result[0]]);
  Best last{__builtin_inff(), -1};
  int num = 0;
  for (; num < row.num_top; ++num) {
    last = FirstAfter(x, p.vocab, last.logit, last.id);
    if (last.id == 0x7fffffff) break;
    if (writes) {
      result[3 + 2 * num] = last.id;
      result[4 + 2 * num] = logprob(last.logit);
    }
  }
  if (writes) result[2] = num;
}

__global__ void __launch_bounds__(kThreads, 1)
    SampleKernel(const __grid_constant__ SampleParams p) {
  __shared__ HeavyTokens heavy;
  ptx::AwaitEarlierKernels();
  const RowSettings row = p.rows[blockIdx.x];
  const float* const x = p.logits + int64_t{blockIdx.x} * p.stride;
  float* const z = p.work + int64_t{blockIdx.x} * p.work_stride;
  int32_t* const result = p.results + int64_t{blockIdx.x} * p.result_words;
  Adjust(p, row, x, z);
  const int id = Draw(p, row, z, &heavy);
  if (threadIdx.x == 0) {
    result[0] = id;
    result[1] = 0;
    result[2] = 0;
  }
  __syncthreads();
  if (id >= 0 && row.num_top >= 0) AddLogprobs(p, row, x, z + p.vocab, result);
}

// The settings of all rows as one run of words: the rows, then their lists.
class Settings {
 public:
  explicit Settings(std::span<const SampleRow> rows) {
    words_.resize(rows.size() * sizeof(RowSettings) / sizeof(int32_t));
    for (size_t i = 0; i < rows.size(); ++i) Add(rows[i], i);
  }

  const std::vector<int32_t>& words() const { return words_; }

 private:
  template <typename T>
  List Append(std::span<const T> values) {
    static_assert(sizeof(T) % sizeof(int32_t) == 0);
    const List list{static_cast<int32_t>(words_.size()),
                    static_cast<int32_t>(values.size_bytes() / sizeof(int32_t))};
    words_.resize(words_.size() + static_cast<size_t>(list.size));
    if (list.size > 0) {
      std::memcpy(words_.data() + list.begin, values.data(), values.size_bytes());
    }
    return list;
  }

  void Add(const SampleRow& row, size_t index) {
    const RowSettings settings{.temperature = row.temperature,
                               .top_p = row.top_p,
                               .min_p = row.min_p,
                               .top_k = row.top_k,
                               .presence_penalty = row.presence_penalty,
                               .frequency_penalty = row.frequency_penalty,
                               .repetition_penalty = row.repetition_penalty,
                               .penalty_exempt_from = row.penalty_exempt_from,
                               .seed = row.seed,
                               .position = row.position,
                               .num_top = row.num_top_logprobs,
                               .counts = Append(row.output_counts),
                               .prompt = Append(row.prompt_ids),
                               .bias = Append(row.bias),
                               .forbidden = Append(row.forbidden),
                               .allowed = Append(row.allowed)};
    std::memcpy(
        words_.data() + index * sizeof(settings) / sizeof(int32_t), &settings, sizeof(settings));
  }

  std::vector<int32_t> words_;
};

}  // namespace

void Device::Sample(const SampleArgs& args) {
  const auto rows = static_cast<size_t>(args.logits.rows);
  if (rows == 0) return;
  const auto vocab = static_cast<int>(args.logits.cols);
  int num_top = 0;
  for (const SampleRow& row : args.rows) num_top = std::max(num_top, row.num_top_logprobs);
  num_top = std::min(num_top, vocab);
  const int result_words = 3 + 2 * num_top;
  const Settings settings(args.rows);
  const size_t setting_words = (settings.words().size() + 63) / 64 * 64;
  auto* const words = static_cast<int32_t*>(
      ScratchOf(ScratchFor::kSettings,
                (setting_words + rows * static_cast<size_t>(result_words)) * sizeof(int32_t)));
  const int64_t work_stride = vocab + 16 * CeilDiv(vocab, kSumChunk);
  auto* const work = static_cast<float*>(
      ScratchOf(ScratchFor::kLogits, rows * static_cast<size_t>(work_stride) * sizeof(float)));
  if (words == nullptr || work == nullptr) return Synchronize();  // Throws.
  Write(words, settings.words().data(), settings.words().size() * sizeof(int32_t));
  int32_t* const results = words + setting_words;
  Launch(SampleKernel,
         dim3(static_cast<unsigned>(rows)),
         kThreads,
         0,
         SampleParams{.logits = args.logits.row<const float>(0),
                      .stride = args.logits.stride,
                      .vocab = vocab,
                      .rows = reinterpret_cast<const RowSettings*>(words),
                      .words = words,
                      .work = work,
                      .work_stride = work_stride,
                      .results = results,
                      .result_words = result_words});
  std::vector<int32_t> read(rows * static_cast<size_t>(result_words));
  Read(read.data(), results, read.size() * sizeof(int32_t));
  for (size_t r = 0; r < rows; ++r) {
    const int32_t* const from = read.data() + r * static_cast<size_t>(result_words);
    SampleResult result{.id = from[0], .logprob = std::bit_cast<float>(from[1]), .top = {}};
    for (int i = 0; i < from[2]; ++i) {
      result.top.push_back(
          {.id = from[3 + 2 * i], .logprob = std::bit_cast<float>(from[4 + 2 * i])});
    }
    args.results[r] = std::move(result);
  }
}

}  // namespace shoal::cuda
