#include "cli/bench.h"

#include <algorithm>
#include <cstdio>
#include <memory>
#include <numeric>
#include <string>
#include <thread>
#include <vector>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_split.h"
#include "absl/synchronization/mutex.h"
#include "absl/time/clock.h"
#include "cli/client.h"
#include "cli/local_fleet.h"
#include "cli/options.h"
#include "cli/signals.h"
#include "nlohmann/json.hpp"

#include "base/prng.h"
#include "base/status_macros.h"
#include "kernels/cpu/ceiling.h"

namespace shoal {
namespace {

struct BenchOptions {
  ClusterOptions cluster;
  std::string workers = "1,4";
  int prompt = 512;
  int decode = 48;
  int batch = 16;
  int batch_decode = 24;
  int repeats = 3;
  int rounds = 1;
  bool json = false;
};

// What the model asks of the machine, by arithmetic on its geometry.
struct Work {
  double bytes_per_token =
      0;  // Weights that one decoded token touches, as stored in the checkpoint
  double products_per_token =
      0;  // Multiply-adds of one prefilled token, twice: hi and lo of every weight
};

Work WorkOf(const ModelConfig& c) {
  const double hidden = c.hidden;
  const double attention = 2.0 * hidden * c.q_cols() + 2.0 * hidden * c.num_kv_heads * c.head_dim;
  const double router = hidden * c.num_experts;
  const double expert = 3.0 * hidden * c.intermediate;
  const double expert_biases = 2.0 * (2.0 * c.intermediate + hidden);
  // MXFP4: 17 bytes for 32 weights. Everything else is bf16.
  const double expert_bytes =
      expert * (c.storage == ExpertStorage::kMxfp4 ? 17.0 / 32.0 : 2.0) + expert_biases;
  const double small = 2.0 * (c.qkv_rows() + 3.0 * hidden + c.num_heads + c.num_experts);
  const double layer_bytes =
      2.0 * (attention + router) + small + c.experts_per_token * expert_bytes;
  Work work;
  work.bytes_per_token = c.num_layers * layer_bytes + 2.0 * hidden * c.vocab + 4.0 * hidden;
  work.products_per_token =
      2.0 * c.num_layers * (attention + router + c.experts_per_token * expert);
  return work;
}

// When each token of one stream arrived.
struct Arrivals {
  std::vector<absl::Time> tokens;
  absl::Duration prefill;  // First step to first token, by the server
};

absl::StatusOr<Arrivals> RunStream(
    const Client& client, const ModelConfig& config, uint64_t seed, int prompt, int tokens) {
  v1::GenerateRequest request;
  Prng prng(seed);
  for (int i = 0; i < prompt; ++i) {
    request.mutable_tokens()->add_ids(
        static_cast<uint32_t>(prng.Below(static_cast<uint64_t>(config.vocab))));
  }
  request.mutable_sampling()->set_temperature(0);
  request.mutable_limits()->set_max_tokens(static_cast<uint32_t>(tokens));
  request.mutable_limits()->set_ignore_eos(true);
  Arrivals arrivals;
  RETURN_IF_ERROR(
      client.Generate(request, absl::InfiniteFuture(), [&](const v1::GenerateEvent& event) {
        const absl::Time now = absl::Now();
        if (event.has_chunk()) {
          for (int i = 0; i < event.chunk().token_ids_size(); ++i) arrivals.tokens.push_back(now);
        } else if (event.has_finished()) {
          const v1::Timings& timings = event.finished().timings();
          arrivals.prefill = absl::Microseconds(timings.first_token_us() - timings.queue_us());
        }
        return !WaitForTermination(absl::ZeroDuration());
      }));
  if (static_cast<int>(arrivals.tokens.size()) != tokens) {
    return absl::DataLossError(
        absl::StrCat("a stream of ", tokens, " tokens brought ", arrivals.tokens.size()));
  }
  return arrivals;
}

double Median(std::vector<double> values) {
  std::sort(values.begin(), values.end());
  return values.empty() ? 0 : values[values.size() / 2];
}

// Tokens per second of one stream: by the median gap between its tokens, or, if the model is so
// small that they mostly arrive together, by all of them.
absl::StatusOr<double> DecodeRate(const Client& client,
                                  const ModelConfig& config,
                                  const BenchOptions& o,
                                  uint64_t seed) {
  ASSIGN_OR_RETURN(const Arrivals arrivals, RunStream(client, config, seed, 8, o.decode));
  std::vector<double> gaps;
  for (size_t i = 1; i < arrivals.tokens.size(); ++i) {
    gaps.push_back(absl::ToDoubleSeconds(arrivals.tokens[i] - arrivals.tokens[i - 1]));
  }
  const double total = std::accumulate(gaps.begin(), gaps.end(), 0.0);
  if (total <= 0) return absl::FailedPreconditionError("--decode-tokens is too short to be timed");
  const double count = static_cast<double>(gaps.size());
  const double gap = Median(std::move(gaps));
  return gap > 0 ? 1.0 / gap : count / total;
}

absl::StatusOr<double> PrefillRate(const Client& client,
                                   const ModelConfig& config,
                                   const BenchOptions& o,
                                   uint64_t seed) {
  ASSIGN_OR_RETURN(const Arrivals arrivals, RunStream(client, config, seed, o.prompt, 1));
  return o.prompt / absl::ToDoubleSeconds(arrivals.prefill);
}

// Tokens per second of `batch` concurrent streams, while all of them are decoding.
absl::StatusOr<double> BatchRate(const Client& client,
                                 const ModelConfig& config,
                                 const BenchOptions& o) {
  std::vector<absl::StatusOr<Arrivals>> streams(static_cast<size_t>(o.batch));
  std::vector<std::thread> threads;
  for (size_t i = 0; i < streams.size(); ++i) {
    threads.emplace_back(
        [&, i] { streams[i] = RunStream(client, config, 1000 + i, 8, o.batch_decode); });
  }
  for (std::thread& thread : threads) thread.join();
  absl::Time begin = absl::InfinitePast();
  absl::Time end = absl::InfiniteFuture();
  for (const auto& stream : streams) {
    RETURN_IF_ERROR(stream.status());
    begin = std::max(begin, stream->tokens.front());
    end = std::min(end, stream->tokens.back());
  }
  int count = 0;
  for (const auto& stream : streams) {
    count += static_cast<int>(std::count_if(stream->tokens.begin(),
                                            stream->tokens.end(),
                                            [&](absl::Time t) { return t > begin && t <= end; }));
  }
  if (end <= begin)
    return absl::FailedPreconditionError(
        "--batch-decode is too short: the streams never ran together");
  return count / absl::ToDoubleSeconds(end - begin);
}

// What the machine can do at this moment. A neighbour may take half of it a minute later, so a
// ceiling is measured right before and right after the figure that it stands beside.
class Ceilings {
 public:
  explicit Ceilings(ClusterOptions cluster) {
    cluster.workers = 1;
    threads_ = ThreadsPerWorker(cluster);
    cpus_ = CpusOfWorker(cluster, 0);
  }

