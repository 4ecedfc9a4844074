#include "worker/load/file_reader.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <utility>

#include "absl/strings/str_cat.h"

#include "base/status_macros.h"

namespace shoal {
namespace {

// The kernel reads at most 2 GiB - 4 KiB in one call.
constexpr size_t kMaxReadBytes = size_t{1} << 30;

}  // namespace

absl::StatusOr<FileReader> FileReader::Open(const std::string& path) {
  const int fd = open(path.c_str(), O_RDONLY | O_CLOEXEC);
  if (fd < 0) return absl::ErrnoToStatus(errno, path);
  FileReader reader(path, fd, 0);

  struct stat info {};

  if (fstat(fd, &info) != 0) return absl::ErrnoToStatus(errno, path);
  if (!S_ISREG(info.st_mode)) {
    return absl::InvalidArgumentError(absl::StrCat(path, ": not a regular file"));
  }
  reader.bytes_ = info.st_size;
  // Each worker reads parts of a file that its neighbours read other parts of: what the kernel
  // would read ahead is mostly not ours. Only advice, so its failure changes nothing.
  static_cast<void>(posix_fadvise(fd, 0, 0, POSIX_FADV_RANDOM));
  return reader;
}

FileReader::FileReader(std::string path, int fd, int64_t bytes)
    : path_(std::move(path)), fd_(fd), bytes_(bytes) {}

FileReader::FileReader(FileReader&& other) noexcept
    : path_(std::move(other.path_)), fd_(std::exchange(other.fd_, -1)), bytes_(other.bytes_) {}

FileReader& FileReader::operator=(FileReader&& other) noexcept {
  std::swap(path_, other.path_);
  std::swap(fd_, other.fd_);
  std::swap(bytes_, other.bytes_);
  return *this;
}

FileReader::~FileReader() {
  if (fd_ >= 0) close(fd_);
}

absl::Status FileReader::ReadAt(int64_t offset, std::span<std::byte> out) const {
  while (!out.empty()) {
    const ssize_t got = pread(fd_, out.data(), std::min(out.size(), kMaxReadBytes), offset);
    if (got < 0 && errno == EINTR) continue;
    if (got < 0) return absl::ErrnoToStatus(errno, absl::StrCat(path_, " at byte ", offset));
    if (got == 0) {
      return absl::DataLossError(absl::StrCat(
          path_, ": ends at byte ", offset, ", ", out.size(), " bytes before it should"));
    }
    offset += got;
    out = out.subspan(static_cast<size_t>(got));
  }
  return absl::OkStatus();
}

absl::StatusOr<std::string> ReadSmallFile(const std::string& path, int64_t max_bytes) {
  ASSIGN_OR_RETURN(const FileReader reader, FileReader::Open(path));
  if (reader.bytes() > max_bytes) {
    return absl::InvalidArgumentError(
        absl::StrCat(path, ": has ", reader.bytes(), " bytes; at most ", max_bytes, " make sense"));
  }
  std::string text(static_cast<size_t>(reader.bytes()), '\0');
  RETURN_IF_ERROR(reader.ReadAt(0, std::as_writable_bytes(std::span(text))));
  return text;
}

}  // namespace shoal
