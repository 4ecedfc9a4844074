#include "kernels/cpu/lanes_scalar.h"
#include "kernels/cpu/row_kernels.h"

namespace shoal {

const RowKernels kRowKernelsScalar = row_kernels::Make<LanesScalar>();

}  // namespace shoal
