// Arrays and backends for the tests of kernels/: made from a seed, checked by nobody here.
#pragma once

#include <cmath>
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "kernels/cpu/backend.h"
#include "kernels/numeric.h"
#include "kernels/tensor.h"

namespace shoal {

// A standard normal number by its address (Box and Muller; the C library is good enough here).
inline double Normal(uint64_t seed, int64_t index) {
  const double u = 1.0 - Uniform(seed, 2 * index);
  const double v = Uniform(seed, 2 * index + 1);
  return std::sqrt(-2.0 * std::log(u)) * std::cos(2.0 * 3.14159265358979323846 * v);
}

inline std::vector<Bf16> RandomBf16(uint64_t seed, int64_t count, double scale) {
  std::vector<Bf16> values(static_cast<size_t>(count));
  for (int64_t i = 0; i < count; ++i) {
    values[static_cast<size_t>(i)] = ToBf16(static_cast<float>(scale * Normal(seed, i)));
  }
  return values;
}

inline std::vector<float> RandomFloats(uint64_t seed, int64_t count, double scale) {
  std::vector<float> values(static_cast<size_t>(count));
  for (int64_t i = 0; i < count; ++i) {
    values[static_cast<size_t>(i)] = static_cast<float>(scale * Normal(seed, i));
  }
  return values;
}

inline std::vector<Bf16> ToBf16s(const std::vector<float>& values) {
  std::vector<Bf16> result(values.size());
  for (size_t i = 0; i < values.size(); ++i) result[i] = ToBf16(values[i]);
  return result;
}

inline TensorView View(std::vector<Bf16>& values, int64_t rows, int64_t cols) {
  return MakeTensor(values.data(), DType::kBf16, rows, cols);
}

inline TensorView View(std::vector<float>& values, int64_t rows, int64_t cols) {
  return MakeTensor(values.data(), DType::kF32, rows, cols);
}

inline TensorView View(std::vector<int32_t>& values, int64_t rows, int64_t cols) {
  return MakeTensor(values.data(), DType::kI32, rows, cols);
}

inline IndexView Index(const std::vector<int32_t>& values) {
  return {.data = values.data(), .size = static_cast<int64_t>(values.size())};
}

// A backend with the threads and the instruction set that its name says.
struct NamedBackend {
  std::string name;
  std::unique_ptr<Backend> backend;
};

// Every instruction set of this processor, with one thread and with three. The first entry is the
// specification: scalar, one thread.
inline std::vector<NamedBackend> AllBackends() {
  std::vector<NamedBackend> all;
  for (const CpuIsa isa : {CpuIsa::kScalar, CpuIsa::kAvx2, CpuIsa::kAvx512}) {
    if (isa > BestCpuIsa()) continue;
    for (const int num_threads : {1, 3}) {
      CpuBackendOptions options;
      options.num_threads = num_threads;
      options.isa = isa;
      all.push_back(
          {.name = std::string(CpuIsaName(isa)) + ", threads " + std::to_string(num_threads),
           .backend = std::make_unique<CpuBackend>(options)});
    }
  }
  return all;
}

}  // namespace shoal
