// Weights of the formula (kernels/synthetic.h), made where they are used: an element a thread.
// Bound: two 64-bit products an element, about 30 instructions; a 120b is 61e9 codes. Time taken:
// not yet measured.
#include "kernels/cuda/device.cuh"
#include "kernels/cuda/ptx.cuh"
#include "kernels/cuda/tuning.h"
#include "kernels/synthetic.h"

namespace shoal::cuda {
namespace {

constexpr int kThreads = 256;

__device__ inline void Make(const SyntheticFormula& formula, uint8_t b, uint8_t* out) {
  *out = SyntheticU8(formula, b);
}

__device__ inline void Make(const SyntheticFormula& formula, uint8_t b, Bf16* out) {
  *out = ToBf16(SyntheticFloat(formula, b));
}

__device__ inline void Make(const SyntheticFormula& formula, uint8_t b, float* out) {
  *out = SyntheticFloat(formula, b);
}

template <typename T>
__global__ void __launch_bounds__(kThreads) SyntheticKernel(const SyntheticFormula formula,
                                                            const int64_t first,
                                                            const int64_t count,
                                                            T* out) {
  ptx::AwaitEarlierKernels();
  const int64_t i = int64_t{blockIdx.x} * kThreads + threadIdx.x;
  if (i < count) Make(formula, SyntheticByte(formula.seed, first + i), out + i);
}

template <typename T>
void LaunchSynthetic(Device& device, const SynthesizeArgs& args) {
  device.Launch(SyntheticKernel<T>,
                dim3(static_cast<unsigned>(CeilDiv(args.count, kThreads))),
                kThreads,
                0,
                args.formula,
                args.first,
                args.count,
                static_cast<T*>(args.out));
}

}  // namespace

bool Device::Synthesize(const SynthesizeArgs& args) {
  switch (args.dtype) {
    case DType::kU8:
      LaunchSynthetic<uint8_t>(*this, args);
      return true;
    case DType::kBf16:
      LaunchSynthetic<Bf16>(*this, args);
      return true;
    case DType::kF32:
      LaunchSynthetic<float>(*this, args);
      return true;
    case DType::kI32:
      break;
  }
  KERNEL_CHECK(false);
  return false;
}

}  // namespace shoal::cuda
