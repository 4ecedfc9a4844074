#include "cli/gpus.h"

#include <dlfcn.h>

#include <array>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"

#include "base/status_macros.h"

namespace shoal {
namespace {

// The part of NVML's C interface that is used here. Its results: 0 is success.
using Device = void*;

struct Nvml {
  int (*init)() = nullptr;
  int (*shutdown)() = nullptr;
  int (*driver_version)(char*, unsigned) = nullptr;
  int (*count)(unsigned*) = nullptr;
  int (*handle)(unsigned, Device*) = nullptr;
  int (*name)(Device, char*, unsigned) = nullptr;
  int (*uuid)(Device, char*, unsigned) = nullptr;
  int (*common_ancestor)(Device, Device, int*) = nullptr;
  int (*p2p_status)(Device, Device, int index, int*) = nullptr;
};

constexpr int kP2pNvlink = 2;  // NVML_P2P_CAPS_INDEX_NVLINK

template <typename Function>
absl::Status Find(void* library, const char* symbol, Function* out) {
  *out = reinterpret_cast<Function>(dlsym(library, symbol));
  if (*out != nullptr) return absl::OkStatus();
  return absl::NotFoundError(absl::StrCat("libnvidia-ml.so.1 has no ", symbol));
}

absl::Status Load(Nvml* nvml) {
  void* const library = dlopen("libnvidia-ml.so.1", RTLD_NOW | RTLD_LOCAL);
  if (library == nullptr) {
    return absl::NotFoundError(absl::StrCat("no NVIDIA driver: ", dlerror()));
  }
  RETURN_IF_ERROR(Find(library, "nvmlInit_v2", &nvml->init));
  RETURN_IF_ERROR(Find(library, "nvmlShutdown", &nvml->shutdown));
  RETURN_IF_ERROR(Find(library, "nvmlSystemGetDriverVersion", &nvml->driver_version));
  RETURN_IF_ERROR(Find(library, "nvmlDeviceGetCount_v2", &nvml->count));
  RETURN_IF_ERROR(Find(library, "nvmlDeviceGetHandleByIndex_v2", &nvml->handle));
  RETURN_IF_ERROR(Find(library, "nvmlDeviceGetName", &nvml->name));
  RETURN_IF_ERROR(Find(library, "nvmlDeviceGetUUID", &nvml->uuid));
  RETURN_IF_ERROR(Find(library, "nvmlDeviceGetTopologyCommonAncestor", &nvml->common_ancestor));
  return Find(library, "nvmlDeviceGetP2PStatus", &nvml->p2p_status);
}

// nvmlGpuTopologyLevel_t.
std::string NameOfLevel(int level) {
  switch (level) {
    case 0:
      return "one board";
    case 10:
      return "one PCIe switch";
    case 20:
      return "several PCIe switches";
    case 30:
      return "one host bridge";
    case 40:
      return "one NUMA node";
    case 50:
      return "across the system";
    default:
      return absl::StrCat("level ", level);
  }
}

std::string PathBetween(const Nvml& nvml, Device a, Device b) {
  int status = -1;
  if (nvml.p2p_status(a, b, kP2pNvlink, &status) == 0 && status == 0) return "NVLink";
  int level = -1;
  if (nvml.common_ancestor(a, b, &level) != 0) return "unknown";
  return NameOfLevel(level);
}

}  // namespace

absl::StatusOr<GpuTopology> ListGpus() {
  Nvml nvml;
  RETURN_IF_ERROR(Load(&nvml));
  if (const int result = nvml.init(); result != 0) {
    return absl::NotFoundError(
        absl::StrCat("the NVIDIA driver's library is here, but nvmlInit answers ", result));
  }
  GpuTopology topology;
  std::array<char, 96> text{};
  if (nvml.driver_version(text.data(), text.size()) == 0) topology.driver = text.data();
  unsigned count = 0;
  nvml.count(&count);
  std::vector<Device> devices;
  for (unsigned i = 0; i < count; ++i) {
    Device device = nullptr;
    if (nvml.handle(i, &device) != 0) continue;
    Gpu& gpu = topology.gpus.emplace_back();
    if (nvml.name(device, text.data(), text.size()) == 0) gpu.name = text.data();
    if (nvml.uuid(device, text.data(), text.size()) == 0) gpu.uuid = text.data();
    devices.push_back(device);
  }
  topology.paths.assign(devices.size(), std::vector<std::string>(devices.size()));
  for (size_t a = 0; a < devices.size(); ++a) {
    for (size_t b = 0; b < devices.size(); ++b) {
      if (a != b) topology.paths[a][b] = PathBetween(nvml, devices[a], devices[b]);
    }
  }
  nvml.shutdown();
  if (topology.gpus.empty()) {
    return absl::NotFoundError(
        absl::StrCat("NVIDIA driver ", topology.driver, ", but no GPU that it may use"));
  }
  return topology;
}

}  // namespace shoal
