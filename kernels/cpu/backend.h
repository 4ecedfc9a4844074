// The CPU backend: the specification of every operation, and its fast form.
#pragma once

#include <memory>
#include <optional>
#include <vector>

#include "kernels/backend.h"

namespace shoal {

class ThreadPool;

enum class CpuIsa : uint8_t { kScalar, kAvx2, kAvx512 };

// The best instruction set of this processor: kAvx512 needs AVX-512 F/BW/VL/DQ/VBMI/VNNI, kAvx2
// needs AVX2 and FMA.
CpuIsa BestCpuIsa();
std::string_view CpuIsaName(CpuIsa isa);
// "scalar", "avx2", "avx512"; nullopt for anything else.
std::optional<CpuIsa> ParseCpuIsa(std::string_view name);

struct CpuBackendOptions {
  int num_threads = 1;        // The calling thread is one of them.
  std::vector<int> cpus;      // If not empty: thread i is pinned to cpus[i]; num_threads entries.
  CpuIsa isa = BestCpuIsa();  // REQUIRES: this processor has it.
};

// Work is split over output rows or columns, never over a sum: the number of threads changes no
// bit.
class CpuBackend : public Backend {
 public:
  explicit CpuBackend(const CpuBackendOptions& options);
  ~CpuBackend() override;

  std::string_view name() const override;

  std::string_view numerics_class() const override { return "cpu"; }

  void* Allocate(size_t bytes) override;
  void Free(void* data, size_t bytes) override;
  void Write(void* device, const void* host, size_t bytes) override;
  void Read(void* host, const void* device, size_t bytes) override;

  void Synchronize() override {}

  int64_t PackedBytes(ExpertFormat format, int64_t out, int64_t in) const override;
  void Repack(const RepackArgs& args) override;
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

  // The dot-product table of the chosen instruction set; see dot.h.
  const struct DotTable& dot() const { return *dot_; }

 private:
  CpuIsa isa_;
  const struct DotTable* dot_;
  const struct RowKernels* row_kernels_;
  std::unique_ptr<ThreadPool> pool_;
};

}  // namespace shoal
