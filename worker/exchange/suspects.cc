#include "worker/exchange/suspects.h"

#include <algorithm>
#include <string>

#include "absl/strings/cord.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_join.h"
#include "absl/strings/str_split.h"

#include "base/check.h"

namespace shoal {
namespace {

constexpr char kSuspectsUrl[] = "shoal/suspects";  // Payload: ranks in decimal, comma-separated.

}  // namespace

absl::Status WithSuspects(absl::Status status, std::span<const Rank> suspects) {
  CHECK(!status.ok());
  if (suspects.empty()) return status;
  std::vector<int32_t> ranks;
  for (const Rank rank : suspects) ranks.push_back(rank.value);
  std::ranges::sort(ranks);
  status.SetPayload(kSuspectsUrl, absl::Cord(absl::StrJoin(ranks, ",")));
  return status;
}

std::vector<Rank> SuspectsOf(const absl::Status& status) {
  std::vector<Rank> suspects;
  const auto payload = status.GetPayload(kSuspectsUrl);
  if (!payload.has_value()) return suspects;
  const std::string text(*payload);
  for (const absl::string_view piece : absl::StrSplit(text, ',')) {
    Rank rank;
    if (absl::SimpleAtoi(piece, &rank.value)) suspects.push_back(rank);
  }
  return suspects;
}

}  // namespace shoal
