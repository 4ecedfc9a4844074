// The dense weights of a model in one piece of memory that the processes of a host share.
//
// Layout: that of dense_plan.h, the header in the page in front.
#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <bit>
#include <cerrno>
#include <cstddef>
#include <cstring>
#include <utility>

#include "absl/strings/str_cat.h"

#include "base/status_macros.h"
#include "worker/load/dense_plan.h"
#include "worker/load/loader.h"
#include "worker/load/meter.h"
#include "worker/load/widen.h"

namespace shoal {
namespace {

constexpr int64_t kHugePageBytes = int64_t{2} << 20;
// One read: large enough that its cost is the bytes, small enough that progress moves.
constexpr int64_t kReadBytes = int64_t{32} << 20;
constexpr char kMagic[8] = {'S', 'H', 'O', 'A', 'L', 'D', 'W', '1'};
constexpr int kSeals = F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_WRITE;

struct Header {
  char magic[8];
  int64_t bytes;      // Of the whole segment
  uint64_t geometry;  // GeometryHash
};

static_assert(sizeof(Header) <= DensePlan::kFrontBytes);

absl::Status Fill(const WeightSource& source,
                  const DensePlan& plan,
                  const LoadProgress& progress,
                  std::byte* base) {
  LoadMeter meter(progress, plan.StoredBytes());
  for (const DensePart& part : plan.parts) {
    const ModelTensor& tensor = part.tensor;
    std::byte* data = base + part.offset;
    if (part.is_vector()) {
      RETURN_IF_ERROR(ReadWidened(
          source,
          tensor.name,
          0,
          {reinterpret_cast<float*>(data), static_cast<size_t>(tensor.num_elements())}));
      RETURN_IF_ERROR(meter.Add(tensor.bytes()));
      continue;
    }
    for (int64_t done = 0; done < tensor.bytes();) {
      const int64_t count = std::min(kReadBytes, tensor.bytes() - done);
      RETURN_IF_ERROR(source.Read(tensor.name, done, {data + done, static_cast<size_t>(count)}));
      RETURN_IF_ERROR(meter.Add(count));
      done += count;
    }
  }
  return absl::OkStatus();
}

// A file descriptor that is closed at the end.
class Descriptor {
 public:
  explicit Descriptor(int fd) : fd_(fd) {}

  Descriptor(Descriptor&& other) noexcept : fd_(std::exchange(other.fd_, -1)) {}

  ~Descriptor() {
    if (fd_ >= 0) close(fd_);
  }

  int get() const { return fd_; }

 private:
  int fd_;
};

// A mapping that is unmapped at the end.
class Mapping {
 public:
  static absl::StatusOr<Mapping> Create(int fd, int64_t bytes, int protection) {
    // The kernel maps shared memory with huge pages only where the address allows them, so more
    // address space is reserved than needed and its ends are given back.
    const size_t length =
        static_cast<size_t>((bytes + kHugePageBytes - 1) / kHugePageBytes * kHugePageBytes);
    const size_t reserved = length + static_cast<size_t>(kHugePageBytes);
    void* space =
        mmap(nullptr, reserved, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (space == MAP_FAILED) return Failed(bytes);
    const uintptr_t begin = reinterpret_cast<uintptr_t>(space);
    const uintptr_t aligned = (begin + kHugePageBytes - 1) / kHugePageBytes * kHugePageBytes;
    if (aligned > begin) munmap(space, aligned - begin);
    munmap(reinterpret_cast<void*>(aligned + length), begin + reserved - aligned - length);
    Mapping mapping(reinterpret_cast<std::byte*>(aligned), static_cast<int64_t>(length));
    if (mmap(
            mapping.data_, static_cast<size_t>(bytes), protection, MAP_SHARED | MAP_FIXED, fd, 0) ==
        MAP_FAILED) {
      return Failed(bytes);
    }
    // Only advice: without huge pages everything works, more slowly.
    static_cast<void>(madvise(mapping.data_, static_cast<size_t>(bytes), MADV_HUGEPAGE));
    // Now rather than one page fault at a time later. When writing, this is also where too little
    // memory is an error and not a signal. EINVAL: the kernel is older than 5.14 and cannot.
    const int populate = (protection & PROT_WRITE) != 0 ? MADV_POPULATE_WRITE : MADV_POPULATE_READ;
    if (madvise(mapping.data_, static_cast<size_t>(bytes), populate) != 0 && errno != EINVAL) {
      return Failed(bytes);
    }
    return mapping;
  }

  Mapping(Mapping&& other) noexcept
      : data_(std::exchange(other.data_, nullptr)), bytes_(other.bytes_) {}

  ~Mapping() {
    if (data_ != nullptr) munmap(data_, static_cast<size_t>(bytes_));
  }

  std::byte* data() const { return data_; }

 private:
  Mapping(std::byte* data, int64_t bytes) : data_(data), bytes_(bytes) {}

  static absl::Status Failed(int64_t bytes) {
    const std::string message =
        absl::StrCat("mapping ", bytes, " bytes of dense weights: ", std::strerror(errno));
    return absl::ResourceExhaustedError(message);
  }

  std::byte* data_;
  int64_t bytes_;
};

class SharedSegment final : public DenseSegment {
 public:
  SharedSegment(Descriptor fd, Mapping mapping, const DensePlan& plan, const ModelConfig& config)
      : fd_(std::move(fd)),
        mapping_(std::move(mapping)),
        bytes_(plan.bytes),
        weights_(MakeViews(plan, config, mapping_.data())) {}

