// Writes tokenizer.json texts for tests: from a list of tokens and merges, or from the vocabulary
// of the release (o200k_base.tiktoken, which is not part of this repository) in each of the forms
// that are met.
#pragma once

#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/string_view.h"
#include "nlohmann/json.hpp"

namespace shoal {

// Bytes as byte-level files spell them: a space is U+0120.
std::string SpellBytes(absl::string_view bytes);

struct TestVocabulary {
  std::vector<std::string> tokens;                          // Bytes; the id is the index
  std::vector<std::pair<std::string, std::string>> merges;  // Bytes; most urgent first
  std::vector<std::string> specials;                        // Ids after those of `tokens`
};

// All 256 bytes in order, then for each merge what it makes, if that is new.
TestVocabulary MakeTestVocabulary(std::vector<std::pair<std::string, std::string>> merges,
                                  std::vector<std::string> specials);

enum class PairForm { kList, kString };

// As a tree, for tests that break it, and as text.
nlohmann::ordered_json TokenizerTree(const TestVocabulary& vocabulary, PairForm form);
std::string TokenizerText(const TestVocabulary& vocabulary, PairForm form);

enum class MergeForm {
  kAll,     // Every split of a token into two tokens, as in the release
  kNeeded,  // The one split that byte-pair merges use
};

// $SHOAL_O200K, or shared/data/tokenizer/o200k_base.tiktoken beside the source folder; nullopt,
// after a line on stderr, if there is neither.
std::optional<TestVocabulary> ReadO200k(MergeForm form);

}  // namespace shoal
