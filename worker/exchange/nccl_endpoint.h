// What a rank of a NCCL cell says about itself in its exchange endpoint, and whether the ranks of
// an epoch can be joined by NCCL at all: found out from their membership, before NCCL is asked,
// which would hang or answer with a riddle. Pure.
//
//     nccl:2.28.9;host=worker-7/5d0c…;device=GPU-8b1f…
#pragma once

#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"

#include "proto/cluster.h"

namespace shoal {

struct NcclEndpoint {
  std::string version;  // "2.28.9"
  // NCCL's idea of a host: $NCCL_HOSTID, else host name and boot id. NCCL refuses two ranks on one
  // device of one host.
  std::string host;
  std::string device;  // Empty: not to be compared (host memory)

  friend bool operator==(const NcclEndpoint&, const NcclEndpoint&) = default;
};

// Characters that would end a field become '_'.
std::string FormatNcclEndpoint(const NcclEndpoint& endpoint);

// kInvalidArgument if it is not one.
absl::StatusOr<NcclEndpoint> ParseNcclEndpoint(absl::string_view text);

// This process's host id, as NCCL will see it.
std::string NcclHostId();

// kFailedPrecondition, naming the ranks, their workers and both values, and pointing at those that
// differ from the majority: a rank that exchanges over something else, another NCCL version, or two
// ranks on one device without host ids of their own. All ranks come to the same verdict.
absl::Status CheckNcclPeers(const std::vector<Member>& members);

}  // namespace shoal