  int fd() const override { return fd_.get(); }

  int64_t bytes() const override { return bytes_; }

  const std::byte* data() const override { return mapping_.data(); }

  const DenseWeights& weights() const override { return weights_; }

 private:
  const Descriptor fd_;
  const Mapping mapping_;
  const int64_t bytes_;
  const DenseWeights weights_;  // Points into mapping_
};

absl::StatusOr<std::unique_ptr<DenseSegment>> MapReadOnly(Descriptor fd,
                                                          const DensePlan& plan,
                                                          const ModelConfig& config) {
  ASSIGN_OR_RETURN(Mapping mapping, Mapping::Create(fd.get(), plan.bytes, PROT_READ));
  return std::make_unique<SharedSegment>(std::move(fd), std::move(mapping), plan, config);
}

}  // namespace

int64_t DenseSegmentBytes(const ModelConfig& config) {
  return PlanDense(config).bytes;
}

absl::StatusOr<std::unique_ptr<DenseSegment>> DenseSegment::Load(const WeightSource& source,
                                                                 const LoadProgress& progress) {
  const DensePlan plan = PlanDense(source.config());
  Descriptor fd(memfd_create("shoal dense weights", MFD_CLOEXEC | MFD_ALLOW_SEALING));
  if (fd.get() < 0) return absl::ErrnoToStatus(errno, "memfd_create for the dense weights");
  if (ftruncate(fd.get(), plan.bytes) != 0) {
    return absl::ErrnoToStatus(errno, absl::StrCat(plan.bytes, " bytes for the dense weights"));
  }
  {
    ASSIGN_OR_RETURN(const Mapping mapping,
                     Mapping::Create(fd.get(), plan.bytes, PROT_READ | PROT_WRITE));
    RETURN_IF_ERROR(Fill(source, plan, progress, mapping.data()));
    Header header{.magic = {}, .bytes = plan.bytes, .geometry = GeometryHash(plan)};
    std::memcpy(header.magic, kMagic, sizeof(kMagic));
    std::memcpy(mapping.data(), &header, sizeof(header));
  }  // Sealing against writes needs that nobody has it mapped for writing.
  if (fcntl(fd.get(), F_ADD_SEALS, kSeals) != 0) {
    return absl::ErrnoToStatus(errno, "sealing the dense weights");
  }
  return MapReadOnly(std::move(fd), plan, source.config());
}

absl::StatusOr<std::unique_ptr<DenseSegment>> DenseSegment::Map(int fd, const ModelConfig& config) {
  const DensePlan plan = PlanDense(config);
  Descriptor own(fcntl(fd, F_DUPFD_CLOEXEC, 0));
  if (own.get() < 0)
    return absl::ErrnoToStatus(errno, absl::StrCat("dense weights in descriptor ", fd));

  struct stat info {};

  if (fstat(own.get(), &info) != 0) return absl::ErrnoToStatus(errno, "dense weights");
  if (info.st_size != plan.bytes) {
    return absl::FailedPreconditionError(absl::StrCat(
        "the shared dense weights have ", info.st_size, " bytes; this model's have ", plan.bytes));
  }
  // Sealed also means complete: Load seals when the last byte is there.
  const int seals = fcntl(own.get(), F_GET_SEALS);
  if (seals < 0 || (seals & kSeals) != kSeals) {
    return absl::FailedPreconditionError(
        absl::StrCat("descriptor ", fd, " is not a sealed segment of dense weights"));
  }
  Header header{};
  if (pread(own.get(), &header, sizeof(header), 0) != static_cast<ssize_t>(sizeof(header)) ||
      std::memcmp(header.magic, kMagic, sizeof(kMagic)) != 0 || header.bytes != plan.bytes ||
      header.geometry != GeometryHash(plan)) {
    return absl::FailedPreconditionError(
        "the shared dense weights are of another model or of another version of shoal");
  }
  return MapReadOnly(std::move(own), plan, config);
}

}  // namespace shoal
