// Always-on assertions for our own bugs. The world's faults are absl::Status, never a CHECK.
#pragma once

#include <cstdio>
#include <cstdlib>
#include <sstream>
#include <string>

namespace shoal::internal {

[[noreturn]] inline void CheckFailed(const char* file,
                                     int line,
                                     const char* condition,
                                     const std::string& values) {
  std::fprintf(stderr, "%s:%d: CHECK failed: %s%s\n", file, line, condition, values.c_str());
  std::fflush(stderr);
  std::abort();
}

template <typename A, typename B>
std::string CheckValues(const A& a, const B& b) {
  std::ostringstream out;
  if constexpr (requires { a.value; }) {
    out << " (" << a.value << " vs " << b.value << ")";
  } else if constexpr (requires { out << a << b; }) {
    out << " (" << a << " vs " << b << ")";
  }
  return out.str();
}

}  // namespace shoal::internal

#define CHECK(condition)                                                  \
  do {                                                                    \
    if (!(condition)) [[unlikely]] {                                      \
      ::shoal::internal::CheckFailed(__FILE__, __LINE__, #condition, ""); \
    }                                                                     \
  } while (false)

#define SHOAL_CHECK_OP(a, op, b)                                                        \
  do {                                                                                  \
    const auto& check_a = (a);                                                          \
    const auto& check_b = (b);                                                          \
    if (!(check_a op check_b)) [[unlikely]] {                                           \
      ::shoal::internal::CheckFailed(__FILE__,                                          \
                                     __LINE__,                                          \
                                     #a " " #op " " #b,                                 \
                                     ::shoal::internal::CheckValues(check_a, check_b)); \
    }                                                                                   \
  } while (false)

#define CHECK_EQ(a, b) SHOAL_CHECK_OP(a, ==, b)
#define CHECK_NE(a, b) SHOAL_CHECK_OP(a, !=, b)
#define CHECK_LT(a, b) SHOAL_CHECK_OP(a, <, b)
#define CHECK_LE(a, b) SHOAL_CHECK_OP(a, <=, b)
#define CHECK_GT(a, b) SHOAL_CHECK_OP(a, >, b)
#define CHECK_GE(a, b) SHOAL_CHECK_OP(a, >=, b)

#ifdef NDEBUG
#define DCHECK(condition) static_cast<void>(sizeof(condition))
#else
#define DCHECK(condition) CHECK(condition)
#endif
