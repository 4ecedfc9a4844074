// Checkpoint layout -> kernel layout, on the device: the bytes travel as the checkpoint has them,
// by Write(), or were made there, and are laid out by PackedWord (mx_layout.h), which the host's
// tests compare with the CPU's layout. BF16: [in, out] -> [out, in].
//
// A thread a 32-bit word of MXFP4; a 32 x 32 square a thread block of BF16. Bound: the bytes, once
// in and once out; the copy from the host is slower by far. Rate: not yet measured.
#include <algorithm>

#include "kernels/cuda/device.cuh"
#include "kernels/cuda/mx_layout.h"
#include "kernels/cuda/ptx.cuh"
#include "kernels/cuda/tuning.h"

namespace shoal::cuda {
namespace {

constexpr int kThreads = 256;
constexpr int kSquare = 32;
constexpr int kTileWords = kMxTileBytes / 4;

__global__ void __launch_bounds__(kThreads) PackMxKernel(
    const std::byte* codes, const uint8_t* scales, int64_t out, int64_t in, uint32_t* packed) {
  ptx::AwaitEarlierKernels();
  const int64_t tile = blockIdx.x;
  for (int word = static_cast<int>(threadIdx.x); word < kTileWords; word += kThreads) {
    packed[tile * kTileWords + word] = PackedWord(codes, scales, out, in, tile, word);
  }
}

__global__ void __launch_bounds__(kThreads)
    TransposeKernel(const Bf16* from, int64_t out, int64_t in, Bf16* packed) {
  __shared__ Bf16 square[kSquare][kSquare + 1];
  ptx::AwaitEarlierKernels();
  const int64_t first_out = int64_t{blockIdx.x} * kSquare;
  const int64_t first_in = int64_t{blockIdx.y} * kSquare;
  const int lane = static_cast<int>(threadIdx.x) % kSquare;
  for (int i = static_cast<int>(threadIdx.x) / kSquare; i < kSquare; i += kThreads / kSquare) {
    if (first_in + i < in && first_out + lane < out) {
      square[i][lane] = from[(first_in + i) * out + first_out + lane];
    }
  }
  __syncthreads();
  for (int o = static_cast<int>(threadIdx.x) / kSquare; o < kSquare; o += kThreads / kSquare) {
    if (first_out + o < out && first_in + lane < in) {
      packed[(first_out + o) * in + first_in + lane] = square[lane][o];
    }
  }
}

}  // namespace

int64_t Device::PackedBytes(ExpertFormat format, int64_t out, int64_t in) const {
  switch (format) {
    case ExpertFormat::kMxfp4:
      return MxPackedBytes(out, in);
    case ExpertFormat::kBf16:
      return CeilDiv(out * in * int64_t{sizeof(Bf16)}, 64) * 64;
  }
  return 0;
}

void Device::Repack(const RepackArgs& args) {
  const bool is_mx = args.format == ExpertFormat::kMxfp4;
  KERNEL_CHECK(!is_mx || args.in % kMxBlock == 0);
  const size_t code_bytes =
      static_cast<size_t>(is_mx ? args.out * args.in / 2 : args.out * args.in * 2);
  const size_t scale_bytes = is_mx ? static_cast<size_t>(args.out * args.in / kMxBlock) : 0;
  const std::byte* codes = args.codes;
  const uint8_t* scales = args.scales;
  if (args.source == RepackArgs::Source::kHost) {
    auto* const copy =
        static_cast<std::byte*>(ScratchOf(ScratchFor::kCodes, code_bytes + scale_bytes));
    if (copy == nullptr) return;
    Write(copy, codes, code_bytes);
    Write(copy + code_bytes, scales, scale_bytes);
    codes = copy;
    scales = reinterpret_cast<const uint8_t*>(copy + code_bytes);
  }
  if (is_mx) {
    const int64_t tiles = MxTiles(args.out, kTileOuts) * MxTiles(args.in, kTileInputs);
    Launch(PackMxKernel,
           dim3(static_cast<unsigned>(tiles)),
           kThreads,
           0,
           codes,
           scales,
           args.out,
           args.in,
           reinterpret_cast<uint32_t*>(args.packed));
    return;
  }
  Launch(TransposeKernel,
         dim3(static_cast<unsigned>(CeilDiv(args.out, kSquare)),
              static_cast<unsigned>(CeilDiv(args.in, kSquare))),
         kThreads,
         0,
         reinterpret_cast<const Bf16*>(codes),
         args.out,
         args.in,
         reinterpret_cast<Bf16*>(args.packed));
}

}  // namespace shoal::cuda
