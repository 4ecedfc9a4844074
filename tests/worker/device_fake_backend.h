// LoadFakeBackend as a device with a memory of its own: it makes synthetic weights itself, wants
// several readers, and knows which copies came from pinned memory.
#pragma once

#include <cstdint>
#include <map>

#include "base/check.h"
#include "kernels/synthetic.h"
#include "tests/worker/load_fake_backend.h"

namespace shoal {

class DeviceFakeBackend final : public LoadFakeBackend {
 public:
  using LoadFakeBackend::LoadFakeBackend;

  ~DeviceFakeBackend() override { CHECK(pinned_.empty()); }

  int num_readers() const override { return 4; }

  int64_t num_synthesized() const { return num_synthesized_; }

  int64_t pinned_bytes_written() const { return pinned_bytes_written_; }

  // One element after the other, by the formula alone.
  bool Synthesize(const SynthesizeArgs& args) override {
    for (int64_t i = 0; i < args.count; ++i) {
      const uint8_t b = SyntheticByte(args.formula.seed, args.first + i);
      switch (args.dtype) {
        case DType::kU8:
          static_cast<uint8_t*>(args.out)[i] = SyntheticU8(args.formula, b);
          break;
        case DType::kBf16:
          static_cast<Bf16*>(args.out)[i] = ToBf16(SyntheticFloat(args.formula, b));
          break;
        case DType::kF32:
          static_cast<float*>(args.out)[i] = SyntheticFloat(args.formula, b);
          break;
        case DType::kI32:
          CHECK(false);
      }
    }
    CHECK(args.count == 0 || Owns(args.out));
    num_synthesized_ += args.count;
    return true;
  }

  void Repack(const RepackArgs& args) override {
    CHECK_EQ(args.source == RepackArgs::Source::kDevice, Owns(args.codes));
    if (args.source == RepackArgs::Source::kHost) {
      CountPinned(args.codes, CodeBytes(args.format, args.out, args.in));
    }
    LoadFakeBackend::Repack(args);
  }

  void Write(void* device, const void* host, size_t bytes) override {
    CountPinned(host, static_cast<int64_t>(bytes));
    LoadFakeBackend::Write(device, host, bytes);
  }

  void Pin(const void* host, size_t bytes) override {
    CHECK(bytes > 0 && pinned_.emplace(host, bytes).second);
  }

  void Unpin(const void* host) override { CHECK_EQ(pinned_.erase(host), 1u); }

 private:
  void CountPinned(const void* host, int64_t bytes) {
    for (const auto& [begin, size] : pinned_) {
      const auto at = reinterpret_cast<uintptr_t>(host) - reinterpret_cast<uintptr_t>(begin);
      const bool is_inside = at <= size && static_cast<uint64_t>(bytes) <= size - at;
      if (is_inside) pinned_bytes_written_ += bytes;
    }
  }

  std::map<const void*, size_t> pinned_;
  int64_t num_synthesized_ = 0;
  int64_t pinned_bytes_written_ = 0;
};

}  // namespace shoal
