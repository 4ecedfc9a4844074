// A backend whose packed form is the stored form: codes, then scales. Memory is counted and may run
// out; operations of the model are not there.
#pragma once

#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <map>

#include "base/check.h"
#include "kernels/backend.h"

namespace shoal {

class LoadFakeBackend : public Backend {
 public:
  explicit LoadFakeBackend(int64_t max_bytes = int64_t{1} << 40) : max_bytes_(max_bytes) {}

  ~LoadFakeBackend() override { CHECK(blocks_.empty()); }

  int64_t allocated_bytes() const { return allocated_bytes_; }

  std::string_view name() const override { return "load-fake"; }

  std::string_view numerics_class() const override { return "none"; }

  void* Allocate(size_t bytes) override {
    if (allocated_bytes_ + static_cast<int64_t>(bytes) > max_bytes_) return nullptr;
    void* data = std::aligned_alloc(64, bytes);
    allocated_bytes_ += static_cast<int64_t>(bytes);
    CHECK(blocks_.emplace(data, bytes).second);
    return data;
  }

  void Free(void* data, size_t bytes) override {
    CHECK_EQ(blocks_.erase(data), 1u);
    allocated_bytes_ -= static_cast<int64_t>(bytes);
    std::free(data);
  }

  void Write(void* device, const void* host, size_t bytes) override {
    std::memcpy(device, host, bytes);
  }

  void Read(void* host, const void* device, size_t bytes) override {
    std::memcpy(host, device, bytes);
  }

  void Synchronize() override {}

  static int64_t CodeBytes(ExpertFormat format, int64_t out, int64_t in) {
    return format == ExpertFormat::kMxfp4 ? out * in / 2 : out * in * 2;
  }

  int64_t PackedBytes(ExpertFormat format, int64_t out, int64_t in) const override {
    const int64_t bytes = CodeBytes(format, out, in) + out * in / kMxBlock;
    return (bytes + 63) / 64 * 64;
  }

  void Repack(const RepackArgs& args) override {
    const int64_t codes = CodeBytes(args.format, args.out, args.in);
    std::memcpy(args.packed, args.codes, static_cast<size_t>(codes));
    if (args.format == ExpertFormat::kMxfp4) {
      std::memcpy(
          args.packed + codes, args.scales, static_cast<size_t>(args.out * args.in / kMxBlock));
    } else {
      CHECK(args.scales == nullptr);
    }
  }

  void Embed(const EmbedArgs&) override { std::abort(); }

  void RmsNorm(const RmsNormArgs&) override { std::abort(); }

  void Linear(const LinearArgs&) override { std::abort(); }

  void RopeAndAppend(const RopeAndAppendArgs&) override { std::abort(); }

  void Attention(const AttentionArgs&) override { std::abort(); }

  void SelectExperts(const SelectExpertsArgs&) override { std::abort(); }

  void GroupByExpert(const GroupByExpertArgs&) override { std::abort(); }

  void FillSlots(const FillSlotsArgs&) override { std::abort(); }

  void GroupSlots(const GroupSlotsArgs&) override { std::abort(); }

  void PickRows(const PickRowsArgs&) override { std::abort(); }

  void SumSlots(const SumSlotsArgs&) override { std::abort(); }

  void ExpertMlp(const ExpertMlpArgs&) override { std::abort(); }

  void Sample(const SampleArgs&) override { std::abort(); }

 protected:
  // Whether `data` lies in memory of this backend.
  bool Owns(const void* data) const {
    const auto at = reinterpret_cast<uintptr_t>(data);
    for (const auto& [block, bytes] : blocks_) {
      const auto begin = reinterpret_cast<uintptr_t>(block);
      if (at >= begin && at < begin + bytes) return true;
    }
    return false;
  }

 private:
  const int64_t max_bytes_;
  int64_t allocated_bytes_ = 0;
  std::map<void*, size_t> blocks_;
};

}  // namespace shoal
