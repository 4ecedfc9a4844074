// Which tokens may follow in a JSON document.
#pragma once

#include "coordinator/text/grammar.h"
#include "coordinator/text/token_index.h"
#include "coordinator/text/token_set.h"

namespace shoal {

// Adds to `allowed` the ordinary tokens whose bytes state.Advance() would take.
void AddAllowedTokens(const GrammarState& state, const TokenIndex& index, TokenSet* allowed);

}  // namespace shoal
