// A small vocabulary with harmony's markers, unlike the release's in every id, token streams to
// feed to a reader, and what must hold for any stream whatever.
#pragma once

#include <memory>
#include <span>
#include <string>
#include <vector>

#include "base/ids.h"
#include "base/prng.h"
#include "coordinator/text/harmony.h"
#include "coordinator/text/tokenizer.h"

namespace shoal {

// "commentary", "functions." and the names are several tokens each; every byte is a token.
std::unique_ptr<Tokenizer> MakeHarmonyTokenizer();

// Text with markers spelled out -> tokens.
std::vector<TokenId> HarmonyIds(const Tokenizer& tokenizer, absl::string_view text);

// A random answer: words, markers and broken characters in any order, or a well-formed answer with
// tokens lost, repeated, exchanged and inserted.
std::vector<TokenId> RandomStream(const HarmonyTokens& tokens, Prng* prng);

// What is wrong with how HarmonyReader reads `ids`; empty: nothing. Events must form messages,
// their text must be what a Detokenizer makes of the content's tokens, copies made at any point
// must go on alike.
std::string ReaderFaults(const HarmonyTokens& tokens,
                         const FunctionNames& functions,
                         std::span<const TokenId> ids);

// What is wrong with what the APIs make of `ids`: chat chunks, the chat message and the Responses
// object must have the same texts and calls.
std::string ApiFaults(const HarmonyTokens& tokens,
                      const FunctionNames& functions,
                      std::span<const TokenId> ids);

}  // namespace shoal
