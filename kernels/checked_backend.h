// A backend that believes nothing: every argument of an operation is verified before it runs.
#pragma once

#include <memory>
#include <string_view>

#include "kernels/backend.h"

namespace shoal {

// Decorator. Crashes, naming the condition, if a shape, data type, stride, alignment, pointer or
// index breaks the contract in backend.h. Indices (ids, slots, tables, pairs) are read from the
// views, so they must be readable by the host: for the CPU backend, in debug builds and all tests.
// Costs a pass over the indices, none over the tensors. Threads: as the backend inside.
class CheckedBackend final : public Backend {
 public:
  explicit CheckedBackend(std::unique_ptr<Backend> inner);
  ~CheckedBackend() override;

  std::string_view name() const override { return inner_->name(); }

  std::string_view numerics_class() const override { return inner_->numerics_class(); }

  void* Allocate(size_t bytes) override;
  void Free(void* data, size_t bytes) override;
  void Write(void* device, const void* host, size_t bytes) override;
  void Read(void* host, const void* device, size_t bytes) override;

  void Synchronize() override { inner_->Synchronize(); }

  bool Replay(uint64_t key, const std::function<bool()>& ops) override {
    return inner_->Replay(key, ops);
  }

  void ForgetReplays() override { inner_->ForgetReplays(); }

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
  std::unique_ptr<Backend> inner_;
};

}  // namespace shoal
