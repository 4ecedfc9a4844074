#include "worker/load/widen.h"

#include <bit>
#include <vector>

#include "base/status_macros.h"

namespace shoal {

absl::Status ReadWidened(const WeightSource& source,
                         absl::string_view tensor,
                         int64_t first,
                         std::span<float> out) {
  std::vector<uint16_t> stored(out.size());
  RETURN_IF_ERROR(source.Read(tensor, 2 * first, std::as_writable_bytes(std::span(stored))));
  for (size_t i = 0; i < out.size(); ++i) {
    out[i] = std::bit_cast<float>(static_cast<uint32_t>(stored[i]) << 16);
  }
  return absl::OkStatus();
}

}  // namespace shoal
