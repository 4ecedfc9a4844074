// Prints one hash of tokens, logprobs and logits over
//   workers {1,2,3,5,8} x exchange {local,unix,tcp,shm} x chunk {1,13,128,512} x
//   instruction set {scalar,avx2,avx512} x prefix cache {off,on} x preemption {none,forced} x
//   batch {1,7,32} x a worker killed at a random moment {no,yes}
// and fails if any of them differs. Every run is on a real cluster of this host over the
// micro-model's geometry; runs that differ in batch and kill only follow each other on one.
//
//   reproduce              every pair of values of two different properties, in a few dozen runs
//   reproduce --all        the whole product, 5,760 runs, with shorter prompts
//   reproduce --only workers=3,exchange=tcp,batch=7,chunk=13,isa=avx2,cache=on,preempt=on,kill=on
// Options of a long run:
//   --shard I/N            every N-th fleet, from the I-th on (1 to N): two shards fill two cores
//   --results FILE         appends each result; what FILE has already is not run again, but counts
//   --seconds S            begins no fleet after so many
// SHOAL_SEED: of the moments and victims of the kills; printed with a failure.

#include <algorithm>
#include <bit>
#include <cstdio>
#include <cstdlib>
#include <fstream>
#include <map>
#include <memory>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "absl/time/clock.h"
#include "cli/client.h"
#include "cli/local_fleet.h"
#include "cli/signals.h"

#include "base/prng.h"
#include "base/status_macros.h"
#include "tests/e2e/await_status.h"
#include "tests/e2e/progress.h"
#include "tests/e2e/settings.h"

