#include "cli/nccl_network.h"

#include <arpa/inet.h>
#include <ifaddrs.h>
#include <net/if.h>

#include <algorithm>
#include <array>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/strings/str_split.h"
#include "absl/strings/strip.h"

namespace shoal {
namespace {

// NCCL's syntax: names are prefixes; '=' in front of the list: whole names; '^': all others.
struct NameFilter {
  std::vector<std::string> names;
  bool is_exact = false;
  bool excludes = false;

  bool Admits(const std::string& name) const {
    const bool is_listed = std::ranges::any_of(names, [&](const std::string& wanted) {
      return is_exact ? name == wanted : absl::StartsWith(name, wanted);
    });
    return is_listed != excludes;
  }
};

NameFilter ParseFilter(absl::string_view text) {
  NameFilter filter;
  filter.excludes = absl::ConsumePrefix(&text, "^");
  filter.is_exact = absl::ConsumePrefix(&text, "=");
  for (absl::string_view name : absl::StrSplit(text, ',', absl::SkipEmpty())) {
    filter.names.emplace_back(name);
  }
  return filter;
}

std::string Names(const std::vector<NetworkInterface>& interfaces) {
  std::vector<std::string> names;
  for (const NetworkInterface& interface : interfaces) {
    if (!std::ranges::count(names, interface.name)) names.push_back(interface.name);
  }
  return names.empty() ? "none" : absl::StrJoin(names, ", ");
}

std::vector<NetworkInterface> Admitted(const std::vector<NetworkInterface>& interfaces,
                                       absl::string_view filter) {
  const NameFilter parsed = ParseFilter(filter);
  std::vector<NetworkInterface> admitted;
  for (const NetworkInterface& interface : interfaces) {
    if (interface.is_up && parsed.Admits(interface.name)) admitted.push_back(interface);
  }
  return admitted;
}

void ChooseSockets(const NcclHost& host, NcclNetwork* network) {
  std::vector<NetworkInterface> usable = host.interfaces;
  if (const auto family = host.environment("NCCL_SOCKET_FAMILY"); family.has_value()) {
    std::erase_if(usable, [&](const NetworkInterface& interface) {
      return (*family == "AF_INET" && interface.is_ipv6) ||
             (*family == "AF_INET6" && !interface.is_ipv6);
    });
  }
  if (const auto names = host.environment("NCCL_SOCKET_IFNAME"); names.has_value()) {
    network->sockets = Admitted(usable, *names);
    network->why_sockets = absl::StrCat("NCCL_SOCKET_IFNAME=", *names);
    if (network->sockets.empty()) {
      network->problems.push_back(absl::StrCat("NCCL_SOCKET_IFNAME=",
                                               *names,
                                               " fits no interface of this host that is up; there "
                                               "are: ",
                                               Names(host.interfaces)));
    }
    return;
  }

  struct Turn {
    const char* filter;
    const char* why;
  };

  constexpr Turn kTurns[] = {
      {"ib", "NCCL_SOCKET_IFNAME is not set; interfaces named ib* come first"},
      {"^docker,lo", "NCCL_SOCKET_IFNAME is not set; no ib*; all but docker* and lo"},
      {"docker", "NCCL_SOCKET_IFNAME is not set; there is nothing but docker* and lo"},
      {"lo", "NCCL_SOCKET_IFNAME is not set; there is nothing but lo"},
  };
  for (const Turn& turn : kTurns) {
    network->sockets = Admitted(usable, turn.filter);
    network->why_sockets = turn.why;
    if (!network->sockets.empty()) break;
  }
  if (network->sockets.empty()) {
    network->problems.push_back(
        absl::StrCat("no interface that NCCL can use is up; there are: ", Names(host.interfaces)));
  } else if (absl::StartsWith(network->sockets.front().name, "lo")) {
    network->problems.push_back(
        "only lo is up: workers on other hosts cannot reach this one over NCCL");
  }
}

void ChooseRows(const NcclHost& host, NcclNetwork* network) {
  const auto net = host.environment("NCCL_NET");
  const auto disable = host.environment("NCCL_IB_DISABLE");
  const bool is_disabled = disable.has_value() && *disable != "0";
  const std::string devices = absl::StrJoin(host.infiniband_devices, ", ");
  if (net.has_value() && *net != "IB") {
    network->why_rows = absl::StrCat("NCCL_NET=", *net);
  } else if (is_disabled) {
    network->why_rows = absl::StrCat("sockets: NCCL_IB_DISABLE=", *disable);
  } else if (host.infiniband_devices.empty()) {
    network->why_rows = "sockets: /sys/class/infiniband has no device";
  } else {
    network->uses_infiniband = true;
    network->why_rows = absl::StrCat("InfiniBand or RoCE: ", devices);
  }
  if (net.has_value() && *net == "IB" && (is_disabled || host.infiniband_devices.empty())) {
    network->problems.push_back(absl::StrCat(
        "NCCL_NET=IB, but ",
        is_disabled ? "NCCL_IB_DISABLE forbids it" : "/sys/class/infiniband has no device"));
  }
}

}  // namespace

std::vector<NetworkInterface> ListInterfaces() {
  std::vector<NetworkInterface> interfaces;
  ifaddrs* list = nullptr;
  if (getifaddrs(&list) != 0) return interfaces;
  for (const ifaddrs* entry = list; entry != nullptr; entry = entry->ifa_next) {
    if (entry->ifa_addr == nullptr) continue;
    const int family = entry->ifa_addr->sa_family;
    if (family != AF_INET && family != AF_INET6) continue;
    const bool is_ipv6 = family == AF_INET6;
    const void* address =
        is_ipv6 ? static_cast<const void*>(
                      &reinterpret_cast<const sockaddr_in6*>(entry->ifa_addr)->sin6_addr)
                : &reinterpret_cast<const sockaddr_in*>(entry->ifa_addr)->sin_addr;
    std::array<char, INET6_ADDRSTRLEN> text{};
    inet_ntop(family, address, text.data(), text.size());
    interfaces.push_back({.name = entry->ifa_name,
                          .address = text.data(),
                          .is_ipv6 = is_ipv6,
                          .is_up = (entry->ifa_flags & IFF_UP) != 0});
  }
  freeifaddrs(list);
  return interfaces;
}

NcclNetwork ChooseNcclNetwork(const NcclHost& host) {
  NcclNetwork network;
  ChooseSockets(host, &network);
  ChooseRows(host, &network);
  return network;
}

}  // namespace shoal
