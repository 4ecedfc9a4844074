// What the CUDA backend is in a binary that was built without it.
#include "kernels/cuda/backend.h"

namespace shoal {

std::unique_ptr<CudaBackend> CudaBackend::Open(const CudaBackendOptions& /*options*/,
                                               std::string* error) {
  *error =
      "this shoal was built without CUDA: build it with the cuda preset (-DSHOAL_CUDA=ON), or use "
      "--backend cpu";
  return nullptr;
}

}  // namespace shoal
