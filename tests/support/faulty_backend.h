// A device that fails, or is full, when a test wants it to.
#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <string_view>
#include <utility>

#include "kernels/backend.h"

namespace shoal {

// Decorator. After FailWith() everything that waits for the device throws, as a GPU's error does;
// operations go on queueing. `inner` outlives it. Threads: as the backend inside.
class FaultyBackend final : public Backend {
 public:
  explicit FaultyBackend(Backend* inner) : inner_(*inner) {}

  void FailWith(std::string why) { fault_ = std::move(why); }

  std::string_view name() const override { return inner_.name(); }

  std::string_view numerics_class() const override { return inner_.numerics_class(); }

  // Other processes hold the rest of its memory; what is allocated already stays.
  void LeaveFree(int64_t bytes) { free_bytes_ = bytes; }

  void* Allocate(size_t bytes) override {
    const auto wanted = static_cast<int64_t>(bytes);
    if (wanted > free_bytes_) return nullptr;
    void* const data = inner_.Allocate(bytes);
    if (data != nullptr) free_bytes_ -= wanted;
    return data;
  }

  void Free(void* data, size_t bytes) override {
    inner_.Free(data, bytes);
    free_bytes_ += static_cast<int64_t>(bytes);
  }

  void Write(void* device, const void* host, size_t bytes) override {
    inner_.Write(device, host, bytes);
  }

  void Read(void* host, const void* device, size_t bytes) override {
    ThrowFault();
    inner_.Read(host, device, bytes);
  }

  void Synchronize() override {
    ThrowFault();
    inner_.Synchronize();
  }

  void Replay(uint64_t key, const std::function<void()>& ops) override { inner_.Replay(key, ops); }

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

  void PickRows(const PickRowsArgs& args) override { inner_.PickRows(args); }

  void SumSlots(const SumSlotsArgs& args) override { inner_.SumSlots(args); }

  void ExpertMlp(const ExpertMlpArgs& args) override { inner_.ExpertMlp(args); }

  void Sample(const SampleArgs& args) override {
    ThrowFault();
    inner_.Sample(args);
  }

 private:
  void ThrowFault() const {
    if (!fault_.empty()) throw DeviceFault(fault_);
  }

  Backend& inner_;
  std::string fault_;
  int64_t free_bytes_ = int64_t{1} << 40;
};

}  // namespace shoal
