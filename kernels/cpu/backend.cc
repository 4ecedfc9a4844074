#include "kernels/cpu/backend.h"

#include <sys/mman.h>

#include <cstdio>
#include <cstring>

#include "kernels/cpu/dot.h"
#include "kernels/cpu/row_kernels.h"
#include "kernels/cpu/thread_pool.h"
#include "kernels/kernel_check.h"

namespace shoal {
namespace {

constexpr size_t kHugePage = size_t{2} << 20;
// From here on memory comes from the kernel directly and goes back to it at once; below, a page
// per tensor would waste more than the tensors hold.
constexpr size_t kMapFrom = size_t{128} << 10;
constexpr size_t kAlign = 64;

size_t RoundUp(size_t bytes, size_t unit) {
  return (bytes + unit - 1) / unit * unit;
}

// What the machine can give without swapping, in bytes. An anonymous mapping always succeeds and
// the process is killed later; so large requests ask first.
size_t AvailableMemory() {
  std::FILE* file = std::fopen("/proc/meminfo", "re");
  if (file == nullptr) return SIZE_MAX;
  char line[128];
  unsigned long long kib = SIZE_MAX >> 10;
  while (std::fgets(line, sizeof(line), file) != nullptr) {
    if (std::sscanf(line, "MemAvailable: %llu kB", &kib) == 1) break;
  }
  std::fclose(file);
  return static_cast<size_t>(kib) << 10;
}

// Zeroed pages; from kHugePage on they begin at a multiple of it and may be huge.
void* MapPages(size_t bytes) {
  if (bytes >= kHugePage && bytes > AvailableMemory()) return nullptr;
  const size_t slack = bytes >= kHugePage ? kHugePage : 0;
  void* mapped = mmap(nullptr,
                      bytes + slack,
                      PROT_READ | PROT_WRITE,
                      MAP_PRIVATE | MAP_ANONYMOUS,
                      /*fd=*/-1,
                      /*offset=*/0);
  if (mapped == MAP_FAILED) return nullptr;
  if (slack == 0) return mapped;
  auto* const first = static_cast<std::byte*>(mapped);
  const size_t misaligned = reinterpret_cast<uintptr_t>(first) % kHugePage;
  const size_t head = misaligned == 0 ? 0 : kHugePage - misaligned;
  if (head > 0) munmap(first, head);
  if (slack > head) munmap(first + head + bytes, slack - head);
  madvise(first + head, bytes, MADV_HUGEPAGE);  // Advice: a refusal costs speed alone.
  return first + head;
}

size_t MappedBytes(size_t bytes) {
  return RoundUp(bytes, size_t{4096});
}

}  // namespace

CpuIsa BestCpuIsa() {
  const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
  const bool avx512 = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                      __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq") &&
                      __builtin_cpu_supports("avx512vbmi") && __builtin_cpu_supports("avx512vnni");
  if (avx2 && avx512) return CpuIsa::kAvx512;
  return avx2 ? CpuIsa::kAvx2 : CpuIsa::kScalar;
}

std::string_view CpuIsaName(CpuIsa isa) {
  switch (isa) {
    case CpuIsa::kScalar:
      return "scalar";
    case CpuIsa::kAvx2:
      return "avx2";
    case CpuIsa::kAvx512:
      return "avx512";
  }
  return "";
}

std::optional<CpuIsa> ParseCpuIsa(std::string_view name) {
  for (const CpuIsa isa : {CpuIsa::kScalar, CpuIsa::kAvx2, CpuIsa::kAvx512}) {
    if (name == CpuIsaName(isa)) return isa;
  }
  return std::nullopt;
}

CpuBackend::CpuBackend(const CpuBackendOptions& options)
    : isa_(options.isa),
      dot_(&GetDotTable(options.isa)),
      row_kernels_(&GetRowKernels(options.isa)),
      pool_(std::make_unique<ThreadPool>(options.num_threads, options.cpus)) {
  KERNEL_CHECK(options.isa <= BestCpuIsa());
}

CpuBackend::~CpuBackend() = default;

std::string_view CpuBackend::name() const {
  switch (isa_) {
    case CpuIsa::kScalar:
      return "cpu-scalar";
    case CpuIsa::kAvx2:
      return "cpu-avx2";
    case CpuIsa::kAvx512:
      return "cpu-avx512";
  }
  return "";
}

void* CpuBackend::Allocate(size_t bytes) {
  if (bytes >= kMapFrom) return MapPages(MappedBytes(bytes));
  const size_t rounded = RoundUp(bytes == 0 ? 1 : bytes, kAlign);
  void* const data = std::aligned_alloc(kAlign, rounded);
  if (data != nullptr) std::memset(data, 0, rounded);
  return data;
}

void CpuBackend::Free(void* data, size_t bytes) {
  if (data == nullptr) return;
  if (bytes < kMapFrom) {
    std::free(data);
  } else {
    KERNEL_CHECK(munmap(data, MappedBytes(bytes)) == 0);
  }
}

void CpuBackend::Write(void* device, const void* host, size_t bytes) {
  if (bytes > 0) std::memcpy(device, host, bytes);
}

void CpuBackend::Read(void* host, const void* device, size_t bytes) {
  if (bytes > 0) std::memcpy(host, device, bytes);
}

}  // namespace shoal
