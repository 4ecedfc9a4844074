// Reads of known places in a file: no read-ahead, every error with path and offset.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"

namespace shoal {

// An open file. Movable. ReadAt is thread-safe.
class FileReader {
 public:
  // A regular file; kNotFound or kPermissionDenied name the path.
  static absl::StatusOr<FileReader> Open(const std::string& path);

  FileReader(FileReader&& other) noexcept;
  FileReader& operator=(FileReader&& other) noexcept;
  ~FileReader();

  const std::string& path() const { return path_; }

  // When it was opened.
  int64_t bytes() const { return bytes_; }

  // All of [offset, offset + out.size()). A file that ends earlier is kDataLoss.
  absl::Status ReadAt(int64_t offset, std::span<std::byte> out) const;

 private:
  FileReader(std::string path, int fd, int64_t bytes);

  std::string path_;
  int fd_ = -1;
  int64_t bytes_ = 0;
};

// A whole small file as text; larger than `max_bytes` is kInvalidArgument.
absl::StatusOr<std::string> ReadSmallFile(const std::string& path, int64_t max_bytes);

}  // namespace shoal
