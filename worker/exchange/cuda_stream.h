// A GPU as the exchange sees it: the CUDA backend's own stream, so that rows, experts and NCCL take
// their places in one queue.
#pragma once

#include <memory>

#include "absl/status/statusor.h"

#include "kernels/cuda/backend.h"
#include "worker/exchange/device_stream.h"

namespace shoal {

// `backend` outlives the stream; both are the step thread's. kNotFound: no driver.
absl::StatusOr<std::unique_ptr<DeviceStream>> MakeCudaStream(CudaBackend* backend);

}  // namespace shoal
