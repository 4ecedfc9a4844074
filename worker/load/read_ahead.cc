#include "worker/load/read_ahead.h"

#include <future>
#include <vector>

#include "base/status_macros.h"

namespace shoal {

absl::Status ReadAhead(int64_t num_items,
                       int num_buffers,
                       absl::FunctionRef<absl::Status(int64_t item, size_t buffer)> read,
                       absl::FunctionRef<absl::Status(int64_t item, size_t buffer)> place) {
  // The end of a future of std::async waits for its thread: leaving early is safe.
  std::vector<std::future<absl::Status>> reads(static_cast<size_t>(num_buffers));
  const auto buffer_of = [&](int64_t item) { return static_cast<size_t>(item % num_buffers); };
  const auto begin = [&](int64_t item) {
    if (item >= num_items) return;
    reads[buffer_of(item)] = std::async(
        std::launch::async, [read, item, buffer = buffer_of(item)] { return read(item, buffer); });
  };
  for (int64_t item = 0; item < num_buffers; ++item) begin(item);
  for (int64_t item = 0; item < num_items; ++item) {
    const size_t buffer = buffer_of(item);
    RETURN_IF_ERROR(reads[buffer].get());
    RETURN_IF_ERROR(place(item, buffer));
    begin(item + num_buffers);
  }
  return absl::OkStatus();
}

}  // namespace shoal
