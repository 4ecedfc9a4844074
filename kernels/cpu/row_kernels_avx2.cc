#include "kernels/cpu/lanes_avx2.h"
#include "kernels/cpu/row_kernels.h"

namespace shoal {

const RowKernels kRowKernelsAvx2 = row_kernels::Make<LanesAvx2>();

}  // namespace shoal
