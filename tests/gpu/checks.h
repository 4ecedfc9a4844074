// What the parity programs share: two backends, a count of checks, and how a failed one is told.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <functional>
#include <string>
#include <vector>

#include "tests/gpu/device_arrays.h"
#include "tests/kernels/arrays.h"

namespace shoal::gpu {

inline constexpr double kBf16Near = 6e-3;  // Two roundings of an intermediate, one of the result
inline constexpr double kF32Near = 3e-5;
inline constexpr Bf16 kPoison{0x7fc1};

class Checks {
 public:
  Checks(Backend* cpu, Backend* gpu, bool is_quick) : cpu_(*cpu), gpu_(*gpu), quick_(is_quick) {}

  void Section(const char* name, const std::function<void()>& body) {
    const int checks = num_checks_, failed = num_failed_;
    worst_ = 0.0;
    body();
    std::printf("%-12s %5d checks  %3d failed  largest relative error %.2e\n",
                name,
                num_checks_ - checks,
                num_failed_ - failed,
                worst_);
    std::fflush(stdout);
  }

  void Check(bool holds, const std::string& what) {
    ++num_checks_;
    if (holds) return;
    if (++num_failed_ <= 40) std::printf("FAILED: %s\n", what.c_str());
  }

  template <typename T>
  void CheckNear(const std::vector<T>& gpu,
                 const std::vector<T>& cpu,
                 double bound,
                 const std::string& what) {
    const double error = RelativeError(gpu, cpu);
    if (error < HUGE_VAL) worst_ = std::max(worst_, error);
    char text[64];
    std::snprintf(text, sizeof(text), ": relative error %.3e", error);
    Check(error <= bound, what + text);
  }

  int num_checks() const { return num_checks_; }

  int num_failed() const { return num_failed_; }

 protected:
  Backend& cpu_;
  Backend& gpu_;
  const bool quick_;

 private:
  int num_checks_ = 0;
  int num_failed_ = 0;
  double worst_ = 0.0;
};

// One of the three groups of operations; returns how many checks failed.
int CheckDense(Backend* cpu, Backend* gpu, bool is_quick);
int CheckExperts(Backend* cpu, Backend* gpu, bool is_quick);
int CheckChoices(Backend* cpu, Backend* gpu, bool is_quick);

}  // namespace shoal::gpu
