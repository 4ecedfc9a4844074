// A device that fails, or is full, when a test wants it to.
#pragma once

#include <cstdint>
#include <string>
#include <utility>

#include "tests/support/forwarding_backend.h"

namespace shoal {

// After FailWith() everything that waits for the device throws, as a GPU's error does; operations
// go on queueing.
class FaultyBackend final : public ForwardingBackend {
 public:
  using ForwardingBackend::ForwardingBackend;

  void FailWith(std::string why) { fault_ = std::move(why); }

  // Other processes hold the rest of its memory; what is allocated already stays.
  void LeaveFree(int64_t bytes) { free_bytes_ = bytes; }

  void* Allocate(size_t bytes) override {
    const auto wanted = static_cast<int64_t>(bytes);
    if (wanted > free_bytes_) return nullptr;
    void* const data = ForwardingBackend::Allocate(bytes);
    if (data != nullptr) free_bytes_ -= wanted;
    return data;
  }

  void Free(void* data, size_t bytes) override {
    ForwardingBackend::Free(data, bytes);
    free_bytes_ += static_cast<int64_t>(bytes);
  }

  void Read(void* host, const void* device, size_t bytes) override {
    ThrowFault();
    ForwardingBackend::Read(host, device, bytes);
  }

  void Synchronize() override {
    ThrowFault();
    ForwardingBackend::Synchronize();
  }

  void Sample(const SampleArgs& args) override {
    ThrowFault();
    ForwardingBackend::Sample(args);
  }

 private:
  void ThrowFault() const {
    if (!fault_.empty()) throw DeviceFault(fault_);
  }

  std::string fault_;
  int64_t free_bytes_ = int64_t{1} << 40;
};

}  // namespace shoal
