#include "worker/exchange/cuda_stream.h"

#include <dlfcn.h>

#include <algorithm>
#include <array>
#include <string>
#include <thread>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"

#include "base/status_macros.h"
#include "kernels/tensor.h"

namespace shoal {
namespace {

// What the backend does not offer, of the driver's C interface: found at run time, so that every
// build has this file. The step thread's context is the backend's, which made it current.
struct Driver {
  using Result = int;
  static constexpr Result kSuccess = 0;
  static constexpr Result kNotReady = 600;

  Result (*read_later)(void* host, uint64_t device, size_t bytes, CUstream_st*) = nullptr;
  Result (*copy_later)(uint64_t to, uint64_t from, size_t bytes, CUstream_st*) = nullptr;
  Result (*query)(CUstream_st*) = nullptr;
  Result (*allocate_host)(void**, size_t bytes, unsigned flags) = nullptr;
  Result (*free_host)(void*) = nullptr;
  Result (*current_device)(int*) = nullptr;
  Result (*uuid)(std::array<unsigned char, 16>*, int device) = nullptr;
};

template <typename Function>
absl::Status Find(void* library, const char* symbol, Function* out) {
  *out = reinterpret_cast<Function>(dlsym(library, symbol));
  if (*out != nullptr) return absl::OkStatus();
  return absl::NotFoundError(absl::StrCat("libcuda.so.1 has no ", symbol));
}

absl::StatusOr<Driver> LoadDriver() {
  void* const library = dlopen("libcuda.so.1", RTLD_NOW | RTLD_LOCAL);
  if (library == nullptr) return absl::NotFoundError(absl::StrCat("no CUDA driver: ", dlerror()));
  Driver driver;
  RETURN_IF_ERROR(Find(library, "cuMemcpyDtoHAsync_v2", &driver.read_later));
  RETURN_IF_ERROR(Find(library, "cuMemcpyDtoDAsync_v2", &driver.copy_later));
  RETURN_IF_ERROR(Find(library, "cuStreamQuery", &driver.query));
  RETURN_IF_ERROR(Find(library, "cuMemHostAlloc", &driver.allocate_host));
  RETURN_IF_ERROR(Find(library, "cuMemFreeHost", &driver.free_host));
  RETURN_IF_ERROR(Find(library, "cuCtxGetDevice", &driver.current_device));
  RETURN_IF_ERROR(Find(library, "cuDeviceGetUuid", &driver.uuid));
  return driver;
}

uint64_t Address(const void* data) {
  return reinterpret_cast<uint64_t>(data);
}

class CudaStream final : public DeviceStream {
 public:
  CudaStream(const Driver& driver, CudaBackend* backend) : driver_(driver), backend_(*backend) {
    int device = 0;
    std::array<unsigned char, 16> uuid{};
    if (driver_.current_device(&device) != Driver::kSuccess) return;
    if (driver_.uuid(&uuid, device) != Driver::kSuccess) return;
    device_id_ = "GPU-";
    for (const unsigned char byte : uuid) {
      absl::StrAppend(&device_id_, absl::Hex(byte, absl::kZeroPad2));
    }
  }

  ~CudaStream() override {
    if (index_ != nullptr) backend_.Free(index_, index_bytes_);
  }

  void* handle() override { return backend_.stream(); }

  bool is_compute_stream() const override { return true; }

  std::string device_id() const override { return device_id_; }

  void* Allocate(size_t bytes) override { return backend_.Allocate(bytes); }

  void Free(void* data, size_t bytes) override { backend_.Free(data, bytes); }

  void* AllocateHost(size_t bytes) override {
    void* data = nullptr;
    return driver_.allocate_host(&data, bytes, 0) == Driver::kSuccess ? data : nullptr;
  }

  void FreeHost(void* data, size_t /*bytes*/) override { driver_.free_host(data); }

  void Write(void* device, const void* host, size_t bytes) override {
    backend_.Write(device, host, bytes);
  }

  void Read(void* host, const void* device, size_t bytes) override {
    Keep(driver_.read_later(host, Address(device), bytes, backend_.stream()));
  }

  void Copy(void* to, const void* from, size_t bytes) override {
    if (bytes == 0) return;
    Keep(driver_.copy_later(Address(to), Address(from), bytes, backend_.stream()));
  }

  void Gather(
      void* to, const void* from, const int32_t* index, int64_t rows, int64_t row_bytes) override {
    if (rows == 0) return;
    const size_t bytes = static_cast<size_t>(rows) * sizeof(int32_t);
    if (bytes > index_bytes_) {
      if (index_ != nullptr) backend_.Free(index_, index_bytes_);
      index_bytes_ = std::max(bytes, 2 * index_bytes_);
      index_ = backend_.Allocate(index_bytes_);
    }
    backend_.Write(index_, index, bytes);
    const int64_t columns = row_bytes / DTypeBytes(DType::kBf16);
    backend_.PickRows({.x = MakeTensor(const_cast<void*>(from), DType::kBf16, rows, columns),
                       .index = {.data = static_cast<const int32_t*>(index_), .size = rows},
                       .out = MakeTensor(to, DType::kBf16, rows, columns)});
  }

  absl::StatusOr<bool> Wait(absl::Duration at_most) override {
    const absl::Time deadline = absl::Now() + at_most;
    while (true) {
      const Driver::Result result = driver_.query(backend_.stream());
      if (result != Driver::kNotReady) Keep(result);
      if (const std::string fault = backend_.Fault(); !fault.empty()) {
        return absl::UnavailableError(fault);
      }
      if (first_error_ != Driver::kSuccess) {
        return absl::UnavailableError(absl::StrCat("CUDA driver error ", first_error_));
      }
      if (result == Driver::kSuccess) return true;
      if (absl::Now() >= deadline) return false;
      std::this_thread::yield();
    }
  }

 private:
  void Keep(Driver::Result result) {
    if (first_error_ == Driver::kSuccess) first_error_ = result;
  }

  const Driver driver_;
  CudaBackend& backend_;
  std::string device_id_;
  void* index_ = nullptr;  // Device memory for Gather
  size_t index_bytes_ = 0;
  Driver::Result first_error_ = Driver::kSuccess;  // Sticky, as the device's are
};

}  // namespace

absl::StatusOr<std::unique_ptr<DeviceStream>> MakeCudaStream(CudaBackend* backend) {
  ASSIGN_OR_RETURN(const Driver driver, LoadDriver());
  return std::make_unique<CudaStream>(driver, backend);
}

}  // namespace shoal
