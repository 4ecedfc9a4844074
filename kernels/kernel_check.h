// The assertion of kernels/, which includes nothing of ours: always on, for our own bugs.
#pragma once

#include <cstdio>
#include <cstdlib>

namespace shoal::internal {

[[noreturn]] inline void KernelCheckFailed(const char* file, int line, const char* condition) {
  std::fprintf(stderr, "%s:%d: KERNEL_CHECK failed: %s\n", file, line, condition);
  std::fflush(stderr);
  std::abort();
}

}  // namespace shoal::internal

#define KERNEL_CHECK(condition)                                             \
  do {                                                                      \
    if (!(condition)) [[unlikely]] {                                        \
      ::shoal::internal::KernelCheckFailed(__FILE__, __LINE__, #condition); \
    }                                                                       \
  } while (false)
