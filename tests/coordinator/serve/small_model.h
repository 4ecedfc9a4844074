// A model for the service's tests: 64 tokens, the alphabet and a few that make trouble.
#pragma once

#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/string_view.h"

#include "coordinator/text/tokenizer.h"
#include "model/config.h"

namespace shoal::testing_model {

inline constexpr int32_t kEuroHead = 26;  // "\xe2\x82"
inline constexpr int32_t kEuroTail = 27;  // "\xac"
inline constexpr int32_t kFirstSpecial = 60;
inline constexpr int32_t kReturn = 61;   // "<|return|>", which ends an answer
inline constexpr int32_t kUnknown = 63;  // In the vocabulary, not in the tokenizer

// Letters are tokens 0 to 25; two more are halves of a character.
class AlphabetTokenizer final : public Tokenizer {
 public:
  AlphabetTokenizer() : pieces_(62) {
    for (int i = 0; i < 26; ++i)
      pieces_[static_cast<size_t>(i)] = std::string(1, static_cast<char>('a' + i));
    pieces_[kEuroHead] = "\xe2\x82";
    pieces_[kEuroTail] = "\xac";
    for (int i = 28; i < 60; ++i) pieces_[static_cast<size_t>(i)] = absl::StrCat(" ", i);
    pieces_[60] = "<|end|>";
    pieces_[61] = "<|return|>";
  }

  absl::StatusOr<std::vector<TokenId>> Encode(absl::string_view text,
                                              const SpecialTokens& special) const override {
    std::vector<TokenId> out;
    for (size_t i = 0; i < text.size();) {
      if (special.mode == SpecialTokens::Mode::kAll && text.substr(i, 10) == pieces_[kReturn]) {
        out.push_back(TokenId{kReturn});
        i += 10;
      } else if (text[i] >= 'a' && text[i] <= 'z') {
        out.push_back(TokenId{text[i++] - 'a'});
      } else {
        return absl::InvalidArgumentError(absl::StrCat("no token for byte ", i));
      }
    }
    return out;
  }

  std::optional<absl::string_view> Bytes(TokenId id) const override {
    if (id.value < 0 || id.value >= size()) return std::nullopt;
    return pieces_[static_cast<size_t>(id.value)];
  }

  bool IsSpecial(TokenId id) const override { return id.value >= kFirstSpecial; }

  std::optional<TokenId> Special(absl::string_view marker) const override {
    if (marker == pieces_[kReturn]) return TokenId{kReturn};
    return std::nullopt;
  }

  TokenId FirstSpecial() const override { return TokenId{kFirstSpecial}; }

  int32_t size() const override { return static_cast<int32_t>(pieces_.size()); }

 private:
  std::vector<std::string> pieces_;
};

inline ModelConfig SmallConfig() {
  ModelConfig config = ModelConfig::Tiny();
  config.vocab = 64;
  config.max_positions = 65'536;
  config.eos_token_ids = {kReturn};
  return config;
}

}  // namespace shoal::testing_model
