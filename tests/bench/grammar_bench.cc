// Masks. The floor is the mask's own bytes: 25 KB for the release's vocabulary. Every state of some
// walks through a schema is timed, the best of its iterations counts; the counters are over states.
#include <algorithm>
#include <chrono>
#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "benchmark/benchmark.h"

#include "base/prng.h"
#include "coordinator/text/constraint.h"
#include "coordinator/text/grammar_mask.h"
#include "coordinator/text/json_schema.h"
#include "proto/token_mask.h"
#include "tests/coordinator/text/token_walk.h"

namespace shoal {
namespace {

const TokenIndex* Release() {
  static const std::unique_ptr<TokenIndex> index = []() -> std::unique_ptr<TokenIndex> {
    const std::optional<TestVocabulary> release = ReadO200k(MergeForm::kNeeded);
    if (!release) return nullptr;
    static const std::unique_ptr<Tokenizer> tokenizer =
        *Tokenizer::Parse(TokenizerText(*release, PairForm::kString));
    return std::make_unique<TokenIndex>(*tokenizer, tokenizer->size());
  }();
  return index.get();
}

constexpr char kAnyJson[] = R"({"type":"object"})";
constexpr char kWeather[] =
    R"({"type":"object","properties":{"location":{"type":"string"},"unit":{"enum":["celsius",
        "fahrenheit"]},
        "days":{"type":"integer","minimum":1,"maximum":14}},"required":["location"],
            "additionalProperties":false})";
constexpr char kInvoice[] =
    R"({"type":"object","properties":{"number":{"type":"string","maxLength":20},
        "date":{"type":"string"},
        "customer":{"$ref":"#/$defs/party"},"seller":{"$ref":"#/$defs/party"},
        "items":{"type":"array","minItems":1,"items":{"type":"object","properties":{
            "description":{"type":"string"},"quantity":{"type":"number","minimum":0},
                "price":{"type":"number"},
            "tags":{"type":"array","items":{"enum":["new","used","gift","return"]}}},
            "required":["description","quantity","price"],"additionalProperties":false}},
        "paid":{"type":["boolean","null"]},"note":{"anyOf":[{"type":"string"},{"type":"null"}]}},
        "required":["number","customer","items"],
        "$defs":{"party":{"type":"object","properties":{"name":{"type":"string"},
            "street":{"type":"string"},
            "city":{"type":"string"},"country":{"enum":["DE","FR","GB","US","JP","IN"]}},
                "required":["name","country"]}}})";
constexpr char kTree[] =
    R"({"$ref":"#/$defs/node","$defs":{"node":{"type":"object",
        "properties":{"label":{"type":"string"},
        "value":{"anyOf":[{"type":"number"},{"type":"string"},{"$ref":"#/$defs/node"}]},
        "children":{"type":"array","items":{"$ref":"#/$defs/node"}}},"required":["label"],
        "additionalProperties":{"type":"string"}}}})";

std::vector<GrammarState> StatesOnWalks(const JsonGraph& graph, const TokenIndex& index) {
  std::vector<GrammarState> states;
  for (uint64_t seed = 1; seed <= 20; ++seed) {
    Prng prng(seed);
    GrammarState state(&graph);
    for (int step = 0; step < 60; ++step) {
      TokenSet allowed(index.num_ids());
      AddAllowedTokens(state, index, &allowed);
      states.push_back(state);
      if (allowed.IsEmpty()) break;
      state.Advance(*index.tokenizer().Bytes(Choose(allowed, index.tokenizer(), step, &prng)));
    }
  }
  return states;
}

void BM_Mask(benchmark::State& bench, const char* schema) {
  const TokenIndex* const index = Release();
  if (index == nullptr) return bench.SkipWithError("no vocabulary of the release");
  const JsonGraph graph = *CompileJsonSchema(schema);
  const std::vector<GrammarState> states = StatesOnWalks(graph, *index);
  std::vector<double> micros(states.size(), 1e9);
  for (auto _ : bench) {
    for (size_t i = 0; i < states.size(); ++i) {
      const auto begin = std::chrono::steady_clock::now();
      TokenSet allowed(index->num_ids());
      AddAllowedTokens(states[i], *index, &allowed);
      const TokenMask mask = PackMask(allowed.words());
      benchmark::DoNotOptimize(mask.runs.data());
      const std::chrono::duration<double, std::micro> took =
          std::chrono::steady_clock::now() - begin;
      micros[i] = std::min(micros[i], took.count());
    }
  }
  std::sort(micros.begin(), micros.end());
  const auto at = [&](double share) {
    return micros[static_cast<size_t>(share * static_cast<double>(micros.size() - 1))];
  };
  bench.counters["states"] = static_cast<double>(states.size());
  bench.counters["median_us"] = at(0.5);
  bench.counters["p99_us"] = at(0.99);
  bench.counters["max_us"] = at(1.0);
}

BENCHMARK_CAPTURE(BM_Mask, any_json, kAnyJson)->Iterations(20);
BENCHMARK_CAPTURE(BM_Mask, weather, kWeather)->Iterations(20);
BENCHMARK_CAPTURE(BM_Mask, invoice, kInvoice)->Iterations(20);
BENCHMARK_CAPTURE(BM_Mask, tree, kTree)->Iterations(20);

void BM_Compile(benchmark::State& bench, const char* schema) {
  for (auto _ : bench) benchmark::DoNotOptimize(CompileJsonSchema(schema));
}

BENCHMARK_CAPTURE(BM_Compile, weather, kWeather);
BENCHMARK_CAPTURE(BM_Compile, invoice, kInvoice);

// Once for a server.
void BM_Index(benchmark::State& bench) {
  const TokenIndex* const index = Release();
  if (index == nullptr) return bench.SkipWithError("no vocabulary of the release");
  for (auto _ : bench) {
    const TokenIndex again(index->tokenizer(), index->num_ids());
    benchmark::DoNotOptimize(again.num_ids());
  }
}

BENCHMARK(BM_Index)->Unit(benchmark::kMillisecond)->Iterations(3);

}  // namespace
}  // namespace shoal

BENCHMARK_MAIN();
