// What the harmony reader and the layers above it cost per token of an answer.
#include <memory>
#include <string>
#include <vector>

#include "benchmark/benchmark.h"

#include "coordinator/api/answer_items.h"
#include "coordinator/api/chat_writer.h"
#include "coordinator/text/harmony.h"
#include "coordinator/text/harmony_reader.h"
#include "tests/coordinator/text/harmony_streams.h"

namespace shoal {
namespace {

struct Answer {
  std::unique_ptr<Tokenizer> tokenizer = MakeHarmonyTokenizer();
  HarmonyTokens tokens = *HarmonyTokens::Find(tokenizer.get());
  FunctionNames functions = {"get_weather"};
  std::vector<TokenId> ids;  // Thinking and an answer, 500 tokens each

  Answer() {
    const std::string text(500, 'x');
    ids = HarmonyIds(*tokenizer,
                     "<|channel|>analysis<|message|>" + text + "<|end|><|start|>assistant" +
                         "<|channel|>final<|message|>" + text + "<|return|>");
  }
};

void CountTokens(const Answer& answer, benchmark::State* state) {
  const double num_tokens =
      static_cast<double>(answer.ids.size()) * static_cast<double>(state->iterations());
  state->counters["per_token"] =
      benchmark::Counter(num_tokens, benchmark::Counter::kIsRate | benchmark::Counter::kInvert);
}

void BM_Read(benchmark::State& state) {
  const Answer answer;
  std::vector<HarmonyEvent> events;
  for (auto _ : state) {
    HarmonyReader reader(&answer.tokens, &answer.functions, Role::kAssistant);
    for (const TokenId id : answer.ids) {
      events.clear();
      reader.Push(id, &events);
      benchmark::DoNotOptimize(events.data());
    }
  }
  CountTokens(answer, &state);
}

void BM_ReadItems(benchmark::State& state) {
  const Answer answer;
  std::vector<ItemEvent> events;
  for (auto _ : state) {
    ItemReader reader(&answer.tokens, &answer.functions, {"stop"});
    for (const TokenId id : answer.ids) {
      events.clear();
      reader.Push({id, 0.0f, {}}, &events);
      benchmark::DoNotOptimize(events.data());
    }
  }
  CountTokens(answer, &state);
}

void BM_WriteChatChunks(benchmark::State& state) {
  const Answer answer;
  const ChatAnswerArgs args;
  std::vector<ItemEvent> events;
  std::vector<std::string> chunks;
  for (auto _ : state) {
    ItemReader reader(&answer.tokens, &answer.functions, {});
    ChatStreamWriter writer(&args, 0, "call_");
    for (const TokenId id : answer.ids) {
      events.clear();
      chunks.clear();
      reader.Push({id, 0.0f, {}}, &events);
      writer.Write(events, &chunks);
      benchmark::DoNotOptimize(chunks.data());
    }
  }
  CountTokens(answer, &state);
}

BENCHMARK(BM_Read);
BENCHMARK(BM_ReadItems);
BENCHMARK(BM_WriteChatChunks);

}  // namespace
}  // namespace shoal

BENCHMARK_MAIN();
