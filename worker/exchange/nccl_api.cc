#include "worker/exchange/nccl_api.h"

#include <dlfcn.h>

#include <cstdlib>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"

#include "base/status_macros.h"

namespace shoal {
namespace {

constexpr char kLibrary[] = "libnccl.so.2";
constexpr char kOverride[] = "SHOAL_NCCL_LIBRARY";
// Where CUDA's packages put it when the loader's path does not have it.
constexpr const char* kCudaPlaces[] = {
    "/usr/local/cuda/lib/libnccl.so.2",
    "/usr/local/cuda/lib64/libnccl.so.2",
};

std::vector<std::string> Candidates(const std::string& path) {
  if (!path.empty()) return {path};
  if (const char* named = std::getenv(kOverride); named != nullptr && *named != '\0') {
    return {named};
  }
  std::vector<std::string> candidates = {kLibrary};
  candidates.insert(candidates.end(), std::begin(kCudaPlaces), std::end(kCudaPlaces));
  return candidates;
}

// The file behind a loaded library, whose name alone may have been given.
std::string PathOf(void* symbol, const std::string& name) {
  Dl_info info{};
  const bool is_known = dladdr(symbol, &info) != 0 && info.dli_fname != nullptr;
  return is_known ? info.dli_fname : name;
}

template <typename Function>
absl::Status Find(void* library, const char* symbol, const std::string& path, Function* out) {
  *out = reinterpret_cast<Function>(dlsym(library, symbol));
  if (*out != nullptr) return absl::OkStatus();
  return absl::FailedPreconditionError(absl::StrCat(
      path, " has no ", symbol, ": NCCL ", NcclVersionText(kNcclVersion), " or later is needed"));
}

absl::Status FindAll(void* library, const std::string& path, NcclApi* api) {
  RETURN_IF_ERROR(Find(library, "ncclGetVersion", path, &api->get_version));
  RETURN_IF_ERROR(Find(library, "ncclGetUniqueId", path, &api->get_unique_id));
  RETURN_IF_ERROR(Find(library, "ncclCommInitRankConfig", path, &api->comm_init_rank_config));
  RETURN_IF_ERROR(Find(library, "ncclCommGetAsyncError", path, &api->comm_get_async_error));
  RETURN_IF_ERROR(Find(library, "ncclCommAbort", path, &api->comm_abort));
  RETURN_IF_ERROR(Find(library, "ncclGroupStart", path, &api->group_start));
  RETURN_IF_ERROR(Find(library, "ncclGroupEnd", path, &api->group_end));
  RETURN_IF_ERROR(Find(library, "ncclSend", path, &api->send));
  RETURN_IF_ERROR(Find(library, "ncclRecv", path, &api->recv));
  RETURN_IF_ERROR(Find(library, "ncclGetErrorString", path, &api->get_error_string));
  return Find(library, "ncclGetLastError", path, &api->get_last_error);
}

absl::StatusCode CodeOf(NcclResult result) {
  switch (result) {
    case NcclResult::kSuccess:
    case NcclResult::kInProgress:
      return absl::StatusCode::kOk;
    case NcclResult::kSystemError:
    case NcclResult::kRemoteError:
      return absl::StatusCode::kUnavailable;
    case NcclResult::kInvalidArgument:
      return absl::StatusCode::kInvalidArgument;
    case NcclResult::kInvalidUsage:
      return absl::StatusCode::kFailedPrecondition;
    case NcclResult::kUnhandledCudaError:
    case NcclResult::kInternalError:
      break;
  }
  // The device's or the library's fault: the worker is of no use for this epoch.
  return absl::StatusCode::kUnavailable;
}

}  // namespace

std::string NcclVersionText(int version) {
  if (version < 10'000) {  // Up to 2.8: major * 1000 + minor * 100 + patch
    return absl::StrCat(version / 1'000, ".", version % 1'000 / 100, ".", version % 100);
  }
  return absl::StrCat(version / 10'000, ".", version % 10'000 / 100, ".", version % 100);
}

absl::Status CheckNcclVersion(int version, absl::string_view path) {
  const int major = NcclMajor(kNcclVersion);
  if (NcclMajor(version) == major && version >= kNcclVersion) return absl::OkStatus();
  return absl::FailedPreconditionError(absl::StrCat(path,
                                                    " is NCCL ",
                                                    NcclVersionText(version),
                                                    "; accepted are ",
                                                    NcclVersionText(kNcclVersion),
                                                    " and later versions of ",
                                                    major,
                                                    ".x"));
}

absl::StatusOr<NcclApi> LoadNccl(const std::string& path) {
  const std::vector<std::string> candidates = Candidates(path);
  std::vector<std::string> failures;
  for (const std::string& candidate : candidates) {
    void* const library = dlopen(candidate.c_str(), RTLD_NOW | RTLD_LOCAL);
    if (library == nullptr) {
      failures.push_back(dlerror());
      continue;
    }
    NcclApi api;
    RETURN_IF_ERROR(FindAll(library, candidate, &api));
    api.path = PathOf(reinterpret_cast<void*>(api.get_version), candidate);
    const NcclResult result = api.get_version(&api.version);
    RETURN_IF_ERROR(NcclStatus(api, result, "ncclGetVersion"));
    RETURN_IF_ERROR(CheckNcclVersion(api.version, api.path));
    api.is_on_host = dlsym(library, "shoal_nccl_on_host") != nullptr;
    return api;
  }
  return absl::NotFoundError(
      absl::StrCat("no NCCL library (",
                   absl::StrJoin(failures, "; "),
                   "); install NCCL ",
                   NcclVersionText(kNcclVersion),
                   " or later, or name the file in --exchange nccl:FILE or $",
                   kOverride));
}

absl::Status NcclStatus(const NcclApi& api, NcclResult result, absl::string_view what) {
  const absl::StatusCode code = CodeOf(result);
  if (code == absl::StatusCode::kOk) return absl::OkStatus();
  std::string text = absl::StrCat(what, ": ", api.get_error_string(result));
  // Of the calling thread's last failure, whatever communicator it belongs to.
  const char* detail = api.get_last_error(nullptr);
  if (detail != nullptr && *detail != '\0') absl::StrAppend(&text, ": ", detail);
  return absl::Status(code, text);
}

}  // namespace shoal
