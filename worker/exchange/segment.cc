#include "worker/exchange/segment.h"

#include <errno.h>
#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>

#include <cstring>

#include "absl/strings/str_cat.h"

#include "base/check.h"

namespace shoal {
namespace {

constexpr size_t kPage = 4096;
constexpr int kSeals = F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL;

size_t WholePages(size_t bytes) {
  return (bytes + kPage - 1) / kPage * kPage;
}

size_t DoorbellBytes(size_t num_ranks) {
  return WholePages(2 * num_ranks * sizeof(Doorbell));
}

// Slots begin on pages, so that one that is never used never takes a page from another.
size_t SlotBytes(size_t max_body) {
  return WholePages(sizeof(Slot) + max_body);
}

}  // namespace

size_t Segment::Size(size_t num_ranks, size_t max_body) {
  return DoorbellBytes(num_ranks) + 2 * num_ranks * num_ranks * SlotBytes(max_body);
}

absl::StatusOr<Descriptor> Segment::Create(size_t num_ranks, size_t max_body) {
  const size_t size = Size(num_ranks, max_body);
  Descriptor fd(memfd_create("shoal-exchange", MFD_CLOEXEC | MFD_ALLOW_SEALING));
  if (!fd.is_open() || ftruncate(fd.get(), static_cast<off_t>(size)) != 0 ||
      fcntl(fd.get(), F_ADD_SEALS, kSeals) != 0) {
    return absl::UnavailableError(
        absl::StrCat("cannot make a shared segment of ", size, " bytes: ", std::strerror(errno)));
  }
  return fd;
}

absl::StatusOr<std::unique_ptr<Segment>> Segment::Map(const Descriptor& fd,
                                                      size_t num_ranks,
                                                      size_t max_body) {
  const size_t size = Size(num_ranks, max_body);

  struct stat facts {};

  if (fstat(fd.get(), &facts) != 0 || static_cast<size_t>(facts.st_size) != size ||
      (fcntl(fd.get(), F_GET_SEALS) & kSeals) != kSeals) {
    return absl::FailedPreconditionError(
        absl::StrCat("the shared segment has ",
                     facts.st_size,
                     " bytes, by the limits given here it would have ",
                     size));
  }
  void* data = mmap(nullptr, size, PROT_READ | PROT_WRITE, MAP_SHARED, fd.get(), 0);
  if (data == MAP_FAILED) {
    return absl::UnavailableError(
        absl::StrCat("cannot map a shared segment of ", size, " bytes: ", std::strerror(errno)));
  }
  return std::unique_ptr<Segment>(new Segment(static_cast<std::byte*>(data), num_ranks, max_body));
}

Segment::~Segment() {
  munmap(data_, Size(num_ranks_, max_body_));
}

Doorbell& Segment::doorbell(size_t receiver, uint64_t round) {
  CHECK_LT(receiver, num_ranks_);
  return reinterpret_cast<Doorbell*>(data_)[2 * receiver + round % 2];
}

Slot& Segment::slot(size_t src, size_t dst, uint64_t round) {
  CHECK(src < num_ranks_ && dst < num_ranks_);
  const size_t index = ((round % 2) * num_ranks_ + src) * num_ranks_ + dst;
  return *reinterpret_cast<Slot*>(data_ + DoorbellBytes(num_ranks_) + index * SlotBytes(max_body_));
}

std::byte* Segment::body(size_t src, size_t dst, uint64_t round) {
  return reinterpret_cast<std::byte*>(&slot(src, dst, round)) + sizeof(Slot);
}

}  // namespace shoal
