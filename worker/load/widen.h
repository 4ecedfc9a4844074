// Vectors are bf16 in files and fp32 in memory.
#pragma once

#include <cstdint>
#include <span>

#include "absl/status/status.h"
#include "absl/strings/string_view.h"

#include "worker/load/loader.h"

namespace shoal {

// Reads elements [first, first + out.size()) of a bf16 tensor.
absl::Status ReadWidened(const WeightSource& source,
                         absl::string_view tensor,
                         int64_t first,
                         std::span<float> out);

}  // namespace shoal