namespace shoal {
namespace {

constexpr absl::Duration kPatience = absl::Seconds(120);

// ---- The requests
// -----------------------------------------------------------------------------------

constexpr int kVocabulary = 128;

// How much of everything: the hash is of one workload.
struct Workload {
  // Of the observed requests: shorter than the window, longer, longer than a block and a chunk.
  std::vector<int> prompts;
  int output = 0;
  int logits = 0;  // Positions of a prompt whose logits are asked for
};

// With a chunk of 1 each position is a step, which is what the product would spend its time on.
Workload WorkloadOf(bool is_whole_product) {
  if (is_whole_product) return {.prompts = {2, 45, 150}, .output = 12, .logits = 40};
  return {.prompts = {2, 45, 150, 290}, .output = 24, .logits = 200};
}

v1::GenerateRequest MakeRequest(uint64_t seed, int prompt_length, int output) {
  v1::GenerateRequest request;
  Prng prng(seed);
  for (int i = 0; i < prompt_length; ++i) {
    request.mutable_tokens()->add_ids(static_cast<uint32_t>(prng.Below(kVocabulary)));
  }
  v1::SamplingParams* sampling = request.mutable_sampling();
  sampling->set_seed(static_cast<int64_t>(seed));
  sampling->set_temperature(seed % 2 == 0 ? 1.0f : 0.7f);
  sampling->set_top_p(0.95f);
  sampling->set_frequency_penalty(0.3f);
  sampling->set_repetition_penalty(1.1f);
  request.mutable_limits()->set_max_tokens(static_cast<uint32_t>(output));
  request.mutable_limits()->set_ignore_eos(true);
  request.mutable_output()->set_logprobs(3);
  return request;
}

// Tokens and logprobs have a hash each: how a stream is cut into chunks must not matter.
struct Output {
  uint64_t token_hash = kFnvOffset;
  uint64_t logprob_hash = kFnvOffset;
  int tokens = 0;
  uint32_t cached_tokens = 0;
};

template <typename T>
void HashValue(const T& value, uint64_t* hash) {
  *hash = Fnv1a64({reinterpret_cast<const char*>(&value), sizeof(value)}, *hash);
}

// Streams one request; counts its tokens into `progress` as they come.
absl::StatusOr<Output> Run(const Client& client,
                           const v1::GenerateRequest& request,
                           Progress* progress) {
  Output output;
  RETURN_IF_ERROR(
      client.Generate(request, absl::Now() + kPatience, [&](const v1::GenerateEvent& event) {
        if (event.has_finished()) output.cached_tokens = event.finished().usage().cached_tokens();
        if (!event.has_chunk()) return true;
        for (const uint32_t id : event.chunk().token_ids()) HashValue(id, &output.token_hash);
        for (const v1::TokenLogprob& token : event.chunk().logprobs()) {
          HashValue(std::bit_cast<uint32_t>(token.logprob()), &output.logprob_hash);
          for (const v1::TopLogprob& top : token.top()) {
            HashValue(top.token_id(), &output.logprob_hash);
            HashValue(std::bit_cast<uint32_t>(top.logprob()), &output.logprob_hash);
          }
        }
        output.tokens += event.chunk().token_ids_size();
        progress->Add(event.chunk().token_ids_size());
        return true;
      }));
  const auto expected = static_cast<int>(request.limits().max_tokens());
  if (output.tokens != expected) {
    return absl::DataLossError(absl::StrCat(output.tokens, " tokens instead of ", expected));
  }
  return output;
}

// The observed requests and enough neighbours to make `batch` of them at a time; batch 1: one after
// the other.
absl::StatusOr<std::vector<Output>> RunBatch(const Client& client,
                                             const Workload& workload,
                                             int batch,
                                             Progress* progress) {
  const size_t num_observed = workload.prompts.size();
  std::vector<v1::GenerateRequest> requests;
  for (size_t i = 0; i < num_observed; ++i) {
    requests.push_back(MakeRequest(100 + i, workload.prompts[i], workload.output));
  }
  for (int i = static_cast<int>(num_observed); i < batch; ++i) {
    requests.push_back(
        MakeRequest(1000 + static_cast<uint64_t>(i), 1 + i * 5 % 83, workload.output));
  }
  std::vector<absl::StatusOr<Output>> outputs(requests.size());
  const auto run = [&](size_t i) { outputs[i] = Run(client, requests[i], progress); };
  if (batch == 1) {
    for (size_t i = 0; i < requests.size(); ++i) run(i);
  } else {
    std::vector<std::thread> threads;
    for (size_t i = 0; i < requests.size(); ++i) threads.emplace_back(run, i);
    for (std::thread& thread : threads) thread.join();
  }
  std::vector<Output> observed;
  for (size_t i = 0; i < outputs.size(); ++i) {
    RETURN_IF_ERROR(outputs[i].status());
    if (i < num_observed) observed.push_back(*outputs[i]);
  }
  return observed;
}

absl::StatusOr<uint64_t> HashLogits(const Client& client, int count) {
  std::vector<TokenId> tokens;
  Prng prng(5);
  for (int i = 0; i < count; ++i) {
    tokens.push_back(TokenId{static_cast<int32_t>(prng.Below(kVocabulary))});
  }
  uint64_t hash = kFnvOffset;
  int positions = 0;
  RETURN_IF_ERROR(
      client.Logits(tokens, absl::Now() + kPatience, [&](const v1::LogitsResponse& part) {
        for (const float value : part.values()) HashValue(std::bit_cast<uint32_t>(value), &hash);
        positions += part.num_positions();
        return absl::OkStatus();
      }));
  if (positions != count) {
    return absl::DataLossError(absl::StrCat(positions, " of ", count, " positions"));
  }
  return hash;
}

// ---- The runs
// ---------------------------------------------------------------------------------------

absl::StatusOr<std::unique_ptr<LocalFleet>> StartFleet(const Setting& setting) {
  LocalFleetOptions options{
      .with_tokenizer = false, .program = SHOAL_BINARY_DIR "/cli/shoal", .is_quiet = true};
  ClusterOptions& cluster = options.cluster;
  cluster.model = "tiny";
  cluster.load_format = "dummy";
  cluster.workers = Number(setting, "workers");
  cluster.exchange = Value(setting, "exchange");
  cluster.chunk = Number(setting, "chunk");
  cluster.isa = Value(setting, "isa");
  cluster.kv_tokens = 16384;
  cluster.prefix_cache = IsOn(setting, "cache");
  cluster.force_preempt_every = IsOn(setting, "preempt") ? 9 : 0;
  return LocalFleet::Start(options);
}

// All workers are in the epoch, also after an earlier kill.
absl::Status AwaitWhole(LocalFleet* fleet, size_t workers) {
  const auto is_whole = [workers](const FleetStatus& status) {
    return status.is_ready && status.cells.size() == 1 &&
           status.cells[0].workers.size() == workers &&
           std::all_of(status.cells[0].workers.begin(),
                       status.cells[0].workers.end(),
                       [](const WorkerStatus& worker) { return worker.rank.value >= 0; });
  };
  if (AwaitStatus(fleet, is_whole, absl::Now() + kPatience)) return absl::OkStatus();
  RETURN_IF_ERROR(fleet->Health());
  return absl::DeadlineExceededError("the fleet is not whole in time");
}

absl::StatusOr<uint64_t> RunSetting(const Setting& setting,
                                    const Workload& workload,
                                    uint64_t seed,
                                    LocalFleet* fleet) {
  const int workers = Number(setting, "workers"), batch = Number(setting, "batch");
  const bool has_cache = IsOn(setting, "cache"), kills = IsOn(setting, "kill");
  RETURN_IF_ERROR(AwaitWhole(fleet, static_cast<size_t>(workers)));
  const Client client(fleet->address());
  Progress warming, progress;
  if (has_cache) RETURN_IF_ERROR(RunBatch(client, workload, batch, &warming).status());
  std::thread killer;
  if (kills) {
    Prng prng(seed);
    const int streams = std::max(static_cast<int>(workload.prompts.size()), batch);
    const auto last = static_cast<uint64_t>(workload.output * streams - 8);
    const int64_t moment = 1 + static_cast<int64_t>(prng.Below(last));
    const int victim = static_cast<int>(prng.Below(static_cast<uint64_t>(workers)));
    killer = std::thread([&, moment, victim] {
      progress.AwaitTokens(moment, absl::Now() + kPatience);
      fleet->KillWorker(victim);
    });
  }
  const absl::StatusOr<std::vector<Output>> outputs = RunBatch(client, workload, batch, &progress);
  progress.End();
  if (killer.joinable()) killer.join();
  RETURN_IF_ERROR(outputs.status());
  uint64_t hash = kFnvOffset;
  for (const Output& output : *outputs) {
    HashValue(output.token_hash, &hash);
    HashValue(output.logprob_hash, &hash);
  }
  if (has_cache && !kills && outputs->back().cached_tokens == 0) {
    return absl::FailedPreconditionError("the prefix cache was on and nothing was taken from it");
  }
  ASSIGN_OR_RETURN(const uint64_t logits, HashLogits(client, workload.logits));
  HashValue(logits, &hash);
  return hash;
}

// Keeps the fleet of the last setting for those that can share it.
class Runner {
 public:
  bool has_fleet_for(const Setting& setting) const {
    return fleet_ != nullptr && CanShareFleet(setting_, setting);
  }

