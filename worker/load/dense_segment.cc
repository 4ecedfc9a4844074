// The dense weights of a model in one piece of memory that the processes of a host share.
//
// Layout: a page with the header, then every part at a multiple of 64 bytes, in the order in which
// a step reads them: layer by layer, then final norm, unembedding, embedding. Matrices are bf16 as
// in the checkpoint, with q, k and v rows in one; vectors are fp32.
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

#include "base/check.h"
#include "base/prng.h"
#include "base/status_macros.h"
#include "model/tensors.h"
#include "worker/load/loader.h"
#include "worker/load/meter.h"
#include "worker/load/widen.h"

namespace shoal {
namespace {

constexpr int64_t kHeaderBytes = 4096;
constexpr int64_t kAlignment = 64;
constexpr int64_t kHugePageBytes = int64_t{2} << 20;
// One read: large enough that its cost is the bytes, small enough that progress moves.
constexpr int64_t kReadBytes = int64_t{32} << 20;
constexpr char kMagic[8] = {'S', 'H', 'O', 'A', 'L', 'D', 'W', '1'};
constexpr int kSeals = F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_WRITE;

struct Header {
  char magic[8];
  int64_t bytes;      // Of the whole segment
  uint64_t geometry;  // Hash of the plan: which tensor lies where
};

// One tensor's place in the segment.
struct Part {
  ModelTensor tensor;
  int64_t offset = 0;

  bool is_vector() const { return tensor.shape.size() == 1; }

  int64_t bytes() const { return tensor.num_elements() * (is_vector() ? 4 : 2); }
};

struct Plan {
  std::vector<Part> parts;
  int64_t bytes = kHeaderBytes;
};

// Where `kind` stands in a step. k and v follow q at once, so that the three are one matrix.
int OrderInLayer(TensorKind kind) {
  constexpr TensorKind kOrder[] = {TensorKind::kAttentionNorm,
                                   TensorKind::kQueryWeight,
                                   TensorKind::kKeyWeight,
                                   TensorKind::kValueWeight,
                                   TensorKind::kQueryBias,
                                   TensorKind::kKeyBias,
                                   TensorKind::kValueBias,
                                   TensorKind::kSinks,
                                   TensorKind::kOutWeight,
                                   TensorKind::kOutBias,
                                   TensorKind::kMlpNorm,
                                   TensorKind::kRouterWeight,
                                   TensorKind::kRouterBias,
                                   TensorKind::kFinalNorm,
                                   TensorKind::kUnembedding,
                                   TensorKind::kEmbedding};
  const auto* at = std::find(std::begin(kOrder), std::end(kOrder), kind);
  CHECK(at != std::end(kOrder));
  return static_cast<int>(at - kOrder);
}

bool ContinuesBefore(TensorKind kind) {
  return kind == TensorKind::kKeyWeight || kind == TensorKind::kValueWeight ||
         kind == TensorKind::kKeyBias || kind == TensorKind::kValueBias;
}

Plan PlanDense(const ModelConfig& config) {
  Plan plan;
  for (ModelTensor& tensor : ModelTensors(config)) {
    if (ClassOf(tensor.kind) == TensorClass::kDense) plan.parts.push_back({std::move(tensor)});
  }
  const auto key = [&](const Part& part) {
    const int layer = part.tensor.layer < 0 ? config.num_layers : part.tensor.layer;
    return std::pair(layer, OrderInLayer(part.tensor.kind));
  };
  std::sort(plan.parts.begin(), plan.parts.end(), [&](const Part& a, const Part& b) {
    return key(a) < key(b);
  });
  for (Part& part : plan.parts) {
    if (!ContinuesBefore(part.tensor.kind)) {
      plan.bytes = (plan.bytes + kAlignment - 1) / kAlignment * kAlignment;
    }
    part.offset = plan.bytes;
    plan.bytes += part.bytes();
  }
  return plan;
}

uint64_t GeometryHash(const Plan& plan) {
  uint64_t hash = kFnvOffset;
  for (const Part& part : plan.parts) {
    hash = Fnv1a64(
        absl::StrCat(part.tensor.name, ShapeToString(part.tensor.shape), "@", part.offset, ";"),
        hash);
  }
  return hash;
}

DenseWeights MakeViews(const Plan& plan, const ModelConfig& config, std::byte* base) {
  DenseWeights weights;
  weights.layers.resize(static_cast<size_t>(config.num_layers));
  for (const Part& part : plan.parts) {
    const ModelTensor& tensor = part.tensor;
    std::byte* data = base + part.offset;
    const auto* vector = reinterpret_cast<const float*>(data);
    const int64_t cols = part.is_vector() ? 0 : tensor.shape[1];
    const TensorView matrix = MakeTensor(data, DType::kBf16, tensor.shape[0], cols);
    DenseLayer* layer =
        tensor.layer < 0 ? nullptr : &weights.layers[static_cast<size_t>(tensor.layer)];
    switch (tensor.kind) {
      case TensorKind::kAttentionNorm:
        layer->attention_norm = vector;
        break;
      case TensorKind::kQueryWeight:
        layer->qkv = MakeTensor(data, DType::kBf16, config.qkv_rows(), cols);
        break;
      case TensorKind::kQueryBias:
        layer->qkv_bias = vector;
        break;
      case TensorKind::kSinks:
        layer->sinks = vector;
        break;
      case TensorKind::kOutWeight:
        layer->out = matrix;
        break;
      case TensorKind::kOutBias:
        layer->out_bias = vector;
        break;
      case TensorKind::kMlpNorm:
        layer->mlp_norm = vector;
        break;
      case TensorKind::kRouterWeight:
        layer->router = matrix;
        break;
      case TensorKind::kRouterBias:
        layer->router_bias = vector;
        break;
      case TensorKind::kEmbedding:
        weights.embedding = matrix;
        break;
      case TensorKind::kUnembedding:
        weights.unembedding = matrix;
        break;
      case TensorKind::kFinalNorm:
        weights.final_norm = vector;
        break;
      default:
        break;  // k and v lie behind q.
    }
  }
  return weights;
}

absl::Status Fill(const WeightSource& source,
                  const Plan& plan,
                  const LoadProgress& progress,
                  std::byte* base) {
  int64_t total = 0;
  for (const Part& part : plan.parts) total += part.tensor.bytes();
  LoadMeter meter(progress, total);
  for (const Part& part : plan.parts) {
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
  SharedSegment(Descriptor fd, Mapping mapping, const Plan& plan, const ModelConfig& config)
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
                                                          const Plan& plan,
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
  const Plan plan = PlanDense(source.config());
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
  const Plan plan = PlanDense(config);
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
