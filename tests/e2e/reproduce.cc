// Prints one hash of tokens, logprobs and logits over
//   workers {1,2,3,5,8} x exchange {local,unix,tcp,shm} x batch {1,7,32} x chunk {1,13,128,512} x
//   instruction set {scalar,avx2,avx512} x prefix cache {off,on} x preemption {none,forced} x
//   a worker killed at a random moment {no,yes}
// and fails if any of them differs. Every run is a real cluster on this host over the micro-model's
// geometry.
//
//   reproduce            every pair of values of two different properties, in a few dozen runs
//   reproduce --all      the whole product
//   reproduce --only workers=3,exchange=tcp,batch=7,chunk=13,isa=avx2,cache=on,preempt=on,kill=on
// SHOAL_SEED: of the moments and victims of the kills; printed with a failure.

#include <algorithm>
#include <atomic>
#include <bit>
#include <cstdio>
#include <cstdlib>
#include <map>
#include <memory>
#include <optional>
#include <set>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/strings/str_split.h"
#include "absl/synchronization/mutex.h"
#include "absl/time/clock.h"
#include "cli/client.h"
#include "cli/local_fleet.h"
#include "cli/signals.h"

#include "base/prng.h"
#include "base/status_macros.h"
#include "kernels/cpu/backend.h"

