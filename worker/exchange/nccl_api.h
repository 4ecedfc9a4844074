// libnccl.so.2 behind a table of functions, found when it is needed: one program runs with and
// without it, and tests put a scripted library in its place.
// Next: worker/exchange/nccl_session.h
#pragma once

#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"

#include "worker/exchange/nccl_abi.h"

namespace shoal {

// A loaded library: it stays loaded until the process ends, since its threads may. Copyable.
struct NcclApi {
  NcclResult (*get_version)(int*) = nullptr;
  NcclResult (*get_unique_id)(NcclUniqueId*) = nullptr;
  NcclResult (*comm_init_rank_config)(
      NcclCommHandle*, int num_ranks, NcclUniqueId, int rank, NcclConfig*) = nullptr;
  NcclResult (*comm_get_async_error)(NcclCommHandle, NcclResult*) = nullptr;
  NcclResult (*comm_abort)(NcclCommHandle) = nullptr;
  NcclResult (*group_start)() = nullptr;
  NcclResult (*group_end)() = nullptr;
  NcclResult (*send)(const void*, size_t count, int type, int peer, NcclCommHandle, void* stream) =
      nullptr;
  NcclResult (*recv)(void*, size_t count, int type, int peer, NcclCommHandle, void* stream) =
      nullptr;
  const char* (*get_error_string)(NcclResult) = nullptr;
  const char* (*get_last_error)(NcclCommHandle) = nullptr;

  int version = 0;   // As get_version() said
  std::string path;  // The file that was loaded
  // Works on host memory and on host_stream.h's streams. The real library does not; the scripted
  // one says so by a symbol of its own, shoal_nccl_on_host.
  bool is_on_host = false;
};

// "2.28.9".
std::string NcclVersionText(int version);

// kFailedPrecondition, naming what was found and what is accepted: the library's major version is
// not the header's, or it is older than the header.
absl::Status CheckNcclVersion(int version, absl::string_view path);

// Loads `path`, or, if it is empty, $SHOAL_NCCL_LIBRARY, or libnccl.so.2 of the usual places and of
// CUDA's. kNotFound: there is none, naming what was tried; kFailedPrecondition: it lacks a function
// or has a version that is not accepted.
absl::StatusOr<NcclApi> LoadNccl(const std::string& path);

// `result` of a call, as a status with the code of exchange.h and NCCL's own explanation. OK for
// kSuccess and kInProgress.
absl::Status NcclStatus(const NcclApi& api, NcclResult result, absl::string_view what);

}  // namespace shoal
