#include "cli/npy.h"

#include <bit>
#include <utility>

#include "absl/strings/str_cat.h"

#include "base/status_macros.h"

namespace shoal {

static_assert(std::endian::native == std::endian::little, "the header says '<f4'");

NpyWriter::NpyWriter(std::string path, int64_t num_values)
    : path_(std::move(path)),
      num_values_(num_values),
      file_(path_, std::ios::binary | std::ios::trunc) {}

absl::StatusOr<NpyWriter> NpyWriter::Create(const std::string& path, int64_t rows, int64_t cols) {
  NpyWriter writer(path, rows * cols);
  std::string header =
      absl::StrCat("{'descr': '<f4', 'fortran_order': False, 'shape': (", rows, ", ", cols, "), }");
  // Magic, version and length take 10 bytes; the data starts at a multiple of 64.
  constexpr size_t kPrefix = 10;
  header.append(63 - (kPrefix + header.size()) % 64, ' ');
  header.push_back('\n');
  const char prefix[kPrefix] = {'\x93',
                                'N',
                                'U',
                                'M',
                                'P',
                                'Y',
                                1,
                                0,
                                static_cast<char>(header.size() & 0xFF),
                                static_cast<char>(header.size() >> 8)};
  writer.file_.write(prefix, kPrefix);
  writer.file_.write(header.data(), static_cast<std::streamsize>(header.size()));
  if (!writer.file_) return absl::FailedPreconditionError(absl::StrCat("cannot write ", path));
  return writer;
}

absl::Status NpyWriter::Append(std::span<const float> values) {
  num_written_ += static_cast<int64_t>(values.size());
  if (num_written_ > num_values_) {
    return absl::DataLossError(absl::StrCat(path_, ": more than ", num_values_, " values"));
  }
  file_.write(reinterpret_cast<const char*>(values.data()),
              static_cast<std::streamsize>(values.size_bytes()));
  if (!file_) return absl::FailedPreconditionError(absl::StrCat("cannot write ", path_));
  return absl::OkStatus();
}

absl::Status NpyWriter::Close() {
  if (num_written_ != num_values_) {
    return absl::DataLossError(
        absl::StrCat(path_, ": ", num_written_, " of ", num_values_, " values came"));
  }
  file_.close();
  if (!file_) return absl::FailedPreconditionError(absl::StrCat("cannot write ", path_));
  return absl::OkStatus();
}

}  // namespace shoal
