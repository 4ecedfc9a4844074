// Writes a NumPy array file (format version 1.0 of numpy.lib.format): fp32, C order, rows as they
// come.
#pragma once

#include <cstdint>
#include <fstream>
#include <span>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"

namespace shoal {

class NpyWriter {
 public:
  // The file is complete when rows * cols values have been written and Close() said OK.
  static absl::StatusOr<NpyWriter> Create(const std::string& path, int64_t rows, int64_t cols);

  absl::Status Append(std::span<const float> values);
  absl::Status Close();

 private:
  NpyWriter(std::string path, int64_t num_values);

  std::string path_;
  int64_t num_values_;
  int64_t num_written_ = 0;
  std::ofstream file_;
};

}  // namespace shoal
