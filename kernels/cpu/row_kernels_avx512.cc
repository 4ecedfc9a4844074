#include "kernels/cpu/lanes_avx512.h"
#include "kernels/cpu/row_kernels.h"

namespace shoal {

const RowKernels kRowKernelsAvx512 = row_kernels::Make<LanesAvx512>();

}  // namespace shoal
