// The CUDA backend from inside: what the operations' files share.
#pragma once

#include <cuda_runtime.h>

#include <cstddef>
#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <unordered_map>
#include <utility>
#include <vector>

#include "kernels/cuda/backend.h"
#include "kernels/cuda/chip.h"
#include "kernels/kernel_check.h"

namespace shoal::cuda {

// Device memory that grows and is used again; the operations' scratch.
struct Scratch {
  void* data = nullptr;
  size_t bytes = 0;
};

enum class ScratchFor { kSums, kCounters, kHidden, kChunks, kLogits, kSettings, kCodes, kNum };

// A step kept as a graph. It is run once as it is, so that all scratch has its size, then captured.
struct KeptStep {
  bool was_run = false;
  cudaGraphExec_t graph = nullptr;
};

class Device final : public CudaBackend {
 public:
  Device(CudaDevice device, const Chip& chip, const CudaBackendOptions& options);
  ~Device() override;

  // Empty, or why the device cannot be used.
  std::string Start();

  CUstream_st* stream() const override { return stream_; }

  const CudaDevice& device() const override { return device_; }

  int64_t FreeBytes() const override;
  std::string Fault() const override;

  std::string_view name() const override { return name_; }

  std::string_view numerics_class() const override { return numerics_class_; }

  void* Allocate(size_t bytes) override;
  void Free(void* data, size_t bytes) override;
  void Write(void* device, const void* host, size_t bytes) override;
  void Read(void* host, const void* device, size_t bytes) override;
  void Synchronize() override;
  bool Replay(uint64_t key, const std::function<bool()>& ops) override;
  void ForgetReplays() override;

  int64_t PackedBytes(ExpertFormat format, int64_t out, int64_t in) const override;
  void Repack(const RepackArgs& args) override;
  bool Synthesize(const SynthesizeArgs& args) override;

  // A thread copies 4 to 6 GB/s out of the page cache, PCIe 5 takes 55, a fast disk gives 13.5.
  int num_readers() const override { return 4; }

  void Pin(const void* host, size_t bytes) override;
  void Unpin(const void* host) override;
  void Embed(const EmbedArgs& args) override;
  void RmsNorm(const RmsNormArgs& args) override;
  void Linear(const LinearArgs& args) override;
  void RopeAndAppend(const RopeAndAppendArgs& args) override;
  void Attention(const AttentionArgs& args) override;
  void SelectExperts(const SelectExpertsArgs& args) override;
  void GroupByExpert(const GroupByExpertArgs& args) override;
  void FillSlots(const FillSlotsArgs& args) override;
  void GroupSlots(const GroupSlotsArgs& args) override;
  void PickRows(const PickRowsArgs& args) override;
  void SumSlots(const SumSlotsArgs& args) override;
  void ExpertMlp(const ExpertMlpArgs& args) override;
  void Sample(const SampleArgs& args) override;

  // At least `bytes`; zeroed when it is new. Null, and a fault, if there is no memory.
  void* ScratchOf(ScratchFor use, size_t bytes);

  // Queues a kernel. Nothing happens for an empty grid or after a fault.
  template <typename... Params, typename... Args>
  void Launch(void (*kernel)(Params...), dim3 grid, int threads, size_t shared, Args&&... args) {
    if (grid.x == 0 || grid.y == 0 || grid.z == 0) return;
    cudaLaunchConfig_t config{};
    config.gridDim = grid;
    config.blockDim = dim3(static_cast<unsigned>(threads));
    config.dynamicSmemBytes = shared;
    config.stream = stream_;
    cudaLaunchAttribute attribute{};
    attribute.id = cudaLaunchAttributeProgrammaticStreamSerialization;
    attribute.val.programmaticStreamSerializationAllowed = 1;
    config.attrs = &attribute;
    config.numAttrs = overlaps_launches_ ? 1 : 0;
    constexpr size_t kFree = size_t{48} << 10;
    if (shared > kFree) {
      Check(cudaFuncSetAttribute(reinterpret_cast<const void*>(kernel),
                                 cudaFuncAttributeMaxDynamicSharedMemorySize,
                                 static_cast<int>(shared)),
            "shared memory of a kernel");
    }
    Check(cudaLaunchKernelEx(&config, kernel, Params(std::forward<Args>(args))...), "a kernel");
  }

  // Notes the first error; true: there was none.
  bool Check(cudaError_t error, const char* what);

 private:
  [[noreturn]] void ThrowFault() const;
  std::string AskCompiledCode(const std::string& gpu);
  void WriteStaged(std::byte* to, const std::byte* from, size_t bytes);
  std::span<const std::byte> PinnedPart(std::span<const std::byte> host) const;
  bool CaptureStep(KeptStep* step, const std::function<bool()>& ops);

  const CudaDevice device_;
  const Chip chip_;
  const bool replays_;
  const std::string name_;
  bool overlaps_launches_;  // Constant after Start(), as the next
  std::string numerics_class_;
  cudaStream_t stream_ = nullptr;
  std::string fault_;  // Of the device; empty: none

  // Pinned memory that Write() copies from: two halves, used in turn; an event says when the copies
  // out of a half are done.
  std::byte* staging_ = nullptr;
  size_t staging_used_ = 0;  // Of the current half
  int half_ = 0;
  cudaEvent_t half_free_[2] = {};

  // By what Pin() was given: the pages wholly inside.
  std::map<const void*, std::span<const std::byte>> pinned_;

  Scratch scratch_[static_cast<int>(ScratchFor::kNum)];
  std::unordered_map<uint64_t, KeptStep> kept_;
  std::vector<void*> retired_;  // Freed, but kept steps may name it
  bool is_capturing_ = false;
};

}  // namespace shoal::cuda
