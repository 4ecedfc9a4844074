#include "tests/coordinator/text/tokenizer_json.h"

#include <algorithm>
#include <array>
#include <cstdint>
#include <cstdlib>
#include <fstream>
#include <iostream>
#include <map>
#include <unordered_map>

#include "absl/strings/escaping.h"
#include "absl/strings/str_cat.h"

#include "base/check.h"
#include "coordinator/text/pretokenizer.h"

namespace shoal {
namespace {

using nlohmann::ordered_json;
using Ranks = std::unordered_map<std::string, size_t>;

std::string Utf8(unsigned code_point) {  // Below U+0800
  if (code_point < 0x80) return std::string(1, static_cast<char>(code_point));
  return {static_cast<char>(0xC0 | code_point >> 6), static_cast<char>(0x80 | (code_point & 0x3F))};
}

std::string ToString(absl::string_view view) {
  return std::string(view.data(), view.size());
}

// The two parts that byte-pair merges of ranks below `rank` leave of a token: the textbook loop.
std::pair<std::string, std::string> NeededSplit(const Ranks& ranks,
                                                const std::string& token,
                                                size_t rank) {
  std::vector<std::string> parts;
  for (const char c : token) parts.emplace_back(1, c);
  while (parts.size() > 2) {
    size_t best = rank;
    size_t best_at = 0;
    for (size_t i = 0; i + 1 < parts.size(); ++i) {
      const auto at = ranks.find(parts[i] + parts[i + 1]);
      if (at == ranks.end() || at->second >= best) continue;
      best = at->second;
      best_at = i;
    }
    CHECK_LT(best, rank);
    parts[best_at] += parts[best_at + 1];
    parts.erase(parts.begin() + static_cast<ptrdiff_t>(best_at) + 1);
  }
  return {parts[0], parts[1]};
}

std::vector<std::pair<std::string, std::string>> AllSplits(const Ranks& ranks,
                                                           const std::string& token) {
  std::map<std::pair<size_t, size_t>, size_t> left_size;
  for (size_t i = 1; i < token.size(); ++i) {
    const auto left = ranks.find(token.substr(0, i));
    const auto right = ranks.find(token.substr(i));
    if (left == ranks.end() || right == ranks.end()) continue;
    left_size[{left->second, right->second}] = i;
  }
  std::vector<std::pair<std::string, std::string>> result;
  for (const auto& [split, size] : left_size) {
    result.emplace_back(token.substr(0, size), token.substr(size));
  }
  return result;
}

}  // namespace

std::string SpellBytes(absl::string_view bytes) {
  static const std::array<std::string, 256>* const spelling = [] {
    auto* table = new std::array<std::string, 256>;
    unsigned next = 0x100;
    for (unsigned b = 0; b < 256; ++b) {
      const bool is_visible = (b > 0x20 && b < 0x7F) || (b > 0xA0 && b != 0xAD);
      (*table)[b] = Utf8(is_visible ? b : next++);
    }
    return table;
  }();
  std::string text;
  for (const char c : bytes) text += (*spelling)[static_cast<uint8_t>(c)];
  return text;
}

TestVocabulary MakeTestVocabulary(std::vector<std::pair<std::string, std::string>> merges,
                                  std::vector<std::string> specials) {
  TestVocabulary vocabulary;
  for (int byte = 0; byte < 256; ++byte) {
    vocabulary.tokens.emplace_back(1, static_cast<char>(byte));
  }
  for (const auto& [left, right] : merges) {
    const std::string merged = left + right;
    const auto end = vocabulary.tokens.end();
    if (std::find(vocabulary.tokens.begin(), end, merged) == end) {
      vocabulary.tokens.push_back(merged);
    }
  }
  vocabulary.merges = std::move(merges);
  vocabulary.specials = std::move(specials);
  return vocabulary;
}

ordered_json TokenizerTree(const TestVocabulary& vocabulary, PairForm form) {
  ordered_json vocab = ordered_json::object();
  size_t id = 0;
  // ordered_json looks through the whole object for each new key; the pairs underneath do not.
  auto& entries = vocab.get_ref<ordered_json::object_t&>();
  for (const std::string& token : vocabulary.tokens) {
    static_cast<std::vector<std::pair<const std::string, ordered_json>>&>(entries).emplace_back(
        SpellBytes(token), id++);
  }
  ordered_json merges = ordered_json::array();
  for (const auto& [left, right] : vocabulary.merges) {
    if (form == PairForm::kList) {
      merges.push_back({SpellBytes(left), SpellBytes(right)});
    } else {
      merges.push_back(SpellBytes(left) + " " + SpellBytes(right));
    }
  }
  ordered_json added = ordered_json::array();
  for (const std::string& special : vocabulary.specials) {
    added.push_back({{"id", id++},
                     {"content", special},
                     {"single_word", false},
                     {"lstrip", false},
                     {"rstrip", false},
                     {"normalized", false},
                     {"special", true}});
  }
  const auto byte_level = [](bool prefix, bool use_regex) {
    return ordered_json{{"type", "ByteLevel"},
                        {"add_prefix_space", prefix},
                        {"trim_offsets", true},
                        {"use_regex", use_regex}};
  };
  const ordered_json split = {{"type", "Split"},
                              {"pattern", {{"Regex", ToString(kSplitPattern)}}},
                              {"behavior", "Isolated"},
                              {"invert", false}};
  return {{"version", "1.0"},
          {"added_tokens", added},
          {"normalizer", nullptr},
          {"pre_tokenizer",
           {{"type", "Sequence"},
            {"pretokenizers", ordered_json::array({split, byte_level(false, false)})}}},
          {"post_processor", byte_level(true, true)},
          {"decoder", byte_level(true, true)},
          {"model",
           {{"type", "BPE"},
            {"dropout", nullptr},
            {"unk_token", nullptr},
            {"continuing_subword_prefix", nullptr},
            {"end_of_word_suffix", nullptr},
            {"fuse_unk", false},
            {"byte_fallback", false},
            {"ignore_merges", true},
            {"vocab", std::move(vocab)},
            {"merges", std::move(merges)}}}};
}

std::string TokenizerText(const TestVocabulary& vocabulary, PairForm form) {
  return TokenizerTree(vocabulary, form).dump();
}

std::optional<TestVocabulary> ReadO200k(MergeForm form) {
  std::ifstream file;
  if (const char* const named = std::getenv("SHOAL_O200K")) {
    file.open(named);
  } else {
    // The second is where a git worktree beside the main one finds it.
    for (const char* const parent : {"/..", "/../.."}) {
      file.open(
          absl::StrCat(SHOAL_SOURCE_DIR, parent, "/shared/data/tokenizer/o200k_base.tiktoken"));
      if (file) break;
    }
  }
  if (!file) {
    std::cerr << "SKIPPED: the vocabulary of the release is not there; name its "
                 "o200k_base.tiktoken in SHOAL_O200K\n";
    return std::nullopt;
  }

  TestVocabulary vocabulary;
  Ranks ranks;
  std::string base64;
  for (size_t rank = 0; file >> base64 >> rank;) {
    std::string bytes;
    CHECK(absl::Base64Unescape(base64, &bytes));
    CHECK_EQ(rank, vocabulary.tokens.size());
    ranks.emplace(bytes, rank);
    vocabulary.tokens.push_back(std::move(bytes));
  }
  for (size_t rank = 0; rank < vocabulary.tokens.size(); ++rank) {
    const std::string& token = vocabulary.tokens[rank];
    if (token.size() == 1) continue;
    if (form == MergeForm::kNeeded) {
      vocabulary.merges.push_back(NeededSplit(ranks, token, rank));
    } else {
      for (auto& split : AllSplits(ranks, token)) vocabulary.merges.push_back(std::move(split));
    }
  }
  vocabulary.specials = {"<|startoftext|>",
                         "<|endoftext|>",
                         "<|reserved_200000|>",
                         "<|reserved_200001|>",
                         "<|return|>",
                         "<|constrain|>",
                         "<|reserved_200004|>",
                         "<|channel|>",
                         "<|start|>",
                         "<|end|>",
                         "<|message|>",
                         "<|reserved_200009|>",
                         "<|reserved_200010|>",
                         "<|reserved_200011|>",
                         "<|call|>"};
  for (int id = 200013; id <= 200017; ++id) {
    vocabulary.specials.push_back(absl::StrCat("<|reserved_", id, "|>"));
  }
  vocabulary.specials.push_back("<|endofprompt|>");
  return vocabulary;
}

}  // namespace shoal
