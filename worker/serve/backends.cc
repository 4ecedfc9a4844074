#include "worker/serve/backends.h"

#include <algorithm>
#include <optional>
#include <utility>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/string_view.h"
#include "absl/strings/strip.h"

#include "base/status_macros.h"
#include "kernels/cpu/backend.h"
#include "kernels/cuda/backend.h"

namespace shoal {
namespace {

absl::StatusOr<CpuIsa> ChooseIsa(const std::string& name) {
  if (name.empty()) return BestCpuIsa();
  const std::optional<CpuIsa> isa = ParseCpuIsa(name);
  if (!isa.has_value()) {
    return absl::InvalidArgumentError(
        absl::StrCat("instruction set \"", name, "\": scalar, avx2 and avx512 are known"));
  }
  if (*isa > BestCpuIsa()) {
    return absl::FailedPreconditionError(absl::StrCat(
        "this processor has no ", name, "; its best is ", CpuIsaName(BestCpuIsa()).data()));
  }
  return *isa;
}

absl::StatusOr<Backends> OnCpu(const BackendOptions& options) {
  ASSIGN_OR_RETURN(const CpuIsa isa, ChooseIsa(options.isa));
  if (!options.cpus.empty() && options.cpus.size() != static_cast<size_t>(options.threads)) {
    return absl::InvalidArgumentError(
        absl::StrCat(options.cpus.size(), " CPUs for ", options.threads, " threads: one for each"));
  }
  Backends backends;
  backends.stepping = std::make_unique<CpuBackend>(
      CpuBackendOptions{.num_threads = options.threads, .cpus = options.cpus, .isa = isa});
  backends.loading =
      std::make_unique<CpuBackend>(CpuBackendOptions{.num_threads = 1, .cpus = {}, .isa = isa});
  return backends;
}

absl::StatusOr<Backends> OnGpu(int device) {
  std::string error;
  std::unique_ptr<CudaBackend> stepping = CudaBackend::Open({.device = device}, &error);
  if (stepping == nullptr) return absl::FailedPreconditionError(error);
  std::unique_ptr<CudaBackend> loading = CudaBackend::Open({.device = device}, &error);
  if (loading == nullptr) return absl::FailedPreconditionError(error);
  Backends backends;
  backends.free_bytes = stepping->FreeBytes();
  backends.gpu = stepping.get();
  backends.stepping = std::move(stepping);
  backends.loading = std::move(loading);
  return backends;
}

// Beyond what is planned a GPU also holds the operations' scratch (chunks of attention up to 0.5
// GB, hidden rows of experts 0.2 GB for 8,192 rows), kept graphs, machine code and an exchange's
// buffers: below 3 GB together by count, not measured. A tenth where that is less.
constexpr int64_t kMostUnplannedBytes = int64_t{4} << 30;

}  // namespace

absl::StatusOr<int64_t> UsableGpuBytes(int64_t free_bytes, int64_t dense_bytes) {
  const int64_t usable = free_bytes - std::min(free_bytes / 10, kMostUnplannedBytes);
  if (dense_bytes < usable) return usable;
  return absl::ResourceExhaustedError(
      absl::StrCat("the GPU is too small or too full: dense weights take ",
                   dense_bytes,
                   " bytes, ",
                   usable,
                   " of ",
                   free_bytes,
                   " free ones can be used; experts and K/V come on top"));
}

absl::StatusOr<Backends> MakeBackends(const BackendOptions& options) {
  absl::string_view rest = options.backend;
  if (rest == "cpu") return OnCpu(options);
  int device = 0;
  const bool is_cuda = absl::ConsumePrefix(&rest, "cuda") &&
                       (rest.empty() || (absl::ConsumePrefix(&rest, ":") &&
                                         absl::SimpleAtoi(rest, &device) && device >= 0));
  if (!is_cuda) {
    return absl::InvalidArgumentError(absl::StrCat(
        "--backend \"", options.backend, "\": cpu, cuda and cuda:INDEX (from 0) are known"));
  }
  return OnGpu(device);
}

}  // namespace shoal
