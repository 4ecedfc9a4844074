// The device itself: opening it, memory, copies, errors, and steps kept as graphs.
//
// Errors: the first one is noted and sticks; operations after it do nothing useful, and Read,
// Synchronize and Sample throw it as DeviceFault. Running out of memory is not a fault: Allocate
// returns null.
#include <algorithm>
#include <cstring>
#include <utility>

#include "kernels/cuda/backend.h"
#include "kernels/cuda/device.cuh"
#include "kernels/cuda/ptx.cuh"
#include "kernels/cuda/tuning.h"
#include "kernels/numeric.h"

namespace shoal {
namespace {

constexpr size_t kHalfBytes = size_t{8} << 20;
// Beyond this many kept steps the map starts anew: an upper bound, not a tuning.
constexpr size_t kMaxKeptSteps = 512;
// A GPU with less than this left cannot even hold the scratch of a step.
constexpr size_t kLeastFreeBytes = size_t{256} << 20;

// What this very machine code is, told by itself.
__global__ void ProbeKernel(cuda::CompiledCode* code) {
#ifdef __CUDA_ARCH__
  code->architecture = __CUDA_ARCH__;
#endif
  code->has_wgmma = cuda::ptx::kHasWgmma ? 1 : 0;
  code->awaits_launches = cuda::ptx::kAwaitsLaunches ? 1 : 0;
}

std::string Gigabytes(size_t bytes) {
  char text[32];
  std::snprintf(text, sizeof(text), "%.2f GB", static_cast<double>(bytes) / 1e9);
  return text;
}

std::string Version(int version) {
  return std::to_string(version / 1000) + "." + std::to_string(version % 1000 / 10);
}

// What may keep a process from having a GPU at all. Empty: nothing.
std::string NoDriver(int* count) {
  int driver = 0;
  if (cudaDriverGetVersion(&driver) != cudaSuccess || driver == 0) {
    return "no NVIDIA driver on this machine (libcuda.so.1 was not found): install it, or use "
           "--backend cpu";
  }
  const cudaError_t error = cudaGetDeviceCount(count);
  if (error == cudaErrorInsufficientDriver) {
    return "the NVIDIA driver knows CUDA " + Version(driver) + ", this shoal needs " +
           Version(CUDART_VERSION) + ": a newer driver would do";
  }
  if (error == cudaErrorNoDevice || (error == cudaSuccess && *count == 0)) {
    return "the NVIDIA driver shows no GPU; is CUDA_VISIBLE_DEVICES set?";
  }
  return error == cudaSuccess ? "" : std::string("no GPU: ") + cudaGetErrorString(error);
}

}  // namespace

std::unique_ptr<CudaBackend> CudaBackend::Open(const CudaBackendOptions& options,
                                               std::string* error) {
  int count = 0;
  *error = NoDriver(&count);
  if (!error->empty()) return nullptr;
  if (options.device < 0 || options.device >= count) {
    *error = "GPU " + std::to_string(options.device) + " does not exist: this machine has " +
             std::to_string(count) + ", numbered from 0";
    return nullptr;
  }
  cudaDeviceProp properties{};
  if (const cudaError_t got = cudaGetDeviceProperties(&properties, options.device);
      got != cudaSuccess) {
    *error = "GPU " + std::to_string(options.device) + ": " + cudaGetErrorString(got);
    return nullptr;
  }
  auto backend = std::make_unique<cuda::Device>(
      CudaDevice{.index = options.device,
                 .name = properties.name,
                 .major = properties.major,
                 .minor = properties.minor,
                 .num_multiprocessors = properties.multiProcessorCount,
                 .total_bytes = static_cast<int64_t>(properties.totalGlobalMem)},
      cuda::Chip{.major = properties.major,
                 .minor = properties.minor,
                 .shared_bytes = static_cast<int64_t>(properties.sharedMemPerBlockOptin)},
      options);
  *error = backend->Start();
  if (!error->empty()) return nullptr;
  return backend;
}

namespace cuda {

Device::Device(CudaDevice device, const Chip& chip, const CudaBackendOptions& options)
    : device_(std::move(device)),
      chip_(chip),
      replays_(options.replays),
      name_("cuda:" + std::to_string(device_.index) + " (" + device_.name + ")"),
      overlaps_launches_(options.overlaps_launches) {}

std::string Device::Start() {
  const std::string gpu = "GPU " + std::to_string(device_.index) + " (" + device_.name + ")";
  const auto failed = [&](cudaError_t error) {
    cudaGetLastError();  // Ours to report; not to be found by the next call.
    return error == cudaSuccess ? "" : gpu + ": " + cudaGetErrorString(error);
  };
  if (const cudaError_t error = cudaSetDevice(device_.index); error != cudaSuccess) {
    if (error == cudaErrorDevicesUnavailable) {
      return gpu + " is taken by another process in exclusive mode";
    }
    return failed(error);
  }
  if (const std::string missing = WhatIsMissing(chip_); !missing.empty()) {
    return gpu + " " + missing;
  }
  cudaFuncAttributes attributes{};
  const cudaError_t image = cudaFuncGetAttributes(&attributes, ProbeKernel);
  if (image == cudaErrorNoKernelImageForDevice || image == cudaErrorInvalidDeviceFunction) {
    cudaGetLastError();
    return gpu + " has compute capability " + std::to_string(device_.major) + "." +
           std::to_string(device_.minor) + ", and this build has kernels for " +
           ArchitectureNames({__CUDA_ARCH_LIST__}) +
           ": build with the cuda-all preset, which has them for all from 8.0 on";
  }
  if (image != cudaSuccess) return failed(image);
  size_t free = 0;
  size_t total = 0;
  if (const cudaError_t error = cudaMemGetInfo(&free, &total); error != cudaSuccess) {
    if (error == cudaErrorMemoryAllocation) {
      cudaGetLastError();
      return gpu + " is full: not even its context finds room";
    }
    return failed(error);
  }
  if (free < kLeastFreeBytes) {
    return gpu + " is full: " + Gigabytes(free) + " of " + Gigabytes(total) +
           " are free, another process holds the rest";
  }
  if (const cudaError_t error = cudaStreamCreateWithFlags(&stream_, cudaStreamNonBlocking);
      error != cudaSuccess) {
    return failed(error);
  }
  void* staging = nullptr;
  if (const cudaError_t error = cudaMallocHost(&staging, 2 * kHalfBytes); error != cudaSuccess) {
    return failed(error);
  }
  staging_ = static_cast<std::byte*>(staging);
  for (cudaEvent_t& event : half_free_) {
    if (const cudaError_t error = cudaEventCreateWithFlags(&event, cudaEventDisableTiming);
        error != cudaSuccess) {
      return failed(error);
    }
  }
  return AskCompiledCode(gpu);
}

// The launches of a kernel must suit the code that the chip really runs, not the chip.
std::string Device::AskCompiledCode(const std::string& gpu) {
  auto* const code = reinterpret_cast<CompiledCode*>(staging_);  // Pinned: the device may write it.
  ProbeKernel<<<1, 1, 0, stream_>>>(code);
  const cudaError_t launched = cudaGetLastError();
  const cudaError_t error = launched != cudaSuccess ? launched : cudaStreamSynchronize(stream_);
  if (error != cudaSuccess) return gpu + ": a first kernel: " + cudaGetErrorString(error);
  numerics_class_ = NumericsClass(chip_, *code);
  overlaps_launches_ = overlaps_launches_ && code->awaits_launches != 0;
  return "";
}

Device::~Device() {
  if (stream_ != nullptr) cudaStreamSynchronize(stream_);
  ForgetReplays();
  for (const Scratch& scratch : scratch_) cudaFree(scratch.data);
  for (cudaEvent_t event : half_free_) {
    if (event != nullptr) cudaEventDestroy(event);
  }
  if (staging_ != nullptr) cudaFreeHost(staging_);
  if (stream_ != nullptr) cudaStreamDestroy(stream_);
}

bool Device::Check(cudaError_t error, const char* what) {
  if (error == cudaSuccess) return true;
  if (fault_.empty()) {
    fault_ =
        name_ + ": " + what + ": " + cudaGetErrorName(error) + ": " + cudaGetErrorString(error);
  }
  return false;
}

std::string Device::Fault() const {
  return fault_;
}

void Device::ThrowFault() const {
  throw DeviceFault(fault_);
}

int64_t Device::FreeBytes() const {
  size_t free = 0;
  size_t total = 0;
  cudaSetDevice(device_.index);
  return cudaMemGetInfo(&free, &total) == cudaSuccess ? static_cast<int64_t>(free) : 0;
}

void* Device::Allocate(size_t bytes) {
  KERNEL_CHECK(!is_capturing_);
  cudaSetDevice(device_.index);  // The loading thread has not chosen one yet.
  void* data = nullptr;
  const size_t rounded = std::max<size_t>(bytes, 1);
  const cudaError_t error = cudaMalloc(&data, rounded);
  if (error == cudaErrorMemoryAllocation) {
    cudaGetLastError();
    return nullptr;
  }
  if (!Check(error, "allocating") ||
      !Check(cudaMemsetAsync(data, 0, rounded, stream_), "clearing memory")) {
    return nullptr;
  }
  return data;
}

// A kept step goes on using what was there when it was recorded. To drop it instead would make this
// rank record again while others replay, which NCCL forbids.
void Device::Free(void* data, size_t /*bytes*/) {
  if (data == nullptr) return;
  KERNEL_CHECK(!is_capturing_);
  if (!kept_.empty()) return retired_.push_back(data);
  cudaStreamSynchronize(stream_);
  Check(cudaFree(data), "freeing");
}

void Device::Write(void* device, const void* host, size_t bytes) {
  KERNEL_CHECK(!is_capturing_);
  cudaSetDevice(device_.index);
  auto* const to = static_cast<std::byte*>(device);
  const std::span from(static_cast<const std::byte*>(host), bytes);
  const std::span<const std::byte> pinned = PinnedPart(from);
  if (pinned.empty()) return WriteStaged(to, from.data(), bytes);
  const auto before = static_cast<size_t>(pinned.data() - from.data());
  const size_t end = before + pinned.size();
  WriteStaged(to, from.data(), before);
  Check(cudaMemcpyAsync(to + before, pinned.data(), pinned.size(), cudaMemcpyHostToDevice, stream_),
        "copying in");
  WriteStaged(to + end, from.data() + end, bytes - end);
  Check(cudaStreamSynchronize(stream_), "copying in");  // The source is the caller's again.
}

void Device::WriteStaged(std::byte* to, const std::byte* from, size_t bytes) {
  while (bytes > 0) {
    if (staging_used_ == kHalfBytes) {
      Check(cudaEventRecord(half_free_[half_], stream_), "a copy's event");
      half_ = 1 - half_;
      staging_used_ = 0;
      Check(cudaEventSynchronize(half_free_[half_]), "waiting for a copy");
    }
    const size_t part = std::min(bytes, kHalfBytes - staging_used_);
    std::byte* const staged = staging_ + static_cast<size_t>(half_) * kHalfBytes + staging_used_;
    std::memcpy(staged, from, part);
    Check(cudaMemcpyAsync(to, staged, part, cudaMemcpyHostToDevice, stream_), "copying in");
    staging_used_ = std::min(kHalfBytes, (staging_used_ + part + 255) / 256 * 256);
    to += part;
    from += part;
    bytes -= part;
  }
}

// Whole pages inside the range: a page that neighbours share is pinned by neither. What cannot be
// pinned (there is a limit) is copied through the halves.
void Device::Pin(const void* host, size_t bytes) {
  cudaSetDevice(device_.index);
  const std::span<const std::byte> pages = WholePages({static_cast<const std::byte*>(host), bytes});
  if (pages.empty()) return;
  const cudaError_t error = cudaHostRegister(
      const_cast<std::byte*>(pages.data()), pages.size(), cudaHostRegisterPortable);
  if (error == cudaSuccess) {
    pinned_.emplace(host, pages);
  } else {
    cudaGetLastError();
  }
}

void Device::Unpin(const void* host) {
  const auto it = pinned_.find(host);
  if (it == pinned_.end()) return;
  Check(cudaHostUnregister(const_cast<std::byte*>(it->second.data())), "unpinning");
  pinned_.erase(it);
}

// The part of `host` that lies in the last pinned range to begin before its end.
std::span<const std::byte> Device::PinnedPart(std::span<const std::byte> host) const {
  auto after = pinned_.lower_bound(host.data() + host.size());
  if (after == pinned_.begin()) return {};
  return Overlap((--after)->second, host);
}

void Device::Read(void* host, const void* device, size_t bytes) {
  KERNEL_CHECK(!is_capturing_);
  cudaSetDevice(device_.index);
  if (bytes > 0) {
    Check(cudaMemcpyAsync(host, device, bytes, cudaMemcpyDeviceToHost, stream_), "copying out");
  }
  Synchronize();
}

void Device::Synchronize() {
  Check(cudaStreamSynchronize(stream_), "waiting");
  if (!fault_.empty()) ThrowFault();
}

void* Device::ScratchOf(ScratchFor use, size_t bytes) {
  Scratch& scratch = scratch_[static_cast<int>(use)];
  if (bytes <= scratch.bytes) return scratch.data;
  KERNEL_CHECK(!is_capturing_);  // The step was run before it is captured.
  Free(scratch.data, scratch.bytes);
  scratch.bytes = std::max(bytes, 2 * scratch.bytes);
  scratch.data = Allocate(scratch.bytes);
  if (scratch.data == nullptr) {
    scratch.bytes = 0;
    Check(cudaErrorMemoryAllocation, "scratch of an operation");
  }
  return scratch.data;
}

bool Device::Replay(uint64_t key, const std::function<bool()>& ops) {
  if (key == 0 || !replays_ || !fault_.empty()) return ops();
  if (kept_.size() >= kMaxKeptSteps) ForgetReplays();
  KeptStep& step = kept_[key];
  if (!std::exchange(step.was_run, true)) return ops();
  if (step.graph == nullptr && !CaptureStep(&step, ops)) return false;
  if (step.graph != nullptr) Check(cudaGraphLaunch(step.graph, stream_), "replaying a step");
  return true;
}

// Thread-local: NCCL adds its operations from a thread of its own (settled when `ops` returns), and
// the worker's other threads may allocate.
bool Device::CaptureStep(KeptStep* step, const std::function<bool()>& ops) {
  if (!Check(cudaStreamBeginCapture(stream_, cudaStreamCaptureModeThreadLocal), "capturing")) {
    return true;
  }
  is_capturing_ = true;
  const bool is_whole = ops();
  is_capturing_ = false;
  cudaGraph_t graph = nullptr;
  const cudaError_t ended = cudaStreamEndCapture(stream_, &graph);
  if (!is_whole) {
    cudaGetLastError();  // Whoever gave up has the error; the stream is free again.
  } else if (Check(ended, "capturing")) {
    Check(cudaGraphInstantiate(&step->graph, graph, 0), "making a graph");
  }
  if (graph != nullptr) cudaGraphDestroy(graph);
  return is_whole;
}

// A graph that is still running goes when it has ended.
void Device::ForgetReplays() {
  for (auto& [key, step] : kept_) {
    if (step.graph != nullptr) cudaGraphExecDestroy(step.graph);
  }
  kept_.clear();
  if (retired_.empty()) return;
  cudaStreamSynchronize(stream_);
  for (void* const data : std::exchange(retired_, {})) Check(cudaFree(data), "freeing");
}

}  // namespace cuda
}  // namespace shoal
