// What decorators of a device have in common: everything goes to the device inside.
#pragma once

#include <functional>
#include <string_view>

#include "kernels/backend.h"

namespace shoal {

// Overridden where a test wants something else. `inner` outlives it. Threads: as the backend
// inside.
class ForwardingBackend : public Backend {
 public:
  explicit ForwardingBackend(Backend* inner) : inner_(*inner) {}

  std::string_view name() const override { return inner_.name(); }

  std::string_view numerics_class() const override { return inner_.numerics_class(); }

  void* Allocate(size_t bytes) override { return inner_.Allocate(bytes); }

  void Free(void* data, size_t bytes) override { inner_.Free(data, bytes); }

  void Write(void* device, const void* host, size_t bytes) override {
    inner_.Write(device, host, bytes);
  }

  void Read(void* host, const void* device, size_t bytes) override {
    inner_.Read(host, device, bytes);
  }

  void Synchronize() override { inner_.Synchronize(); }

  bool Replay(uint64_t key, const std::function<bool()>& ops) override {
    return inner_.Replay(key, ops);
  }

  void ForgetReplays() override { inner_.ForgetReplays(); }

  int64_t PackedBytes(ExpertFormat format, int64_t out, int64_t in) const override {
    return inner_.PackedBytes(format, out, in);
  }

  void Repack(const RepackArgs& args) override { inner_.Repack(args); }

  void Embed(const EmbedArgs& args) override { inner_.Embed(args); }

  void RmsNorm(const RmsNormArgs& args) override { inner_.RmsNorm(args); }

  void Linear(const LinearArgs& args) override { inner_.Linear(args); }

  void RopeAndAppend(const RopeAndAppendArgs& args) override { inner_.RopeAndAppend(args); }

  void Attention(const AttentionArgs& args) override { inner_.Attention(args); }

  void SelectExperts(const SelectExpertsArgs& args) override { inner_.SelectExperts(args); }

  void GroupByExpert(const GroupByExpertArgs& args) override { inner_.GroupByExpert(args); }

  void FillSlots(const FillSlotsArgs& args) override { inner_.FillSlots(args); }

  void GroupSlots(const GroupSlotsArgs& args) override { inner_.GroupSlots(args); }

  void PickRows(const PickRowsArgs& args) override { inner_.PickRows(args); }

  void SumSlots(const SumSlotsArgs& args) override { inner_.SumSlots(args); }

  void ExpertMlp(const ExpertMlpArgs& args) override { inner_.ExpertMlp(args); }

  void Sample(const SampleArgs& args) override { inner_.Sample(args); }

 protected:
  Backend& inner_;
};

}  // namespace shoal
