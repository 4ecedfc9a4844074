// Logprobs as OpenAI writes them. Included by .cc files only.
#pragma once

#include <span>

#include "nlohmann/json.hpp"

#include "coordinator/api/answer_items.h"
#include "coordinator/text/tokenizer.h"

namespace shoal {

// [{"token", "logprob", "bytes", "top_logprobs": [{"token", "logprob", "bytes"}]}]; a token that is
// no text by itself is spelled with U+FFFD, its bytes are exact. Below -9999: -9999.
nlohmann::ordered_json LogprobList(std::span<const ScoredToken> tokens, const Tokenizer& tokenizer);

}  // namespace shoal
