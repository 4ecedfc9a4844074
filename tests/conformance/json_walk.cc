// What the grammar makes of schemas, for tests/conformance/json_schema.py. JSON lines in:
// {"schema": TEXT, "walks": n, "seed": n, "documents": [TEXT...]}; out: {"error": TEXT}, or
// {"walks": [TEXT...], "unfinished": n, "accepted": [BOOL...]}.
#include <cstdint>
#include <iostream>
#include <memory>
#include <string>

#include "nlohmann/json.hpp"

#include "base/check.h"
#include "base/prng.h"
#include "coordinator/text/grammar_mask.h"
#include "coordinator/text/json_schema.h"
#include "tests/coordinator/text/token_walk.h"

namespace shoal {
namespace {

using nlohmann::json;

constexpr int kMaxSteps = 400;

// What a walk through the masks wrote; unfinished if it did not come to an end.
bool Walk(const JsonGraph& graph, const TokenIndex& index, uint64_t seed, std::string* text) {
  Prng prng(seed);
  GrammarState state(&graph);
  for (int step = 0; step < kMaxSteps; ++step) {
    if (state.IsComplete() && prng.Chance(50)) return true;
    TokenSet allowed(index.num_ids());
    AddAllowedTokens(state, index, &allowed);
    if (allowed.IsEmpty()) {
      CHECK(state.IsComplete());  // No dead ends
      return true;
    }
    const absl::string_view bytes =
        *index.tokenizer().Bytes(Choose(allowed, index.tokenizer(), step, &prng));
    CHECK(state.Advance(bytes));
    text->append(bytes.data(), bytes.size());
  }
  return state.IsComplete();
}

bool Accepts(const JsonGraph& graph, const std::string& document) {
  GrammarState state(&graph);
  return state.Advance(document) && state.IsComplete();
}

json Answer(const json& asked, const TokenIndex& index) {
  const auto graph = CompileJsonSchema(asked["schema"].get<std::string>());
  if (!graph.ok()) return {{"error", std::string(graph.status().message())}};
  json walks = json::array();
  int unfinished = 0;
  for (uint64_t walk = 0; walk < asked["walks"].get<uint64_t>(); ++walk) {
    std::string text;
    if (Walk(*graph, index, asked["seed"].get<uint64_t>() + walk, &text)) {
      walks.push_back(text);
    } else {
      ++unfinished;
    }
  }
  json accepted = json::array();
  for (const json& document : asked["documents"]) {
    accepted.push_back(Accepts(*graph, document.get<std::string>()));
  }
  return {{"walks", walks}, {"unfinished", unfinished}, {"accepted", accepted}};
}

int Main() {
  const auto tokenizer = *Tokenizer::Parse(TokenizerText(JsonVocabulary({}), PairForm::kList));
  const TokenIndex index(*tokenizer, tokenizer->size());
  std::string line;
  while (std::getline(std::cin, line)) {
    std::cout << Answer(json::parse(line), index).dump() << std::endl;
  }
  return 0;
}

}  // namespace
}  // namespace shoal

int main() {
  return shoal::Main();
}
