#include "coordinator/text/string_tokens.h"

#include <algorithm>

namespace shoal {
namespace {

// From these, after a byte or none, tokens of any text follow.
constexpr StringState kWideStates[] = {
    StringState::kPlain, StringState::kEscape, StringState::kHex1};

}  // namespace

StringTokens::Reading StringTokens::Read(StringState state, absl::string_view bytes) {
  Reading reading{.state = state};
  for (; reading.size < bytes.size(); ++reading.size) {
    const auto byte = static_cast<uint8_t>(bytes[reading.size]);
    if (BeginsCharacter(reading.state, byte)) ++reading.num_characters;
    reading.state = StepString(reading.state, byte);
    if (reading.state == StringState::kEscape) reading.has_escape = true;
    if (reading.state == StringState::kClosed || reading.state == StringState::kRefused) break;
  }
  return reading;
}

StringTokens::StringTokens(const std::vector<TokenTrie::Entry>& tokens, int32_t num_ids)
    : without_escapes_(num_ids) {
  IndexAfterQuote("");
  for (const StringState state : kWideStates) Fill(state, tokens, num_ids);
  std::vector<TokenTrie::Entry> after;
  for (const auto& [bytes, index] : index_after_quote_) {
    if (index > 0) after.emplace_back(bytes, static_cast<int32_t>(index));
  }
  after_quote_ = std::make_unique<TokenTrie>(std::move(after));
  for (const StringState state : kWideStates) {
    tables_[static_cast<size_t>(state)]->closing.resize(index_after_quote_.size());
  }
  FillLengths(tokens, num_ids);
}

size_t StringTokens::IndexAfterQuote(absl::string_view after) {
  return index_after_quote_.try_emplace(after, index_after_quote_.size()).first->second;
}

void StringTokens::Fill(StringState state,
                        const std::vector<TokenTrie::Entry>& tokens,
                        int32_t num_ids) {
  Table& table = tables_[static_cast<size_t>(state)].emplace(num_ids);
  for (const auto& [bytes, id] : tokens) {
    const Reading reading = Read(state, bytes);
    if (reading.state == StringState::kRefused) continue;
    if (reading.state != StringState::kClosed) {
      table.inside.Add(TokenId{id});
      continue;
    }
    const size_t index = IndexAfterQuote(bytes.substr(reading.size + 1));
    if (index >= table.closing.size()) table.closing.resize(index + 1);
    table.closing[index].push_back({.token = TokenId{id},
                                    .before = bytes.substr(0, reading.size),
                                    .num_characters = reading.num_characters,
                                    .has_escape = reading.has_escape});
  }
}

void StringTokens::FillLengths(const std::vector<TokenTrie::Entry>& tokens, int32_t num_ids) {
  std::vector<std::vector<TokenId>> by_length(1);
  for (const auto& [bytes, id] : tokens) {
    const Reading reading = Read(StringState::kPlain, bytes);
    if (reading.state == StringState::kRefused || reading.state == StringState::kClosed) continue;
    if (!reading.has_escape) without_escapes_.Add(TokenId{id});
    const size_t length = reading.num_characters;
    if (length >= by_length.size()) by_length.resize(length + 1);
    by_length[length].push_back(TokenId{id});
  }
  for (const std::vector<TokenId>& ids : by_length) {
    TokenSet within = within_.empty() ? TokenSet(num_ids) : within_.back();
    for (const TokenId id : ids) within.Add(id);
    within_.push_back(std::move(within));
  }
}

const StringTokens::Table* StringTokens::Find(StringState state) const {
  const std::optional<Table>& table = tables_[static_cast<size_t>(state)];
  return table.has_value() ? &*table : nullptr;
}

const TokenSet& StringTokens::InsideWithin(uint32_t max_characters) const {
  return within_[std::min<size_t>(max_characters, within_.size() - 1)];
}

}  // namespace shoal
