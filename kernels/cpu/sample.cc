// One token per row of logits. The order of the steps is SampleRow's; here is what makes the result
// a function of the row alone, and fast for 200,000 logits without sorting them.
//
// After bias, penalties and temperature let z_i be a token's logit and z the largest. Its weight is
//
//     w_i = floor(2^40 exp(z_i - z)),  exp in fp32
//
// an integer, so that sums of weights are exact and need no order. A token below 2^-40 of the
// likeliest is never drawn. min_p keeps exp(z_i - z) >= min_p; top_k the k first in sorted order;
// top_p the shortest sorted prefix whose weights reach ceil(top_p W), W the weights' sum. The draw
// takes the first token, in sorted order, at which the running sum exceeds floor(u W / 2^64), with
// u = RandomBits(seed, position).
//
// Prefixes are found by quickselect, in time linear in the tokens, and first among the heavy ones
// alone: those sort before all others, hold most of the weight and are few.
//
// logprob_i = float(x_i - max - ln(sum of exp(x_j - max))) of the unmodified logits; the sum by
// RowKernels::sum_exp, its logarithm in double.
#include <algorithm>
#include <cfloat>
#include <limits>
#include <span>
#include <utility>
#include <vector>

#include "kernels/cpu/backend.h"
#include "kernels/cpu/row_kernels.h"
#include "kernels/cpu/thread_pool.h"
#include "kernels/numeric.h"

namespace shoal {
namespace {

constexpr float kNever = -std::numeric_limits<float>::infinity();
constexpr float kGreedyBelow = 1e-5f;
constexpr float kWeightOfLikeliest = 0x1.0p40f;
constexpr float kHeavy = 0x1.0p-10f;  // exp(z_i - z) of a heavy token.

uint64_t Weight(float exp) {
  return static_cast<uint64_t>(exp * kWeightOfLikeliest);
}

struct Candidate {
  float logit;
  int32_t id;
  uint64_t weight;
};

// The sorted order: by logit falling, then by id rising.
bool Before(const Candidate& a, const Candidate& b) {
  return a.logit != b.logit ? a.logit > b.logit : a.id < b.id;
}

uint64_t TotalWeight(std::span<const Candidate> candidates) {
  uint64_t total =
      0;  // At most 2^31 tokens of 2^40: fits below 2^64 for any vocabulary below 2^24.
  for (const Candidate& candidate : candidates) total += candidate.weight;
  return total;
}

void Mask(const SampleRow& row, std::span<float> logits) {
  for (const int32_t id : row.forbidden) logits[static_cast<size_t>(id)] = kNever;
  if (row.allowed.empty()) return;
  for (size_t first = 0; first < logits.size(); first += 32) {
    const uint32_t refused = ~row.allowed[first / 32];
    if (refused == 0) continue;  // Most words, inside a string of JSON
    const size_t end = std::min(first + 32, logits.size());
    for (size_t i = first; i < end; ++i) {
      if (((refused >> (i - first)) & 1u) != 0) logits[i] = kNever;
    }
  }
}

void Penalise(const SampleRow& row, std::span<float> logits) {
  const auto repeat = [&](int32_t id) {
    float& logit = logits[static_cast<size_t>(id)];
    logit = logit > 0.0f ? logit / row.repetition_penalty : logit * row.repetition_penalty;
  };
  if (row.repetition_penalty != 1.0f) {
    for (const int32_t id : row.prompt_ids) {
      if (id < row.penalty_exempt_from) repeat(id);
    }
    for (const SampleRow::Count& output : row.output_counts) {
      if (output.count <= 0 || output.id >= row.penalty_exempt_from) continue;
      if (!std::ranges::binary_search(row.prompt_ids, output.id)) repeat(output.id);
    }
  }
  for (const SampleRow::Count& output : row.output_counts) {
    if (output.count <= 0 || output.id >= row.penalty_exempt_from) continue;
    const float penalty =
        row.frequency_penalty * static_cast<float>(output.count) + row.presence_penalty;
    logits[static_cast<size_t>(output.id)] -= penalty;
  }
}

// The row's logits up to temperature. NaN becomes -infinity; +infinity the largest float, so that
// differences stay numbers.
void Adjust(const SampleRow& row, const float* logits, std::span<float> adjusted) {
  for (size_t i = 0; i < adjusted.size(); ++i) {
    adjusted[i] = logits[i] == logits[i] ? logits[i] : kNever;
  }
  Mask(row, adjusted);
  for (const SampleRow::Bias& bias : row.bias) adjusted[static_cast<size_t>(bias.id)] += bias.value;
  Penalise(row, adjusted);
  if (row.temperature >= kGreedyBelow && row.temperature != 1.0f) {
    for (float& logit : adjusted) logit /= row.temperature;
  }
  for (float& logit : adjusted) logit = logit < FLT_MAX ? logit : FLT_MAX;
}

// Moves the shortest sorted prefix whose weights reach `need` to the front, its last token at its
// end, and returns its length. REQUIRES: 0 < need <= TotalWeight(candidates).
size_t PrefixReaching(std::span<Candidate> candidates, uint64_t need) {
  // Tokens before `begin` belong to the prefix and are already taken off `need`; those from `end`
  // on do not belong to it.
  size_t begin = 0;
  size_t end = candidates.size();
  const auto at = [&](size_t i) { return candidates.begin() + static_cast<ptrdiff_t>(i); };
  while (end - begin > 32) {
    const size_t middle = begin + (end - begin) / 2;
    std::nth_element(at(begin), at(middle), at(end), Before);
    const uint64_t weight = TotalWeight(candidates.subspan(begin, middle - begin));
    if (weight >= need) {
      end = middle;
    } else {
      need -= weight;
      begin = middle;
    }
  }
  std::sort(at(begin), at(end), Before);
  for (; begin + 1 < end && candidates[begin].weight < need; ++begin) {
    need -= candidates[begin].weight;
  }
  return begin + 1;
}

// What one row needs to work with, from a thread's scratch.
struct SampleWorkspace {
  std::span<float> logits;          // [vocab] z_i
  std::span<float> exps;            // [vocab] exp(z_i - z)
  std::span<Candidate> candidates;  // [vocab]

