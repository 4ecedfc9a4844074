#include "kernels/cpu/row_kernels.h"

namespace shoal {

const RowKernels& GetRowKernels(CpuIsa isa) {
  switch (isa) {
    case CpuIsa::kScalar:
      return kRowKernelsScalar;
    case CpuIsa::kAvx2:
      return kRowKernelsAvx2;
    case CpuIsa::kAvx512:
      return kRowKernelsAvx512;
  }
  return kRowKernelsScalar;
}

}  // namespace shoal
