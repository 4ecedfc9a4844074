// Which network NCCL will take on a host, and why: its own rules (2.28, misc/socket.cc and net.cc),
// applied to what the host has, so that `shoal doctor` can say it before NCCL fails. Pure, save for
// ListInterfaces.
#pragma once

#include <functional>
#include <optional>
#include <string>
#include <vector>

namespace shoal {

struct NetworkInterface {
  std::string name;
  std::string address;  // "10.0.0.5", "fe80::1"
  bool is_ipv6 = false;
  bool is_up = false;
};

// IPv4 and IPv6 addresses of this host, as the system lists them.
std::vector<NetworkInterface> ListInterfaces();

// What of the host and its environment the choice depends on.
struct NcclHost {
  std::vector<NetworkInterface> interfaces;
  std::vector<std::string> infiniband_devices;  // Of /sys/class/infiniband
  // As getenv; nullopt: not set.
  std::function<std::optional<std::string>(const std::string& name)> environment;
};

struct NcclNetwork {
  // Interfaces that sockets will use, in NCCL's order: bootstrap and unique ids always, rows where
  // there is no InfiniBand. NCCL takes the first for the bootstrap.
  std::vector<NetworkInterface> sockets;
  std::string why_sockets;
  bool uses_infiniband = false;
  std::string why_rows;  // What rows between hosts travel over, and why
  std::vector<std::string> problems;
};

NcclNetwork ChooseNcclNetwork(const NcclHost& host);

}  // namespace shoal
