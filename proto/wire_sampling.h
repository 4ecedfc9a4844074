// SamplingSettings <-> protobuf.
#pragma once

#include "absl/status/status.h"

#include "proto/cluster.h"
#include "proto/cluster.pb.h"

namespace shoal {

void SetSampling(const SamplingSettings& settings, fleet::v1::SamplingSettings* out);
absl::Status GetSampling(const fleet::v1::SamplingSettings& p, SamplingSettings* out);

}  // namespace shoal
