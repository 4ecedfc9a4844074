// What the kernels ask of a chip, and which chips compute alike. Pure, tested without a GPU.
#pragma once

#include <cstdint>
#include <initializer_list>
#include <string>

namespace shoal::cuda {

// Dynamic shared memory that a thread block may have on every chip with kernels: 99 KiB on compute
// capability 8.6, 8.9 and 12.x (163 KiB on 8.0, 227 KiB on 9.0 and 10.x). One set of tiles for all
// chips, so kernels assert that they stay below it.
inline constexpr int64_t kSharedBytesOfEveryChip = int64_t{99} << 10;

// How the machine code that a chip was given came out of the compiler; a kernel tells. It need not
// be what the chip could have: a build for other chips runs as what the driver makes of its PTX.
struct CompiledCode {
  int32_t architecture = 0;     // __CUDA_ARCH__, for example 900
  int32_t has_wgmma = 0;        // Products by wgmma; else by mma.sync
  int32_t awaits_launches = 0;  // Kernels wait for what earlier kernels wrote
};

struct Chip {
  int major = 0;  // Compute capability
  int minor = 0;
  int64_t shared_bytes = 0;  // That a thread block may ask for
};

// Empty, or what the chip lacks.
std::string WhatIsMissing(const Chip& chip);

// "8.0, 9.0 and 12.0" of __CUDA_ARCH_LIST__'s 800, 900, 1200.
std::string ArchitectureNames(std::initializer_list<int> list);

// By the matrix unit, whose kinds need not round alike: wgmma is one; mma.sync another on each
// generation, and also on a chip with wgmma that runs code without it.
std::string NumericsClass(const Chip& chip, const CompiledCode& code);

}  // namespace shoal::cuda
