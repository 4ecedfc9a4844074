// One hash of tokens and logits, whatever the batch, the chunks and the replays: a small model's
// 200 sequences are driven through every combination of batch {1, 7, 32, 200}, chunk {1, 128, 1000}
// and graphs {off, on}, then with overlapping launches off. Exit code 0: one hash, 1: several, 77:
// no device.
#include <cstdio>
#include <set>
#include <string>
#include <vector>

#include "kernels/cuda/backend.h"
#include "tests/gpu/drive.h"
#include "tests/gpu/step_model.h"

namespace shoal::gpu {
namespace {

constexpr int kSequences = 200;

int Run(bool is_quick) {
  std::set<uint64_t> hashes;
  for (const auto& [replays, overlaps] : {std::pair{false, true}, {true, true}, {true, false}}) {
    std::string error;
    const auto gpu =
        CudaBackend::Open({.device = 0, .replays = replays, .overlaps_launches = overlaps}, &error);
    if (gpu == nullptr) {
      std::printf("SKIPPED: no CUDA device: %s\n", error.c_str());
      return kNoDevice;
    }
    StepModel model(
        gpu.get(), nullptr, kSmall, kSequences, kDrivePositions, 65'536, /*repeats=*/false);
    for (const int batch : {200, 32, 7, 1}) {
      for (const int32_t chunk : {1'000, 128, 1}) {
        if (is_quick && (batch == 1 || chunk == 1)) continue;
        if (!overlaps && (batch != 32 || chunk == 1)) continue;
        const uint64_t hash = Drive(model, kSequences, batch, chunk);
        hashes.insert(hash);
        std::printf("batch %3d  chunk %4d  graphs %s  overlap %s  %016llx\n",
                    batch,
                    chunk,
                    replays ? "on " : "off",
                    overlaps ? "on " : "off",
                    static_cast<unsigned long long>(hash));
        std::fflush(stdout);
      }
    }
  }
  std::printf("invariance: %zu hash%s\n", hashes.size(), hashes.size() == 1 ? "" : "es: FAILED");
  return hashes.size() == 1 ? 0 : 1;
}

}  // namespace
}  // namespace shoal::gpu

int main(int argc, char** argv) {
  try {
    return shoal::gpu::Run(argc > 1 && std::string(argv[1]) == "--quick");
  } catch (const shoal::DeviceFault& fault) {
    std::printf("FAILED: %s\n", fault.what());
    return 1;
  }
}
