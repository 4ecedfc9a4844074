#include "worker/load/device_dense.h"

#include <algorithm>
#include <cstddef>
#include <span>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"

#include "base/status_macros.h"
#include "kernels/synthetic.h"
#include "worker/load/pinned.h"
#include "worker/load/read_ahead.h"
#include "worker/load/widen.h"

namespace shoal {
namespace {

// One read: as much as a large one of an expert's.
constexpr int64_t kReadBytes = int64_t{8} << 20;

// A piece of a part: elements [first, first + count).
struct Piece {
  const DensePart* part;
  int64_t first;
  int64_t count;

  int64_t stored_bytes() const { return 2 * count; }

  int64_t bytes() const { return (part->is_vector() ? 4 : 2) * count; }

  int64_t offset() const { return part->offset + (part->is_vector() ? 4 : 2) * first; }
};

std::vector<Piece> Pieces(const DensePlan& plan) {
  std::vector<Piece> pieces;
  for (const DensePart& part : plan.parts) {
    const int64_t all = part.tensor.num_elements();
    const int64_t each = kReadBytes / (part.is_vector() ? 4 : 2);
    for (int64_t first = 0; first < all; first += each) {
      pieces.push_back({&part, first, std::min(each, all - first)});
    }
  }
  return pieces;
}

absl::Status ReadPiece(const WeightSource& source, const Piece& piece, std::byte* to) {
  const std::string& tensor = piece.part->tensor.name;
  if (piece.part->is_vector()) {
    return ReadWidened(source,
                       tensor,
                       piece.first,
                       {reinterpret_cast<float*>(to), static_cast<size_t>(piece.count)});
  }
  return source.Read(tensor, 2 * piece.first, {to, static_cast<size_t>(piece.bytes())});
}

}  // namespace

absl::StatusOr<std::unique_ptr<DeviceDense>> DeviceDense::Load(const WeightSource& source,
                                                               const LoadProgress& progress,
                                                               Backend* backend) {
  const DensePlan plan = PlanDense(source.config());
  auto* const memory = static_cast<std::byte*>(backend->Allocate(static_cast<size_t>(plan.bytes)));
  if (memory == nullptr) {
    return absl::ResourceExhaustedError(absl::StrCat("no memory on ",
                                                     std::string(backend->name()),
                                                     " for ",
                                                     plan.bytes,
                                                     " bytes of dense weights"));
  }
  std::unique_ptr<DeviceDense> dense(
      new DeviceDense(memory, plan.bytes, MakeViews(plan, source.config(), memory), backend));
  LoadMeter meter(progress, plan.StoredBytes());
  const bool is_made =
      source.formula(plan.parts[0].tensor.name).has_value() && backend->Synthesize({});
  try {
    RETURN_IF_ERROR(is_made ? dense->Synthesize(source, plan, &meter)
                            : dense->Read(source, plan, &meter));
    backend->Synchronize();
  } catch (const DeviceFault& fault) {
    return absl::UnavailableError(absl::StrCat("loading the dense weights: ", fault.what()));
  }
  return dense;
}

absl::Status DeviceDense::Read(const WeightSource& source,
                               const DensePlan& plan,
                               LoadMeter* meter) {
  const std::vector<Piece> pieces = Pieces(plan);
  const int num_buffers = backend_->num_readers() + 1;
  std::vector<std::vector<std::byte>> buffers(static_cast<size_t>(num_buffers));
  for (std::vector<std::byte>& buffer : buffers) buffer.resize(kReadBytes);
  const PinnedRanges pinned(backend_, {buffers.begin(), buffers.end()});
  return ReadAhead(
      std::ssize(pieces),
      num_buffers,
      [&](int64_t i, size_t buffer) {
        return ReadPiece(source, pieces[static_cast<size_t>(i)], buffers[buffer].data());
      },
      [&](int64_t i, size_t buffer) {
        const Piece& piece = pieces[static_cast<size_t>(i)];
        backend_->Write(
            memory_ + piece.offset(), buffers[buffer].data(), static_cast<size_t>(piece.bytes()));
        return meter->Add(piece.stored_bytes());
      });
}

absl::Status DeviceDense::Synthesize(const WeightSource& source,
                                     const DensePlan& plan,
                                     LoadMeter* meter) {
  for (const DensePart& part : plan.parts) {
    backend_->Synthesize({.formula = *source.formula(part.tensor.name),
                          .first = 0,
                          .count = part.tensor.num_elements(),
                          .dtype = part.is_vector() ? DType::kF32 : DType::kBf16,
                          .out = memory_ + part.offset});
    RETURN_IF_ERROR(meter->Add(part.tensor.bytes()));
  }
  return absl::OkStatus();
}

DeviceDense::~DeviceDense() {
  backend_->Free(memory_, static_cast<size_t>(bytes_));
}

}  // namespace shoal
