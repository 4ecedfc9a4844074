// Encoding. The ceiling that matters is the queue: a prompt of 131,072 tokens is about 0.6 MB, so
// tens of MB/s hide behind anything. bytes_per_second is the text's.
#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <string>

#include "benchmark/benchmark.h"

#include "coordinator/text/tokenizer.h"
#include "tests/coordinator/text/tokenizer_json.h"

namespace shoal {
namespace {

// Of the release's vocabulary if there is one, else of bytes alone; nullptr never.
const Tokenizer& BenchTokenizer() {
  static const std::unique_ptr<Tokenizer> tokenizer = [] {
    const std::optional<TestVocabulary> release = ReadO200k(MergeForm::kAll);
    return *Tokenizer::Parse(
        TokenizerText(release ? *release : MakeTestVocabulary({}, {}), PairForm::kList));
  }();
  return *tokenizer;
}

// English, code, numbers, Chinese, Hindi and emoji, in about the shares of a multilingual chat.
std::string MixedText(size_t size) {
  const std::string paragraph =
      "The coordinator admits a request only if it can finish it; otherwise it says at once what "
      "would fit. \"Isn't that unkind?\" asked the 3rd engineer.\n\n"
      "```cpp\nfor (size_t i = 0; i + 1 < tokens_.size(); ++i) {\n"
      "  ranks_[i] = vocabulary_.RankOf(tokens_[i], tokens_[i + 1]);\n}\n```\n"
      "| year | requests | p99 |\n|---|---|---|\n| 2025 | 1,234,567 | 48.25 ms |\n"
      "Die Wahrscheinlichkeitsverteilung wird nachtr\u00E4glich ber\u00FCcksichtigt.\n"
      "\u4ECA\u5929\u5929\u6C14\u5F88\u597D\uFF0C\u6211\u4EEC\u4E00\u8D77\u53BB\u516C\u56ED\u6563"
      "\u6B65\u5427\u3002\n"
      "\u0939\u092E \u0915\u0932 \u0926\u093F\u0932\u094D\u0932\u0940 \u091C\u093E\u090F\u0902"
      "\u0917\u0947\u0964 \U0001F600\U0001F680\n";
  std::string text;
  while (text.size() < size) text += paragraph;
  return text;
}

void Encode(benchmark::State& state, const std::string& text) {
  const Tokenizer& tokenizer = BenchTokenizer();
  size_t num_tokens = 0;
  for (auto _ : state) {
    const auto ids = tokenizer.Encode(text, SpecialTokens{});
    num_tokens = ids->size();
    benchmark::DoNotOptimize(num_tokens);
  }
  state.SetBytesProcessed(static_cast<int64_t>(state.iterations()) *
                          static_cast<int64_t>(text.size()));
  state.counters["tokens"] = static_cast<double>(num_tokens);
}

void BM_Encode(benchmark::State& state) {
  Encode(state, MixedText(static_cast<size_t>(state.range(0))));
}

// The same length of one character each: pieces as long as the text.
void BM_EncodeOneCharacter(benchmark::State& state, const char* character) {
  std::string text;
  while (text.size() < static_cast<size_t>(state.range(0))) text += character;
  Encode(state, text);
}

// Letters at random: one piece, and no two merges alike.
void BM_EncodeRandomLetters(benchmark::State& state) {
  std::string text;
  uint32_t random = 1;
  while (text.size() < static_cast<size_t>(state.range(0))) {
    random = random * 1664525u + 1013904223u;
    text.push_back(static_cast<char>('a' + (random >> 16) % 26));
  }
  Encode(state, text);
}

BENCHMARK(BM_Encode)->ArgName("bytes")->Arg(1 << 10)->Arg(1 << 20);
BENCHMARK_CAPTURE(BM_EncodeOneCharacter, letter, "a")->ArgName("bytes")->Arg(1 << 20);
BENCHMARK_CAPTURE(BM_EncodeOneCharacter, space, " ")->ArgName("bytes")->Arg(1 << 20);
BENCHMARK_CAPTURE(BM_EncodeOneCharacter, mark, "\u0301")->ArgName("bytes")->Arg(1 << 20);
BENCHMARK(BM_EncodeRandomLetters)->ArgName("bytes")->Arg(1 << 20);

void BM_Parse(benchmark::State& state) {
  const std::optional<TestVocabulary> release = ReadO200k(MergeForm::kAll);
  if (!release) return state.SkipWithError("no vocabulary of the release");
  const std::string json = TokenizerText(*release, PairForm::kList);
  for (auto _ : state) benchmark::DoNotOptimize(Tokenizer::Parse(json));
  state.SetBytesProcessed(static_cast<int64_t>(state.iterations()) *
                          static_cast<int64_t>(json.size()));
}

BENCHMARK(BM_Parse)->Unit(benchmark::kMillisecond)->Iterations(1);

}  // namespace
}  // namespace shoal

BENCHMARK_MAIN();
