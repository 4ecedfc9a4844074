#include "worker/exchange/nccl_endpoint.h"

#include <unistd.h>

#include <algorithm>
#include <array>
#include <cstdlib>
#include <fstream>
#include <map>
#include <utility>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "absl/strings/strip.h"

#include "worker/exchange/suspects.h"

namespace shoal {
namespace {

constexpr absl::string_view kKind = "nccl:";

std::string Field(absl::string_view text) {
  std::string field(text);
  for (char& c : field) {
    if (c == ';' || c == '=' || c <= ' ' || c > '~') c = '_';
  }
  return field;
}

std::string Name(size_t rank, const Member& member) {
  return absl::StrCat("rank ", rank, " (worker ", member.worker.value, ")");
}

absl::Status Fault(const std::string& text, const std::vector<size_t>& ranks) {
  std::vector<Rank> suspects;
  for (const size_t rank : ranks) suspects.push_back(Rank{static_cast<int32_t>(rank)});
  return WithSuspects(absl::FailedPreconditionError(text), suspects);
}

// The most frequent value; of equally frequent ones that of the lowest rank.
size_t FirstOfMajority(const std::vector<std::string>& values) {
  const auto count = [&](const std::string& value) { return std::ranges::count(values, value); };
  const auto first = std::ranges::max_element(
      values, [&](const std::string& a, const std::string& b) { return count(a) < count(b); });
  return static_cast<size_t>(first - values.begin());
}

}  // namespace

std::string FormatNcclEndpoint(const NcclEndpoint& endpoint) {
  return absl::StrCat(kKind,
                      Field(endpoint.version),
                      ";host=",
                      Field(endpoint.host),
                      ";device=",
                      Field(endpoint.device));
}

absl::StatusOr<NcclEndpoint> ParseNcclEndpoint(absl::string_view text) {
  const absl::string_view whole = text;
  const bool is_nccl = absl::ConsumePrefix(&text, kKind);
  const std::vector<absl::string_view> fields = absl::StrSplit(text, ';');
  if (!is_nccl || fields.size() != 3 || !absl::StartsWith(fields[1], "host=") ||
      !absl::StartsWith(fields[2], "device=")) {
    return absl::InvalidArgumentError(
        absl::StrCat("\"", whole, "\" is not nccl:VERSION;host=HOST;device=DEVICE"));
  }
  return NcclEndpoint{.version = std::string(fields[0]),
                      .host = std::string(absl::StripPrefix(fields[1], "host=")),
                      .device = std::string(absl::StripPrefix(fields[2], "device="))};
}

std::string NcclHostId() {
  if (const char* id = std::getenv("NCCL_HOSTID"); id != nullptr && *id != '\0') return id;
  std::array<char, 256> name{};
  gethostname(name.data(), name.size() - 1);
  std::string boot_id;
  std::ifstream("/proc/sys/kernel/random/boot_id") >> boot_id;
  return absl::StrCat(name.data(), "/", boot_id);
}

absl::Status CheckNcclPeers(const std::vector<Member>& members) {
  std::vector<NcclEndpoint> endpoints;
  for (size_t rank = 0; rank < members.size(); ++rank) {
    absl::StatusOr<NcclEndpoint> endpoint = ParseNcclEndpoint(members[rank].exchange_endpoint);
    if (!endpoint.ok()) {
      return Fault(absl::StrCat(Name(rank, members[rank]),
                                " exchanges over ",
                                members[rank].exchange_endpoint,
                                ", this rank over NCCL: start all workers of a fleet with the same "
                                "--exchange"),
                   {rank});
    }
    endpoints.push_back(*std::move(endpoint));
  }
  std::vector<std::string> versions;
  for (const NcclEndpoint& endpoint : endpoints) versions.push_back(endpoint.version);
  const size_t usual = FirstOfMajority(versions);
  std::vector<size_t> others;
  for (size_t rank = 0; rank < versions.size(); ++rank) {
    if (versions[rank] != versions[usual]) others.push_back(rank);
  }
  if (!others.empty()) {
    return Fault(absl::StrCat("ranks have different versions of NCCL: ",
                              Name(usual, members[usual]),
                              " has ",
                              versions[usual],
                              ", ",
                              Name(others[0], members[others[0]]),
                              " has ",
                              versions[others[0]],
                              "; install one version everywhere"),
                 others);
  }
  std::map<std::pair<std::string, std::string>, size_t> rank_of_device;
  for (size_t rank = 0; rank < endpoints.size(); ++rank) {
    const NcclEndpoint& endpoint = endpoints[rank];
    if (endpoint.device.empty()) continue;
    const auto [other, is_new] = rank_of_device.insert({{endpoint.host, endpoint.device}, rank});
    if (is_new) continue;
    return Fault(absl::StrCat(Name(other->second, members[other->second]),
                              " and ",
                              Name(rank, members[rank]),
                              " are both on device ",
                              endpoint.device,
                              " of host ",
                              endpoint.host,
                              ", which NCCL refuses; give each worker a GPU of its own, or, for a "
                              "test, a NCCL_HOSTID of its own"),
                 {rank});
  }
  return absl::OkStatus();
}

}  // namespace shoal
