// Copies of host arrays on the GPU, and how near two results are: for the programs of tests/gpu,
// which have neither GoogleTest nor anything else but the kernels.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <string>
#include <vector>

#include "kernels/backend.h"
#include "kernels/numeric.h"

namespace shoal::gpu {

// Exit code of a program that found no device; run.sh passes it on. As automake's "skipped".
inline constexpr int kNoDevice = 77;

// Owns device memory until it goes out of scope.
class DeviceArrays {
 public:
  explicit DeviceArrays(Backend* gpu) : gpu_(*gpu) {}

  ~DeviceArrays() {
    for (const auto& [data, bytes] : owned_) gpu_.Free(data, bytes);
  }

  DeviceArrays(const DeviceArrays&) = delete;
  DeviceArrays& operator=(const DeviceArrays&) = delete;

  template <typename T>
  T* Put(const std::vector<T>& values) {
    T* const data = static_cast<T*>(Allocate(values.size() * sizeof(T)));
    gpu_.Write(data, values.data(), values.size() * sizeof(T));
    return data;
  }

  void* Allocate(size_t bytes) {
    void* const data = gpu_.Allocate(bytes);
    if (data == nullptr) {
      std::fprintf(stderr, "out of device memory: %zu bytes\n", bytes);
      std::exit(1);
    }
    owned_.emplace_back(data, bytes);
    return data;
  }

  template <typename T>
  std::vector<T> Get(const T* data, size_t count) {
    std::vector<T> values(count);
    gpu_.Read(values.data(), data, count * sizeof(T));
    return values;
  }

 private:
  Backend& gpu_;
  std::vector<std::pair<void*, size_t>> owned_;
};

inline double Number(float x) {
  return static_cast<double>(x);
}

inline double Number(Bf16 x) {
  return static_cast<double>(ToFloat(x));
}

// |a - b| / |b|, Euclidean; infinite where either holds a NaN that the other does not.
template <typename T>
double RelativeError(const std::vector<T>& a, const std::vector<T>& b) {
  double difference = 0.0;
  double norm = 0.0;
  for (size_t i = 0; i < a.size(); ++i) {
    const double x = Number(a[i]);
    const double y = Number(b[i]);
    if (std::isnan(x) != std::isnan(y)) return HUGE_VAL;
    if (std::isnan(x)) continue;
    difference += (x - y) * (x - y);
    norm += y * y;
  }
  return norm == 0.0 ? (difference == 0.0 ? 0.0 : HUGE_VAL) : std::sqrt(difference / norm);
}

template <typename T>
bool EqualBits(const std::vector<T>& a, const std::vector<T>& b) {
  return a.size() == b.size() && std::memcmp(a.data(), b.data(), a.size() * sizeof(T)) == 0;
}

// FNV-1a over the bytes.
inline uint64_t Hash(const void* data, size_t bytes, uint64_t hash = 0xcbf29ce484222325u) {
  const auto* p = static_cast<const uint8_t*>(data);
  for (size_t i = 0; i < bytes; ++i) hash = (hash ^ p[i]) * 0x100000001b3u;
  return hash;
}

}  // namespace shoal::gpu