  absl::StatusOr<uint64_t> Run(const Setting& setting, const Workload& workload, uint64_t seed) {
    if (!has_fleet_for(setting)) {
      fleet_.reset();
      ASSIGN_OR_RETURN(fleet_, StartFleet(setting));
      setting_ = setting;
    }
    absl::StatusOr<uint64_t> hash = RunSetting(setting, workload, seed, fleet_.get());
    if (!hash.ok()) fleet_.reset();  // The next one does not inherit whatever it was.
    return hash;
  }

 private:
  Setting setting_;
  std::unique_ptr<LocalFleet> fleet_;
};

struct Options {
  std::vector<Setting> settings;
  Workload workload;
  size_t shard = 0, num_shards = 1;
  std::string results;
  absl::Duration limit = absl::InfiniteDuration();
  uint64_t seed = 1;
};

absl::StatusOr<Options> ParseOptions(int argc, char** argv) {
  Options options{.settings = EveryPair(), .workload = WorkloadOf(false)};
  for (int i = 1; i < argc; ++i) {
    const std::string name = argv[i];
    if (name == "--all") {
      options.settings = WholeProduct();
      options.workload = WorkloadOf(true);
      continue;
    }
    const std::string value = ++i < argc ? argv[i] : "";
    int64_t seconds = 0;
    if (name == "--only") {
      ASSIGN_OR_RETURN(Setting setting, ParseSetting(value));
      options.settings = {std::move(setting)};
    } else if (name == "--results" && !value.empty()) {
      options.results = value;
    } else if (name == "--seconds" && absl::SimpleAtoi(value, &seconds)) {
      options.limit = absl::Seconds(seconds);
    } else if (const std::vector<std::string> parts = absl::StrSplit(value, '/');
               name == "--shard" && parts.size() == 2 &&
               absl::SimpleAtoi(parts[0], &options.shard) &&
               absl::SimpleAtoi(parts[1], &options.num_shards) && options.shard >= 1 &&
               options.shard <= options.num_shards) {
      --options.shard;
    } else {
      return absl::InvalidArgumentError(
          absl::StrCat("\"",
                       name,
                       " ",
                       value,
                       "\": --all, --only SETTING, --shard I/N, --results FILE, "
                       "--seconds S"));
    }
  }
  if (const char* text = std::getenv("SHOAL_SEED"); text != nullptr) {
    if (!absl::SimpleAtoi(text, &options.seed)) {
      return absl::InvalidArgumentError(absl::StrCat("SHOAL_SEED: \"", text, "\""));
    }
  }
  return options;
}

// What was run before and now: lines "<hash> <setting>", kept in a file if there is one.
class Results {
 public:
  explicit Results(const std::string& path) {
    if (path.empty()) return;
    std::ifstream in(path);
    for (std::string hash, setting; in >> hash >> setting;) Count(hash, setting);
    num_before_ = by_setting_.size();
    out_.open(path, std::ios::app);
  }

