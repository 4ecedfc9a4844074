// Any bytes as a JSON schema: refused, or a grammar without dead ends whose documents are JSON.
// What stands before the first newline is the schema; the rest chooses the way through the grammar.
#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

#include "nlohmann/json.hpp"

#include "base/check.h"
#include "coordinator/text/grammar.h"
#include "coordinator/text/json_schema.h"

namespace shoal {
namespace {

constexpr int kMaxBytes = 400;

// The bytes that may come next.
std::vector<uint8_t> NextBytes(const GrammarState& state) {
  std::vector<uint8_t> bytes;
  for (int byte = 0; byte < 256; ++byte) {
    GrammarState copy = state;
    if (copy.Advance(std::string(1, static_cast<char>(byte)))) {
      bytes.push_back(static_cast<uint8_t>(byte));
    }
  }
  return bytes;
}

// Follows the choices; after them, whatever closes something.
void Follow(const JsonGraph& graph, absl::string_view choices) {
  GrammarState state(&graph);
  std::string document;
  for (size_t i = 0; i < kMaxBytes; ++i) {
    if (state.IsComplete() && i >= choices.size()) break;
    const std::vector<uint8_t> next = NextBytes(state);
    if (next.empty()) break;
    uint8_t byte = next[0];
    if (i < choices.size()) {
      byte = next[static_cast<uint8_t>(choices[i]) % next.size()];
    } else {
      for (const char closing : {'"', '}', ']', ':'}) {
        const auto found = std::find(next.begin(), next.end(), static_cast<uint8_t>(closing));
        if (found != next.end()) byte = *found;
      }
    }
    document.push_back(static_cast<char>(byte));
    CHECK(state.Advance(document.substr(document.size() - 1)));
  }
  if (!state.IsComplete()) {
    CHECK(!NextBytes(state).empty());  // No dead ends
    return;
  }
  CHECK(nlohmann::json::accept(document));
  GrammarState at_once(&graph);
  CHECK(at_once.Advance(document) && at_once.IsComplete());
}

}  // namespace
}  // namespace shoal

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const absl::string_view bytes(reinterpret_cast<const char*>(data), size);
  const size_t newline = std::min(bytes.find('\n'), bytes.size());
  const auto graph = shoal::CompileJsonSchema(bytes.substr(0, newline));
  if (graph.ok()) shoal::Follow(*graph, bytes.substr(std::min(newline + 1, bytes.size())));
  return 0;
}
