// Cuts text into the pieces that byte-pair merges never cross: the split rules of o200k, as a
// hand-written scanner. A backtracking regular expression needs quadratic time, or gives up, on
// hostile text; here each character is read at most a few times. Pure and thread-safe.
#pragma once

#include <cstddef>
#include <cstdint>

#include "absl/strings/string_view.h"

namespace shoal {

// The rules as tokenizer.json spells them (alternatives in order; Unicode 17.0 classes):
inline constexpr absl::string_view kSplitPattern =
    R"re([^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+)re"
    R"re((?i:'s|'t|'re|'ve|'m|'ll|'d)?)re"
    R"re(|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*)re"
    R"re((?i:'s|'t|'re|'ve|'m|'ll|'d)?)re"
    R"re(|\p{N}{1,3})re"
    R"re(| ?[^\s\p{L}\p{N}]+[\r\n/]*)re"
    R"re(|\s*[\r\n]+)re"
    R"re(|\s+(?!\S))re"
    R"re(|\s+)re";

// The end of the piece that begins at `begin`. A piece may depend on the text behind it, never on
// what is before it. REQUIRES: `text` is valid UTF-8; `begin` < text.size() and starts a character.
// Returns a position in (begin, text.size()], again at the start of a character.
size_t PieceEnd(absl::string_view text, size_t begin);

// Whether a character is one of \p{L} or \p{N}.
bool IsLetterOrNumber(uint32_t code_point);

}  // namespace shoal
