// The part of NCCL's C interface that the exchange uses, declared by ourselves: no build needs
// nccl.h, and every build contains the exchange and its tests (docs/adr/0013). The layout is that
// of NCCL 2.28.9; tests/worker/nccl_abi_test.cc compares it with the real header where there is
// one.
#pragma once

#include <climits>
#include <cstddef>

namespace shoal {

// NCCL_VERSION_CODE of the header that the declarations follow. An older library may lack a field
// of NcclConfig; a later one of the same major version reads the version in it and knows better.
inline constexpr int kNcclVersion = 22809;

struct NcclCommObject;  // Opaque
using NcclCommHandle = NcclCommObject*;

enum class NcclResult : int {
  kSuccess = 0,
  kUnhandledCudaError = 1,
  kSystemError = 2,
  kInternalError = 3,
  kInvalidArgument = 4,
  kInvalidUsage = 5,
  kRemoteError = 6,
  kInProgress = 7,
};

struct NcclUniqueId {
  char bytes[128];
};

inline constexpr int kNcclUndefined = INT_MIN;

// ncclConfig_t. The names are NCCL's.
struct NcclConfig {
  size_t size = sizeof(NcclConfig);
  unsigned int magic = 0xcafebeef;
  unsigned int version = kNcclVersion;
  int blocking = kNcclUndefined;
  int cga_cluster_size = kNcclUndefined;
  int min_ctas = kNcclUndefined;
  int max_ctas = kNcclUndefined;
  const char* net_name = nullptr;
  int split_share = kNcclUndefined;
  int traffic_class = kNcclUndefined;
  const char* comm_name = nullptr;
  int collnet_enable = kNcclUndefined;
  int cta_policy = kNcclUndefined;
  int shrink_share = kNcclUndefined;
  int nvls_ctas = kNcclUndefined;
  int num_channels_per_net_peer = kNcclUndefined;
  int nvlink_centric_sched = kNcclUndefined;
};

inline constexpr int kNcclUint8 = 1;  // ncclUint8 of ncclDataType_t

// ncclGetVersion's number: from 2.9 on, major * 10000 + minor * 100 + patch.
constexpr int NcclMajor(int version) {
  return version < 10'000 ? version / 1'000 : version / 10'000;
}

}  // namespace shoal
