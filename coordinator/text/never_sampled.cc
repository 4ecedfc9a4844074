#include "coordinator/text/never_sampled.h"

#include <algorithm>
#include <iterator>

namespace shoal {

std::vector<TokenRange> NeverSampled(const Tokenizer& tokenizer,
                                     int32_t vocab,
                                     const std::vector<int>& ends) {
  const bool is_harmony = RequireHarmonySpecials(tokenizer).ok();
  const auto is_sampled = [&](TokenId id) {
    const auto bytes = tokenizer.Bytes(id);
    if (!bytes.has_value()) return false;
    if (!is_harmony || !tokenizer.IsSpecial(id)) return true;
    return std::count(std::begin(kHarmonySpecials), std::end(kHarmonySpecials), *bytes) > 0 ||
           std::count(ends.begin(), ends.end(), id.value) > 0;
  };
  std::vector<TokenRange> never;
  for (int32_t id = 0; id < vocab; ++id) {
    if (is_sampled(TokenId{id})) continue;
    if (!never.empty() && never.back().last.value == id - 1) {
      never.back().last = TokenId{id};
    } else {
      never.push_back({TokenId{id}, TokenId{id}});
    }
  }
  return never;
}

}  // namespace shoal
