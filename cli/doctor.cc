#include "cli/doctor.h"

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <filesystem>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "cli/gpus.h"
#include "cli/nccl_network.h"
#include "cli/options.h"

#include "worker/exchange/nccl_api.h"
#include "worker/exchange/nccl_endpoint.h"

namespace shoal {
namespace {

// What the answers depend on besides the machine; named if it is set.
constexpr const char* kVariables[] = {"NCCL_SOCKET_IFNAME",
                                      "NCCL_SOCKET_FAMILY",
                                      "NCCL_NET",
                                      "NCCL_IB_DISABLE",
                                      "NCCL_IB_HCA",
                                      "NCCL_HOSTID",
                                      "NCCL_P2P_DISABLE",
                                      "NCCL_SHM_DISABLE",
                                      "SHOAL_NCCL_LIBRARY",
                                      "CUDA_VISIBLE_DEVICES"};

std::optional<std::string> Environment(const std::string& name) {
  const char* const value = std::getenv(name.c_str());
  if (value == nullptr) return std::nullopt;
  return value;
}

std::vector<std::string> InfinibandDevices() {
  std::vector<std::string> devices;
  std::error_code error;
  for (const auto& entry : std::filesystem::directory_iterator("/sys/class/infiniband", error)) {
    devices.push_back(entry.path().filename());
  }
  std::sort(devices.begin(), devices.end());
  return devices;
}

void PrintNetwork(const NcclHost& host, const NcclNetwork& network) {
  std::printf("network interfaces:\n");
  for (const NetworkInterface& interface : host.interfaces) {
    std::printf("  %-12s %-40s %s\n",
                interface.name.c_str(),
                interface.address.c_str(),
                interface.is_up ? "up" : "down");
  }
  if (network.sockets.empty()) {
    std::printf("NCCL's ranks meet over: nothing (%s)\n", network.why_sockets.c_str());
  } else {
    std::printf("NCCL's ranks meet over: %s, %s (%s)\n",
                network.sockets.front().name.c_str(),
                network.sockets.front().address.c_str(),
                network.why_sockets.c_str());
  }
  std::printf("rows between hosts travel over: %s\n", network.why_rows.c_str());
}

void PrintGpus(const absl::StatusOr<GpuTopology>& topology) {
  if (!topology.ok()) {
    std::printf("GPUs: none (%s)\n", std::string(topology.status().message()).c_str());
    return;
  }
  std::printf("GPUs, driver %s:\n", topology->driver.c_str());
  for (size_t a = 0; a < topology->gpus.size(); ++a) {
    std::printf("  %zu %s %s\n", a, topology->gpus[a].name.c_str(), topology->gpus[a].uuid.c_str());
    for (size_t b = a + 1; b < topology->gpus.size(); ++b) {
      std::printf("    to %zu: %s\n", b, topology->paths[a][b].c_str());
    }
  }
}

int Run(const std::string& library) {
  const NcclHost host{.interfaces = ListInterfaces(),
                      .infiniband_devices = InfinibandDevices(),
                      .environment = Environment};
  NcclNetwork network = ChooseNcclNetwork(host);
  PrintNetwork(host, network);

  const absl::StatusOr<NcclApi> api = LoadNccl(library);
  if (api.ok()) {
    std::printf("NCCL: %s, version %s%s\n",
                api->path.c_str(),
                NcclVersionText(api->version).c_str(),
                api->is_on_host ? ", a scripted one for host memory" : "");
  } else {
    network.problems.emplace_back(api.status().message());
  }
  const absl::StatusOr<GpuTopology> gpus = ListGpus();
  PrintGpus(gpus);
  std::printf("this host is to NCCL: %s\n", NcclHostId().c_str());
  for (const char* name : kVariables) {
    if (const auto value = Environment(name)) std::printf("set: %s=%s\n", name, value->c_str());
  }
  if (api.ok() && !api->is_on_host && !gpus.ok()) {
    network.problems.emplace_back(
        "--exchange nccl needs a GPU and there is none; CPU fleets use shm, unix or tcp");
  }
  if (network.problems.empty()) {
    std::printf("nothing wrong was found\n");
    return kExitOk;
  }
  for (const std::string& problem : network.problems) std::printf("wrong: %s\n", problem.c_str());
  return kExitFailed;
}

}  // namespace

int RunDoctor(int argc, char** argv) {
  CLI::App app(
      "What the exchange of this host will run on: network interfaces, NCCL, GPUs, what NCCL will "
      "use and why, and what is wrong. Exit code 0: nothing; 1: something.",
      "shoal doctor");
  std::string library;
  app.add_option("--nccl-library", library, "default: $SHOAL_NCCL_LIBRARY, else libnccl.so.2");
  if (const int code = ParseOrExitCode(app, argc, argv); code >= 0) return code;
  return Run(library);
}

}  // namespace shoal
