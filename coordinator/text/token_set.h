// A set of token ids, one bit each.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "base/ids.h"

namespace shoal {

class TokenSet {
 public:
  explicit TokenSet(int32_t num_ids) : words_((static_cast<size_t>(num_ids) + 31) / 32, 0) {}

  void Add(TokenId id) { words_[Word(id)] |= Bit(id); }

  void Remove(TokenId id) { words_[Word(id)] &= ~Bit(id); }

  bool Has(TokenId id) const {
    return id.value >= 0 && Word(id) < words_.size() && (words_[Word(id)] & Bit(id)) != 0;
  }

  // REQUIRES: sets over equally many ids.
  void AddAll(const TokenSet& other) {
    for (size_t i = 0; i < words_.size(); ++i) words_[i] |= other.words_[i];
  }

  bool IsEmpty() const {
    for (const uint32_t word : words_) {
      if (word != 0) return false;
    }
    return true;
  }

  // Bit i % 32 of word i / 32.
  const std::vector<uint32_t>& words() const { return words_; }

  friend bool operator==(const TokenSet&, const TokenSet&) = default;

 private:
  static size_t Word(TokenId id) { return static_cast<size_t>(id.value) / 32; }

  static uint32_t Bit(TokenId id) { return uint32_t{1} << (static_cast<uint32_t>(id.value) % 32); }

  std::vector<uint32_t> words_;
};

}  // namespace shoal
