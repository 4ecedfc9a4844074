#include "kernels/cuda/chip.h"

namespace shoal::cuda {
namespace {

std::string Dotted(int major, int minor) {
  return std::to_string(major) + "." + std::to_string(minor);
}

}  // namespace

std::string WhatIsMissing(const Chip& chip) {
  if (chip.major < 8) {
    return "has compute capability " + Dotted(chip.major, chip.minor) +
           "; the kernels need 8.0 or above";
  }
  if (chip.shared_bytes < kSharedBytesOfEveryChip) {
    return "gives a thread block " + std::to_string(chip.shared_bytes) +
           " bytes of shared memory; the kernels take up to " +
           std::to_string(kSharedBytesOfEveryChip);
  }
  return "";
}

std::string ArchitectureNames(std::initializer_list<int> list) {
  std::string names;
  size_t index = 0;
  for (const int architecture : list) {
    if (index > 0) names += index + 1 == list.size() ? " and " : ", ";
    names += Dotted(architecture / 100, architecture % 100 / 10);
    ++index;
  }
  return names;
}

std::string NumericsClass(const Chip& chip, const CompiledCode& code) {
  if (code.has_wgmma != 0) return "cuda-wgmma";
  return "cuda-mma-" + Dotted(chip.major, chip.minor);
}

}  // namespace shoal::cuda
