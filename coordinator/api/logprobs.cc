#include "coordinator/api/logprobs.h"

#include <algorithm>
#include <cstdint>
#include <utility>

#include "coordinator/text/utf8.h"

namespace shoal {
namespace {

using nlohmann::ordered_json;

ordered_json Entry(TokenId id, float logprob, const Tokenizer& tokenizer) {
  constexpr float kLowest = -9999.0f;  // OpenAI's "not likely at all"; JSON has no infinity
  const absl::string_view text = tokenizer.Bytes(id).value_or("");
  ordered_json bytes = ordered_json::array();
  for (const char byte : text) bytes.push_back(static_cast<uint8_t>(byte));
  return {{"token", WellFormedUtf8(text)},
          {"logprob", logprob > kLowest ? logprob : kLowest},
          {"bytes", std::move(bytes)}};
}

}  // namespace

ordered_json LogprobList(std::span<const ScoredToken> tokens, const Tokenizer& tokenizer) {
  ordered_json list = ordered_json::array();
  for (const ScoredToken& token : tokens) {
    ordered_json entry = Entry(token.id, token.logprob, tokenizer);
    ordered_json top = ordered_json::array();
    for (const TopLogprob& other : token.top) {
      top.push_back(Entry(other.token, other.logprob, tokenizer));
    }
    entry["top_logprobs"] = std::move(top);
    list.push_back(std::move(entry));
  }
  return list;
}

}  // namespace shoal
