#include "cli/bench.h"

#include <algorithm>
#include <cstdio>
#include <memory>
#include <numeric>
#include <optional>
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
                                  const BenchOptions& o) {
  ASSIGN_OR_RETURN(const Arrivals arrivals, RunStream(client, config, 1, 8, o.decode));
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
                                   const BenchOptions& o) {
  std::vector<double> rates;
  for (int i = 0; i < o.repeats; ++i) {
    ASSIGN_OR_RETURN(const Arrivals arrivals,
                     RunStream(client, config, 100 + static_cast<uint64_t>(i), o.prompt, 1));
    rates.push_back(o.prompt / absl::ToDoubleSeconds(arrivals.prefill));
  }
  return Median(std::move(rates));
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

struct Figures {
  int workers = 0;
  Work work;
  double start_seconds = 0;
  double decode = 0, prefill = 0, batch = 0;  // Tokens per second
};

absl::StatusOr<Figures> Measure(const BenchOptions& options, int workers) {
  LocalFleetOptions fleet_options{
      .cluster = options.cluster, .with_tokenizer = false, .is_quiet = true};
  fleet_options.cluster.workers = workers;
  const absl::Time start = absl::Now();
  ASSIGN_OR_RETURN(const std::unique_ptr<LocalFleet> fleet, LocalFleet::Start(fleet_options));
  RETURN_IF_ERROR(fleet->WaitReady(absl::InfiniteFuture()));
  Figures figures{.workers = workers,
                  .work = WorkOf(fleet->config()),
                  .start_seconds = absl::ToDoubleSeconds(absl::Now() - start)};
  std::fprintf(stderr,
               "%d worker%s ready after %.1f s\n",
               workers,
               workers == 1 ? "" : "s",
               figures.start_seconds);
  const Client client(fleet->address());
  const ModelConfig& config = fleet->config();
  ASSIGN_OR_RETURN(figures.decode, DecodeRate(client, config, options));
  ASSIGN_OR_RETURN(figures.batch, BatchRate(client, config, options));
  ASSIGN_OR_RETURN(figures.prefill, PrefillRate(client, config, options));
  return figures;
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

absl::Status Run(const BenchOptions& options) {
  ASSIGN_OR_RETURN(const std::vector<int> counts, WorkerCounts(options.workers));
  ClusterOptions one = options.cluster;
  one.workers = 1;
  const int threads = ThreadsPerWorker(one);
  // Ceilings are taken before and after, so that a neighbour's load on the machine shows.
  const std::vector<int> cpus = CpusOfWorker(one, 0);
  // On a thread of their own: what measures is pinned, and whatever this thread starts would
  // inherit that.
  const auto measure = [](const auto& what) {
    double rate = 0;
    std::thread([&] { rate = what().best; }).join();
    return rate;
  };
  const auto bandwidth = [&] {
    return measure([&] { return MeasureReadBandwidth(threads, cpus); });
  };
  const auto products = [&] {
    return measure([&] { return MeasureIntDotRate(threads, cpus, BestCpuIsa()); });
  };
  double bytes_ceiling = bandwidth();
  double products_ceiling = products();
  nlohmann::ordered_json json = {{"threads", threads}, {"runs", nlohmann::ordered_json::array()}};
  std::optional<double> batch_of_first;
  for (const int workers : counts) {
    ASSIGN_OR_RETURN(const Figures f, Measure(options, workers));
    const double bytes_after = bandwidth();
    const double products_after = products();
    const double bytes = (bytes_ceiling + bytes_after) / 2;
    const double rate = (products_ceiling + products_after) / 2;
    bytes_ceiling = bytes_after;
    products_ceiling = products_after;
    if (!batch_of_first.has_value()) batch_of_first = f.batch;
    json["runs"].push_back(
        {{"workers", workers},
         {"start_seconds", f.start_seconds},
         {"read_bandwidth_gb_s", bytes / 1e9},
         {"int8_products_g_s", rate / 1e9},
         {"decode_tokens_s", f.decode},
         {"decode_gb_s", f.decode * f.work.bytes_per_token / 1e9},
         {"decode_of_bandwidth", f.decode * f.work.bytes_per_token / bytes},
         {"prefill_tokens_s", f.prefill},
         {"prefill_of_int8_products", f.prefill * f.work.products_per_token / rate},
         {"batch", options.batch},
         {"batch_tokens_s", f.batch},
         {"batch_of_first", f.batch / *batch_of_first}});
    std::fprintf(options.json ? stderr : stdout,
                 "%d worker%s: decode %.2f tok/s = %.1f of %.1f GB/s (%.0f %%); prefill of %d: "
                 "%.1f tok/s = %.0f of "
                 "%.0f G products/s (%.0f %%); batch %d: %.2f tok/s (%.2f of the first run's)\n",
                 workers,
                 workers == 1 ? "" : "s",
                 f.decode,
                 f.decode * f.work.bytes_per_token / 1e9,
                 bytes / 1e9,
                 100 * f.decode * f.work.bytes_per_token / bytes,
                 options.prompt,
                 f.prefill,
                 f.prefill * f.work.products_per_token / 1e9,
                 rate / 1e9,
                 100 * f.prefill * f.work.products_per_token / rate,
                 options.batch,
                 f.batch,
                 f.batch / *batch_of_first);
  }
  if (options.json) std::printf("%s\n", json.dump(2).c_str());
  return absl::OkStatus();
}

}  // namespace

int RunBench(int argc, char** argv) {
  CLI::App app(
      "Decode at batch 1, prefill, and decode of a batch, through a real cluster on this host, for "
      "each number of "
      "workers. Beside each figure stands the ceiling measured in the same run: read bandwidth for "
      "decode (weights "
      "touched per token, as stored), integer dot products for prefill (two per weight).",
      "shoal bench");
  BenchOptions options;
  app.add_option("--worker-counts", options.workers, "one run for each")->capture_default_str();
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
  app.add_option("--repeats", options.repeats, "prefill runs; the median counts")
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
