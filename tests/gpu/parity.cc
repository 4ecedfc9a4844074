// Each CUDA operation against the CPU's, over awkward shapes, and each row against itself alone.
//
//   parity [--quick]      --quick: small shapes only, for compute-sanitizer
//
// Outputs are poisoned before each run. Operations that move or choose must be equal; sums must be
// near (the CPU's are accurate to fp32); a row's bits must not depend on the rows beside it, hence
// not on tile widths, instruction shapes or kernels. Exit code 0: all hold, 1: some do not, 77: no
// device.
#include <cstdio>
#include <string>
#include <string_view>

#include "kernels/cpu/backend.h"
#include "kernels/cuda/backend.h"
#include "tests/gpu/checks.h"
#include "tests/gpu/device_arrays.h"

int main(int argc, char** argv) {
  const bool is_quick = argc > 1 && std::string_view(argv[1]) == "--quick";
  std::string error;
  const auto gpu = shoal::CudaBackend::Open({.device = 0}, &error);
  if (gpu == nullptr) {
    std::printf("SKIPPED: no CUDA device: %s\n", error.c_str());
    return shoal::gpu::kNoDevice;
  }
  shoal::CpuBackend cpu({.num_threads = 8});
  std::printf("%s against %s\n", std::string(gpu->name()).c_str(), std::string(cpu.name()).c_str());
  try {
    int num_failed = 0;
    for (const auto check :
         {shoal::gpu::CheckDense, shoal::gpu::CheckChoices, shoal::gpu::CheckExperts}) {
      num_failed += check(&cpu, gpu.get(), is_quick);
    }
    std::printf("parity: %d failed\n", num_failed);
    return num_failed == 0 ? 0 : 1;
  } catch (const shoal::DeviceFault& fault) {
    std::printf("FAILED: %s\n", fault.what());
    return 1;
  }
}