  static size_t Bytes(size_t vocab) { return vocab * (2 * sizeof(float) + sizeof(Candidate)); }

  SampleWorkspace(std::byte* memory, size_t vocab)
      : logits(reinterpret_cast<float*>(memory + vocab * sizeof(Candidate)), vocab),
        exps(logits.data() + vocab, vocab),
        candidates(reinterpret_cast<Candidate*>(memory), vocab) {}
};

// The tokens with exp(z_i - z) >= least, by id.
std::span<Candidate> Collect(const SampleWorkspace& work, float least) {
  size_t count = 0;
  for (size_t i = 0; i < work.exps.size(); ++i) {
    if (work.exps[i] < least) continue;
    work.candidates[count++] = {
        .logit = work.logits[i], .id = static_cast<int32_t>(i), .weight = Weight(work.exps[i])};
  }
  return work.candidates.first(count);
}

uint64_t CollectedWeight(const SampleWorkspace& work, float least) {
  uint64_t total = 0;
  for (const float exp : work.exps) total += exp >= least ? Weight(exp) : 0;
  return total;
}

// ceil(share * total), at least 1 and at most total.
uint64_t ShareOf(uint64_t total, float share) {
  const double exact = static_cast<double>(share) * static_cast<double>(total);
  const uint64_t floor = exact > 0.0 ? static_cast<uint64_t>(exact) : 0;
  const uint64_t ceil = floor + (static_cast<double>(floor) < exact ? 1 : 0);
  return std::clamp<uint64_t>(ceil, 1, total);
}

// A token by min_p, top_k, top_p and the row's random number. The likeliest one has exp = 1.
int32_t Draw(const SampleRow& row, const SampleWorkspace& work) {
  const float least = std::max(row.min_p, 1.0f / kWeightOfLikeliest);
  std::span<Candidate> tokens = Collect(work, std::max(least, kHeavy));
  uint64_t total = 0;
  if (row.top_k > 0) {
    const auto k = static_cast<size_t>(row.top_k);
    if (tokens.size() < k) tokens = Collect(work, least);
    if (tokens.size() > k) {
      std::nth_element(tokens.begin(), tokens.begin() + row.top_k, tokens.end(), Before);
      tokens = tokens.first(k);
    }
    total = TotalWeight(tokens);
  } else {
    total = CollectedWeight(work, least);
  }
  if (row.top_p < 1.0f) {
    const uint64_t need = ShareOf(total, row.top_p);
    if (TotalWeight(tokens) < need) tokens = Collect(work, least);
    tokens = tokens.first(PrefixReaching(tokens, need));
    total = TotalWeight(tokens);
  }
  __extension__ using Uint128 = unsigned __int128;
  const Uint128 product = Uint128{RandomBits(row.seed, row.position)} * total;
  const uint64_t need = static_cast<uint64_t>(product >> 64) + 1;
  if (TotalWeight(tokens) < need) tokens = Collect(work, least);
  return tokens[PrefixReaching(tokens, need) - 1].id;
}

int32_t SampleToken(const RowKernels& kernels,
                    const SampleRow& row,
                    const float* logits,
                    const SampleWorkspace& work) {
  Adjust(row, logits, work.logits);
  const auto vocab = static_cast<int64_t>(work.logits.size());
  const float max = kernels.max(work.logits.data(), vocab);
  if (max == kNever) return -1;
  if (row.temperature < kGreedyBelow) {
    return static_cast<int32_t>(std::ranges::find(work.logits, max) - work.logits.begin());
  }
  kernels.exp(work.logits.data(), vocab, max, work.exps.data());
  return Draw(row, work);
}

// The `count` largest logits in sorted order.
std::vector<SampledLogprob> LargestLogits(const float* logits, int64_t vocab, int32_t count) {
  std::vector<SampledLogprob> top;
  const size_t limit = static_cast<size_t>(std::min<int64_t>(count, vocab));
  if (limit == 0) return top;
  top.reserve(limit + 1);
  for (int64_t i = 0; i < vocab; ++i) {
    const float logit = logits[i];
    if (logit != logit || (top.size() == limit && !(logit > top.back().logprob))) continue;
    // Ids rise, so an equal one comes after those already there.
    const auto place =
        std::ranges::upper_bound(top, logit, std::ranges::greater{}, &SampledLogprob::logprob);
    top.insert(place, {.id = static_cast<int32_t>(i), .logprob = logit});
    if (top.size() > limit) top.pop_back();
  }
  return top;
}

void AddLogprobs(const RowKernels& kernels,
                 const SampleRow& row,
                 const float* logits,
                 int64_t vocab,
                 SampleResult* result) {
  const float max = kernels.max(logits, vocab);
  const double log_sum = Log(kernels.sum_exp(logits, vocab, max));
  const auto logprob = [&](float logit) {
    return static_cast<float>(static_cast<double>(logit) - static_cast<double>(max) - log_sum);
  };
  result->logprob = logprob(logits[result->id]);
  result->top = LargestLogits(logits, vocab, row.num_top_logprobs);
  for (SampledLogprob& entry : result->top) entry.logprob = logprob(entry.logprob);
}

}  // namespace

void CpuBackend::Sample(const SampleArgs& args) {
  const int64_t vocab = args.logits.cols;
  const size_t bytes = SampleWorkspace::Bytes(static_cast<size_t>(vocab));
  pool_->ParallelFor(args.logits.rows, /*grain=*/1, [&](int64_t begin, int64_t end, int thread) {
    const SampleWorkspace work(pool_->Scratch(thread, bytes), static_cast<size_t>(vocab));
    for (int64_t r = begin; r < end; ++r) {
      const SampleRow& row = args.rows[static_cast<size_t>(r)];
      const float* const logits = args.logits.row<float>(r);
      SampleResult result;
      result.id = SampleToken(*row_kernels_, row, logits, work);
      if (result.id >= 0 && row.num_top_logprobs >= 0) {
        AddLogprobs(*row_kernels_, row, logits, vocab, &result);
      }
      args.results[static_cast<size_t>(r)] = std::move(result);
    }
  });
}

}  // namespace shoal
