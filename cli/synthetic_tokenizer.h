// A small tokenizer.json of our own for checkpoints that `shoal synth` writes: byte-level BPE with
// the released split rules and harmony's special tokens, in the released form.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

namespace shoal {

// How a vocabulary of `vocab` ids is used, so that every id below the specials decodes to text:
//   200,019 ids and more  256 bytes, merges up to 199,997, the 21 released specials at their ids
//   266 and more          256 bytes, merges, the 10 named specials as the last ids
//   107 and more          printable ASCII, tab and newline (other text cannot be encoded), merges,
//                         the 10 named specials as the last ids
//   fewer                 no tokenizer: an empty text
// Merges build syllables ("ba"), words of them and the same behind a space.
std::string SyntheticTokenizerJson(int vocab);

// The stop set that goes with it: <|endoftext|>, <|return|>, <|call|>, rising; or empty.
std::vector<int32_t> SyntheticEosIds(int vocab);

}  // namespace shoal