  int threads() const { return threads_; }

  double Bandwidth() const {  // Bytes per second
    return OnItsOwnThread([this] { return MeasureReadBandwidth(threads_, cpus_); });
  }

  double Products() const {  // Multiply-adds of 8-bit integers per second
    return OnItsOwnThread([this] { return MeasureIntDotRate(threads_, cpus_, BestCpuIsa()); });
  }

 private:
  // What measures is pinned, and whatever this thread starts would inherit that.
  template <typename Measurement>
  static double OnItsOwnThread(const Measurement& measure) {
    double rate = 0;
    std::thread([&] { rate = measure().best; }).join();
    return rate;
  }

  int threads_ = 0;
  std::vector<int> cpus_;
};

// A rate and what it takes of the machine.
struct Beside {
  double rate = 0;      // Tokens per second
  double ceiling = 0;   // Of the machine, per second
  double fraction = 0;  // Of the ceiling
};

// The median of each field.
Beside Medians(const std::vector<Beside>& measurements) {
  const auto median = [&](double Beside::*field) {
    std::vector<double> values;
    for (const Beside& measurement : measurements) values.push_back(measurement.*field);
    return Median(std::move(values));
  };
  return {.rate = median(&Beside::rate),
          .ceiling = median(&Beside::ceiling),
          .fraction = median(&Beside::fraction)};
}

// The medians of `repeats` measurements, each between two of the ceiling.
template <typename Ceiling, typename Rate>
absl::StatusOr<Beside> MeasureBeside(int repeats,
                                     double cost_per_token,
                                     const Ceiling& ceiling,
                                     const Rate& rate) {
  std::vector<Beside> measurements;
  double before = ceiling();
  for (int i = 0; i < repeats; ++i) {
    ASSIGN_OR_RETURN(const double tokens, rate(static_cast<uint64_t>(i)));
    const double after = ceiling();
    const double between = (before + after) / 2;
    measurements.push_back(
        {.rate = tokens, .ceiling = between, .fraction = tokens * cost_per_token / between});
    before = after;
  }
  return Medians(measurements);
}

// One fleet.
struct Figures {
  double start_seconds = 0;
  Beside decode;        // Beside the read bandwidth, in bytes
  Beside prefill;       // Beside the integer products
  double batch = 0;     // Tokens per second
  double of_first = 1;  // Of `batch` with the first number of workers
};

absl::StatusOr<Figures> Measure(const BenchOptions& options,
                                const Ceilings& ceilings,
                                int workers) {
  LocalFleetOptions fleet_options{
      .cluster = options.cluster, .with_tokenizer = false, .is_quiet = true};
  fleet_options.cluster.workers = workers;
  const absl::Time start = absl::Now();
  ASSIGN_OR_RETURN(const std::unique_ptr<LocalFleet> fleet, LocalFleet::Start(fleet_options));
  RETURN_IF_ERROR(fleet->WaitReady(absl::InfiniteFuture()));
  Figures f{.start_seconds = absl::ToDoubleSeconds(absl::Now() - start)};
  std::fprintf(stderr,
               "%d worker%s ready after %.1f s\n",
               workers,
               workers == 1 ? "" : "s",
               f.start_seconds);
  const Client client(fleet->address());
  const ModelConfig& config = fleet->config();
  const Work work = WorkOf(config);
  ASSIGN_OR_RETURN(f.decode,
                   MeasureBeside(
                       options.repeats,
                       work.bytes_per_token,
                       [&] { return ceilings.Bandwidth(); },
                       [&](uint64_t i) { return DecodeRate(client, config, options, 1 + i); }));
  ASSIGN_OR_RETURN(f.batch, BatchRate(client, config, options));
  ASSIGN_OR_RETURN(f.prefill,
                   MeasureBeside(
                       options.repeats,
                       work.products_per_token,
                       [&] { return ceilings.Products(); },
                       [&](uint64_t i) { return PrefillRate(client, config, options, 100 + i); }));
  return f;
}

// Of fleets of the same size.
Figures Medians(const std::vector<Figures>& rounds) {
  std::vector<double> starts, batches, fractions;
  std::vector<Beside> decodes, prefills;
  for (const Figures& f : rounds) {
    starts.push_back(f.start_seconds);
    decodes.push_back(f.decode);
    prefills.push_back(f.prefill);
    batches.push_back(f.batch);
    fractions.push_back(f.of_first);
  }
  return {.start_seconds = Median(std::move(starts)),
          .decode = Medians(decodes),
          .prefill = Medians(prefills),
          .batch = Median(std::move(batches)),
          .of_first = Median(std::move(fractions))};
}

absl::StatusOr<std::vector<int>> WorkerCounts(const std::string& text) {
  std::vector<int> counts;
  for (const absl::string_view part : absl::StrSplit(text, ',')) {
    int count = 0;
    if (!absl::SimpleAtoi(part, &count) || count < 1 || count > 64) {
      return absl::InvalidArgumentError(
          absl::StrCat("--worker-counts: \"", part, "\"; expected counts from 1 to 64, as in 1,4"));
    }
    counts.push_back(count);
  }
  return counts;
}

void Print(std::FILE* to, const BenchOptions& options, int workers, const Figures& f) {
  std::fprintf(to,
               "%d worker%s: decode %.2f tok/s (%.0f %% of %.1f GB/s); prefill of %d: %.1f tok/s "
               "(%.0f %% of %.0f G products/s); batch %d: %.2f tok/s (%.2f of the first's)\n",
               workers,
               workers == 1 ? "" : "s",
               f.decode.rate,
               100 * f.decode.fraction,
               f.decode.ceiling / 1e9,
               options.prompt,
               f.prefill.rate,
               100 * f.prefill.fraction,
               f.prefill.ceiling / 1e9,
               options.batch,
               f.batch,
               f.of_first);
}

nlohmann::ordered_json ToJson(const BenchOptions& options, int workers, const Figures& f) {
  return {{"workers", workers},
          {"start_seconds", f.start_seconds},
          {"read_bandwidth_gb_s", f.decode.ceiling / 1e9},
          {"int8_products_g_s", f.prefill.ceiling / 1e9},
          {"decode_tokens_s", f.decode.rate},
          {"decode_of_bandwidth", f.decode.fraction},
          {"prefill_tokens_s", f.prefill.rate},
          {"prefill_of_int8_products", f.prefill.fraction},
          {"batch", options.batch},
          {"batch_tokens_s", f.batch},
          {"batch_of_first", f.of_first}};
}

absl::Status Run(const BenchOptions& options) {
  ASSIGN_OR_RETURN(const std::vector<int> counts, WorkerCounts(options.workers));
  const Ceilings ceilings(options.cluster);
  std::vector<std::vector<Figures>> figures(counts.size());
  for (int round = 0; round < options.rounds; ++round) {
    for (size_t i = 0; i < counts.size(); ++i) {
      ASSIGN_OR_RETURN(Figures f, Measure(options, ceilings, counts[i]));
      if (i > 0) f.of_first = f.batch / figures[0].back().batch;
      figures[i].push_back(f);
      if (options.rounds > 1) Print(stderr, options, counts[i], f);
    }
  }
  nlohmann::ordered_json json = {{"threads", ceilings.threads()},
                                 {"rounds", options.rounds},
                                 {"runs", nlohmann::ordered_json::array()}};
  for (size_t i = 0; i < counts.size(); ++i) {
    const Figures medians = Medians(figures[i]);
    json["runs"].push_back(ToJson(options, counts[i], medians));
    Print(options.json ? stderr : stdout, options, counts[i], medians);
  }
  if (options.json) std::printf("%s\n", json.dump(2).c_str());
  return absl::OkStatus();
}

}  // namespace

int RunBench(int argc, char** argv) {
  CLI::App app(
      "Decode at batch 1, prefill, and decode of a batch, through a real cluster on this host, for "
      "each number of "
      "workers. Beside each figure stands the ceiling measured right before and after it: read "
      "bandwidth for decode (weights touched per token, as stored), integer dot products for "
      "prefill (two per weight).",
      "shoal bench");
  BenchOptions options;
  app.add_option("--worker-counts", options.workers, "a fleet for each")->capture_default_str();
  app.add_option("--prompt-tokens", options.prompt, "of the prefill run")
      ->check(CLI::Range(1, 65536))
      ->capture_default_str();
  app.add_option("--decode-tokens", options.decode, "of the single stream")
      ->check(CLI::Range(2, 65536))
      ->capture_default_str();
  app.add_option("--batch", options.batch, "concurrent streams")
      ->check(CLI::Range(1, 512))
      ->capture_default_str();
  app.add_option("--batch-decode", options.batch_decode, "tokens of each of them")
      ->check(CLI::Range(2, 65536))
      ->capture_default_str();
  app.add_option(
         "--repeats", options.repeats, "decode and prefill runs of a fleet; their medians count")
      ->check(CLI::Range(1, 100))
      ->capture_default_str();
  app.add_option("--rounds", options.rounds, "over all worker counts in turn; medians are printed")
      ->check(CLI::Range(1, 100))
      ->capture_default_str();
  app.add_flag("--json", options.json, "one JSON object on standard output");
  AddClusterOptions(app, &options.cluster, true);
  app.footer("Example:\n  shoal bench --model 20b --load-format dummy --worker-counts 1,4");
  if (const int code = ParseOrExitCode(app, argc, argv); code >= 0) return code;
  BlockTerminationSignals();
  const absl::Status status = Run(options);
  return status.ok() ? kExitOk : Fail(status);
}

}  // namespace shoal
