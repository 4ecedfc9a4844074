// A whole forward pass of a small model with every operation compared: prompts in chunks, then
// decode steps, on CPU and GPU side by side. Exit code 0: no operation disagrees, 1: the first one
// that does is named, 77: no device.
#include <cstdio>
#include <string>

#include "kernels/cpu/backend.h"
#include "kernels/cuda/backend.h"
#include "tests/gpu/device_arrays.h"
#include "tests/gpu/drive.h"
#include "tests/support/parity_backend.h"

int main() {
  std::string error;
  const auto gpu = shoal::CudaBackend::Open({.device = 0}, &error);
  if (gpu == nullptr) {
    std::printf("SKIPPED: no CUDA device: %s\n", error.c_str());
    return shoal::gpu::kNoDevice;
  }
  shoal::CpuBackend cpu({.num_threads = 8});
  try {
    shoal::ParityBackend both(&cpu, gpu.get());
    constexpr int kSequences = 21;
    shoal::gpu::StepModel model(&both,
                                nullptr,
                                shoal::gpu::kSmall,
                                kSequences,
                                shoal::gpu::kDrivePositions,
                                /*max_rows=*/2'048,
                                /*repeats=*/false);
    shoal::gpu::Drive(model, kSequences, /*batch=*/7, /*chunk=*/128);
    std::printf("forward: %lld operations agree, largest relative error %.2e\n",
                static_cast<long long>(both.num_operations()),
                both.largest_error());
  } catch (const shoal::DeviceFault& fault) {
    std::printf("FAILED: %s\n", fault.what());
    return 1;
  }
  return 0;
}