namespace shoal {
namespace {

struct Property {
  std::string name;
  std::vector<std::string> values;
};

const std::vector<Property>& Properties() {
  static const auto* const properties = [] {
    auto* list = new std::vector<Property>{
        {"workers", {"1", "2", "3", "5", "8"}},
        {"exchange", {"local", "unix", "tcp", "shm"}},
        {"batch", {"1", "7", "32"}},
        {"chunk", {"1", "13", "128", "512"}},
        {"isa", {}},
        {"cache", {"off", "on"}},
        {"preempt", {"off", "on"}},
        {"kill", {"off", "on"}},
    };
    for (const CpuIsa isa : {CpuIsa::kScalar, CpuIsa::kAvx2, CpuIsa::kAvx512}) {
      if (isa <= BestCpuIsa()) (*list)[4].values.emplace_back(CpuIsaName(isa));
    }
    return list;
  }();
  return *properties;
}

using Setting = std::vector<size_t>;  // [property] -> index of its value

const std::string& Value(const Setting& setting, const std::string& name) {
  for (size_t p = 0; p < setting.size(); ++p) {
    if (Properties()[p].name == name) return Properties()[p].values[setting[p]];
  }
  std::abort();
}

int Number(const Setting& setting, const std::string& name) {
  return std::atoi(Value(setting, name).c_str());
}

std::string Describe(const Setting& setting) {
  std::vector<std::string> parts;
  for (size_t p = 0; p < setting.size(); ++p) {
    parts.push_back(absl::StrCat(Properties()[p].name, "=", Properties()[p].values[setting[p]]));
  }
  return absl::StrJoin(parts, ",");
}

std::vector<Setting> WholeProduct() {
  std::vector<Setting> settings = {{}};
  for (const Property& property : Properties()) {
    std::vector<Setting> longer;
    for (const Setting& setting : settings) {
      for (size_t v = 0; v < property.values.size(); ++v) {
        longer.push_back(setting);
        longer.back().push_back(v);
      }
    }
    settings = std::move(longer);
  }
  return settings;
}

// Greedy: of some random settings the one that covers most of the pairs still missing, until none
// is.
std::vector<Setting> EveryPair() {
  using Pair =
      std::tuple<size_t, size_t, size_t, size_t>;  // Property, value, later property, value
  const auto pairs_of = [](const Setting& s) {
    std::vector<Pair> pairs;
    for (size_t p = 0; p < s.size(); ++p) {
      for (size_t q = p + 1; q < s.size(); ++q) pairs.emplace_back(p, s[p], q, s[q]);
    }
    return pairs;
  };
  std::set<Pair> missing;
  for (const Setting& setting : WholeProduct()) {
    for (const Pair& pair : pairs_of(setting)) missing.insert(pair);
  }
  Prng prng(7);
  std::vector<Setting> chosen;
  while (!missing.empty()) {
    Setting best;
    size_t best_count = 0;
    for (int i = 0; i < 300; ++i) {
      Setting setting;
      for (const Property& property : Properties()) {
        setting.push_back(prng.Below(property.values.size()));
      }
      // Force one missing pair, so that every candidate covers something.
      const auto& [p, v, q, w] = *missing.begin();
      setting[p] = v;
      setting[q] = w;
      const std::vector<Pair> pairs = pairs_of(setting);
      const auto count = static_cast<size_t>(std::count_if(
          pairs.begin(), pairs.end(), [&](const Pair& pair) { return missing.contains(pair); }));
      if (count > best_count) {
        best_count = count;
        best = setting;
      }
    }
    for (const Pair& pair : pairs_of(best)) missing.erase(pair);
    chosen.push_back(best);
  }
  return chosen;
}

absl::StatusOr<Setting> ParseSetting(const std::string& text) {
  Setting setting(Properties().size(), 0);
  for (const absl::string_view part : absl::StrSplit(text, ',')) {
    const std::pair<std::string, std::string> pair = absl::StrSplit(part, absl::MaxSplits('=', 1));
    bool found = false;
    for (size_t p = 0; p < Properties().size(); ++p) {
      const auto& values = Properties()[p].values;
      const auto it = std::find(values.begin(), values.end(), pair.second);
      if (Properties()[p].name != pair.first || it == values.end()) continue;
      setting[p] = static_cast<size_t>(it - values.begin());
      found = true;
    }
    if (!found) return absl::InvalidArgumentError(absl::StrCat("--only: \"", part, "\""));
  }
  return setting;
}

// ---- The requests
// -----------------------------------------------------------------------------------

constexpr int kVocabulary = 128;
constexpr int kOutput = 24;
// Prompt lengths of the observed requests: shorter than the window, longer, longer than a block and
// a chunk.
constexpr int kObserved[] = {2, 45, 150, 290};

v1::GenerateRequest MakeRequest(uint64_t seed, int prompt_length) {
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
  request.mutable_limits()->set_max_tokens(kOutput);
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
                           std::atomic<int>* progress) {
  Output output;
  RETURN_IF_ERROR(client.Generate(
      request, absl::Now() + absl::Seconds(120), [&](const v1::GenerateEvent& event) {
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
        progress->fetch_add(event.chunk().token_ids_size());
        return true;
      }));
  if (output.tokens != kOutput) {
    return absl::DataLossError(absl::StrCat(output.tokens, " tokens instead of ", kOutput));
  }
  return output;
}

// The observed requests and enough neighbours to make `batch` of them at a time; batch 1: one after
// the other.
absl::StatusOr<std::vector<Output>> RunBatch(const Client& client,
                                             int batch,
                                             std::atomic<int>* progress) {
  constexpr int kNumObserved = std::size(kObserved);
  std::vector<v1::GenerateRequest> requests;
  for (int i = 0; i < kNumObserved; ++i) {
    requests.push_back(MakeRequest(100 + static_cast<uint64_t>(i), kObserved[i]));
  }
  for (int i = kNumObserved; i < batch; ++i) {
    requests.push_back(MakeRequest(1000 + static_cast<uint64_t>(i), 1 + i * 5 % 83));
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
    if (i < kNumObserved) observed.push_back(*outputs[i]);
  }
  return observed;
}

absl::StatusOr<uint64_t> HashLogits(const Client& client) {
  std::vector<TokenId> tokens;
  Prng prng(5);
  for (int i = 0; i < 200; ++i)
    tokens.push_back(TokenId{static_cast<int32_t>(prng.Below(kVocabulary))});
  uint64_t hash = kFnvOffset;
  int positions = 0;
  RETURN_IF_ERROR(
      client.Logits(tokens, absl::Now() + absl::Seconds(120), [&](const v1::LogitsResponse& part) {
        for (const float value : part.values()) HashValue(std::bit_cast<uint32_t>(value), &hash);
        positions += part.num_positions();
        return absl::OkStatus();
      }));
  if (positions != 200) return absl::DataLossError(absl::StrCat(positions, " of 200 positions"));
  return hash;
}

absl::StatusOr<uint64_t> RunSetting(const Setting& setting, uint64_t seed) {
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
  cluster.prefix_cache = Value(setting, "cache") == "on";
  cluster.force_preempt_every = Value(setting, "preempt") == "on" ? 9 : 0;
  ASSIGN_OR_RETURN(const std::unique_ptr<LocalFleet> fleet, LocalFleet::Start(options));
  RETURN_IF_ERROR(fleet->WaitReady(absl::Now() + absl::Seconds(60)));
  const Client client(fleet->address());
  const int batch = Number(setting, "batch");

  std::atomic<int> progress = 0;
  if (cluster.prefix_cache) RETURN_IF_ERROR(RunBatch(client, batch, &progress).status());
  std::thread killer;
  std::atomic<bool> is_over = false;
  if (Value(setting, "kill") == "on") {
    Prng prng(seed);
    const int moment =
        progress + 1 +
        static_cast<int>(prng.Below(static_cast<uint64_t>(kOutput * std::max(4, batch) - 8)));
    const int victim = static_cast<int>(prng.Below(static_cast<uint64_t>(cluster.workers)));
    killer = std::thread([&, moment, victim] {
      while (progress < moment && !is_over) absl::SleepFor(absl::Microseconds(200));
      fleet->KillWorker(victim);
    });
  }
  const absl::StatusOr<std::vector<Output>> outputs = RunBatch(client, batch, &progress);
  is_over = true;
  if (killer.joinable()) killer.join();
  RETURN_IF_ERROR(outputs.status());
  uint64_t hash = kFnvOffset;
  for (const Output& output : *outputs) {
    HashValue(output.token_hash, &hash);
    HashValue(output.logprob_hash, &hash);
  }
  const bool must_hit = cluster.prefix_cache && Value(setting, "kill") == "off";
  if (must_hit && outputs->back().cached_tokens == 0) {
    return absl::FailedPreconditionError("the prefix cache was on and nothing was taken from it");
  }
  ASSIGN_OR_RETURN(const uint64_t logits, HashLogits(client));
  HashValue(logits, &hash);
  return hash;
}

int Main(int argc, char** argv) {
  BlockTerminationSignals();
  uint64_t seed = 1;
  if (const char* text = std::getenv("SHOAL_SEED"); text != nullptr) {
    if (!absl::SimpleAtoi(text, &seed)) return 2;
  }
  std::vector<Setting> settings;
  if (argc == 2 && std::string(argv[1]) == "--all") {
    settings = WholeProduct();
  } else if (argc == 3 && std::string(argv[1]) == "--only") {
    const absl::StatusOr<Setting> setting = ParseSetting(argv[2]);
    if (!setting.ok()) return Fail(setting.status());
    settings = {*setting};
  } else if (argc == 1) {
    settings = EveryPair();
  } else {
    std::fprintf(stderr, "usage: reproduce [--all | --only NAME=VALUE,...]\n");
    return 2;
  }
  std::map<uint64_t, std::string> hashes;  // Hash -> the first setting that had it
  int failed = 0;
  for (size_t i = 0; i < settings.size(); ++i) {
    const std::string text = Describe(settings[i]);
    const absl::Time start = absl::Now();
    const absl::StatusOr<uint64_t> hash = RunSetting(settings[i], Mix64(seed * 1000 + i));
    const double seconds = absl::ToDoubleSeconds(absl::Now() - start);
    if (hash.ok()) {
      hashes.emplace(*hash, text);
      std::printf("%zu/%zu %016lx %s (%.1f s)\n",
                  i + 1,
                  settings.size(),
                  static_cast<unsigned long>(*hash),
                  text.c_str(),
                  seconds);
    } else {
      ++failed;
      std::printf("%zu/%zu FAILED %s: %s (SHOAL_SEED=%lu, %.1f s)\n",
                  i + 1,
                  settings.size(),
                  text.c_str(),
                  hash.status().ToString().c_str(),
                  static_cast<unsigned long>(seed),
                  seconds);
    }
    std::fflush(stdout);
  }
  for (const auto& [hash, text] : hashes) {
    std::printf("%016lx first with %s\n", static_cast<unsigned long>(hash), text.c_str());
  }
  std::printf(
      "%zu runs, %zu different hashes, %d failed\n", settings.size(), hashes.size(), failed);
  return hashes.size() == 1 && failed == 0 ? 0 : 1;
}

}  // namespace
}  // namespace shoal

int main(int argc, char** argv) {
  return shoal::Main(argc, argv);
}