  bool Has(const std::string& setting) const { return by_setting_.contains(setting); }

  void Add(uint64_t hash, const std::string& setting) {
    const std::string text = absl::StrCat(absl::Hex(hash, absl::kZeroPad16));
    Count(text, setting);
    if (out_.is_open()) out_ << text << " " << setting << std::endl;
  }

  size_t num_runs() const { return by_setting_.size(); }

  size_t num_before() const { return num_before_; }

  const std::map<std::string, std::string>& firsts() const { return first_of_; }

 private:
  void Count(const std::string& hash, const std::string& setting) {
    by_setting_.emplace(setting, hash);
    first_of_.emplace(hash, setting);
  }

  std::map<std::string, std::string> by_setting_;
  std::map<std::string, std::string> first_of_;  // Hash -> the first setting that had it
  std::ofstream out_;
  size_t num_before_ = 0;
};

int Main(int argc, char** argv) {
  BlockTerminationSignals();
  absl::StatusOr<Options> parsed = ParseOptions(argc, argv);
  if (!parsed.ok()) return Fail(parsed.status());
  const Options& options = *parsed;
  Results results(options.results);
  const absl::Time end = absl::Now() + options.limit;
  Runner runner;
  size_t num_fleets = 0, num_left = 0;
  int num_failed = 0;
  for (size_t i = 0; i < options.settings.size(); ++i) {
    const Setting& setting = options.settings[i];
    if (i == 0 || !CanShareFleet(options.settings[i - 1], setting)) ++num_fleets;
    const std::string text = Describe(setting);
    if ((num_fleets - 1) % options.num_shards != options.shard || results.Has(text)) continue;
    if (!runner.has_fleet_for(setting) && absl::Now() > end) {
      ++num_left;
      continue;
    }
    const absl::Time start = absl::Now();
    const absl::StatusOr<uint64_t> hash =
        runner.Run(setting, options.workload, Mix64(options.seed * 10000 + i));
    std::string result;
    if (hash.ok()) {
      results.Add(*hash, text);
      result = absl::StrCat(absl::Hex(*hash, absl::kZeroPad16));
    } else {
      ++num_failed;
      result = absl::StrCat("FAILED (SHOAL_SEED=", options.seed, "): ", hash.status().ToString());
    }
    std::printf("%zu/%zu %s %s (%.1f s)\n",
                i + 1,
                options.settings.size(),
                result.c_str(),
                text.c_str(),
                absl::ToDoubleSeconds(absl::Now() - start));
    std::fflush(stdout);
  }
  for (const auto& [hash, text] : results.firsts()) {
    std::printf("%s first with %s\n", hash.c_str(), text.c_str());
  }
  std::printf(
      "%zu runs (%zu of them before), %zu different hashes, %d failed, %zu left for want of time\n",
      results.num_runs(),
      results.num_before(),
      results.firsts().size(),
      num_failed,
      num_left);
  return results.firsts().size() == 1 && num_failed == 0 ? 0 : 1;
}

}  // namespace
}  // namespace shoal

int main(int argc, char** argv) {
  return shoal::Main(argc, argv);
}
