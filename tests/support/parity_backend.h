// Two devices side by side: every operation runs on both, and the first that disagrees ends it all.
#pragma once

#include <cstdint>
#include <functional>
#include <map>
#include <string>
#include <string_view>
#include <vector>

#include "kernels/backend.h"

namespace shoal {

// Decorator. All memory is `device`'s, with a shadow of the host's for the specification; after
// each operation the device's results are compared with the shadow's and then take their place, so
// that one operation's error never hides in the next one's input. Throws DeviceFault, naming the
// operation and the error, at the first disagreement. Slow: for small models. Both backends outlive
// it. One thread.
class ParityBackend final : public Backend {
 public:
  ParityBackend(Backend* specification, Backend* device);
  ~ParityBackend() override;

  int64_t num_operations() const { return num_operations_; }

  // The largest relative error of any operation that sums.
  double largest_error() const { return largest_error_; }

  std::string_view name() const override { return device_.name(); }

  std::string_view numerics_class() const override { return device_.numerics_class(); }

  void* Allocate(size_t bytes) override;
  void Free(void* data, size_t bytes) override;
  void Write(void* device, const void* host, size_t bytes) override;
  void Read(void* host, const void* device, size_t bytes) override;

  void Synchronize() override { device_.Synchronize(); }

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

 private:
  struct Memory {
    void* shadow;
    size_t bytes;
  };

  template <typename T>
  T* Shadow(T* device) const;
  TensorView Shadow(TensorView view) const;
  IndexView Shadow(const IndexView& view) const;
  KvLayer Shadow(KvLayer layer) const;
  PackedMatrix Shadow(const PackedMatrix& matrix) const;

  // Compares `bytes` of the device's memory with its shadow's. bound 0: every bit. The elements are
  // T; otherwise the Euclidean error relative to the shadow's norm counts.
  template <typename T>
  void Compare(const char* operation, const T* device, int64_t count, double bound);
  void Compare(const char* operation, const TensorView& device, double bound);

  Backend& specification_;
  Backend& device_;
  std::map<const std::byte*, Memory> memory_;                  // By the device's first address
  std::map<const std::byte*, std::vector<std::byte>> packed_;  // Of the specification, likewise
  int64_t num_operations_ = 0;
  double largest_error_ = 0.0;
};

}  // namespace shoal
