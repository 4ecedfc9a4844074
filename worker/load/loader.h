// From a checkpoint folder (or from a formula) to weights in memory: this rank's bytes only.
// Three sources behind one interface; dense weights may be shared between the processes of a host.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"

#include "base/ids.h"
#include "kernels/backend.h"
#include "kernels/synthetic.h"
#include "model/config.h"
#include "worker/weights.h"

namespace shoal {

// Called from the loading thread now and then, and at the end. Returning false cancels: kCancelled.
using LoadProgress = std::function<bool(int64_t done_bytes, int64_t total_bytes)>;

// What becomes of BF16 experts in memory. A re-save of a release holds MXFP4 values, which the
// samples of OpenCheckpoint show: packed again, they take a quarter of the memory and give the
// release's bits. A fine-tune's stay BF16.
enum class Bf16Experts : uint8_t { kPackIfExact, kKeep };

// Where weights come from. Thread-safe for reading (each call opens what it needs).
class WeightSource {
 public:
  virtual ~WeightSource() = default;

  // Its storage is how experts are kept in memory.
  virtual const ModelConfig& config() const = 0;

  // How they are stored, and so read. BF16 beside a config that says MXFP4: ExpertSet packs them.
  virtual ExpertStorage stored() const { return config().storage; }

  // Hexadecimal; equal for equal checkpoints: of the config, the tensor table and the file sizes.
  virtual std::string digest() const = 0;

  // Reads bytes [offset, offset + out.size()) of a tensor, named as in the Hugging Face MXFP4 (or
  // BF16) layout, whatever the files call it.
  virtual absl::Status Read(absl::string_view tensor,
                            int64_t offset,
                            std::span<std::byte> out) const = 0;

  // What makes the tensor on a device, where there is a formula (`--load-format dummy`).
  virtual std::optional<SyntheticFormula> formula(absl::string_view tensor) const {
    static_cast<void>(tensor);
    return std::nullopt;
  }
};

// Opens DIR in any of the three layouts and checks its tensor table against the config: missing,
// extra, misshapen or wrongly typed tensors, truncated or overlapping data, bad headers. Reads
// headers and samples only. Errors name file, tensor and value.
absl::StatusOr<std::unique_ptr<WeightSource>> OpenCheckpoint(
    const std::string& dir, Bf16Experts bf16_experts = Bf16Experts::kPackIfExact);

// `--load-format dummy`: the formula of spec 8.6 for any geometry, made in memory; no file is read.
// The same bytes as `shoal synth` writes.
std::unique_ptr<WeightSource> MakeSyntheticSource(const ModelConfig& config);

// Dense weights in one memory segment (a sealed memfd) that other processes of the host can map.
class DenseSegment {
 public:
  // Reads from `source` into a new segment.
  static absl::StatusOr<std::unique_ptr<DenseSegment>> Load(const WeightSource& source,
                                                            const LoadProgress& progress);
  // Maps the segment of another process, read-only. Checks its size and header against the config.
  static absl::StatusOr<std::unique_ptr<DenseSegment>> Map(int fd, const ModelConfig& config);

  virtual ~DenseSegment() = default;
  virtual int fd() const = 0;
  virtual int64_t bytes() const = 0;
  virtual const std::byte* data() const = 0;  // Where weights() points into
  virtual const DenseWeights& weights() const = 0;
};

// The experts that one rank holds, in the backend's layout. One thread. An expert that stays is
// not moved: a copy of layers() stays valid for the experts that no later Hold() drops, so another
// thread may compute with such a copy while this one loads more.
class ExpertSet {
 public:
  static std::unique_ptr<ExpertSet> Create(const WeightSource* source, Backend* backend);
  virtual ~ExpertSet() = default;

  // Holds exactly `experts` (rising) afterwards; loads what is missing, drops what is not listed.
  // On failure holds what it held. MXFP4 scales of 255 are kDataLoss, and so is a BF16 expert that
  // its samples took for MXFP4 and is not.
  virtual absl::Status Hold(std::span<const ExpertId> experts, const LoadProgress& progress) = 0;

  virtual std::span<const ExpertId> experts() const = 0;
  virtual std::span<const ExpertLayer> layers() const = 0;   // [num_layers]
  virtual std::span<const int32_t> local_index() const = 0;  // [num_experts], -1: not held
  virtual int64_t resident_bytes() const = 0;

  // MXFP4 scales met so far that are numbers but that no released model uses (below 2, above 252):
  // worth a warning.
  virtual int64_t odd_scales() const { return 0; }
};

// What DenseSegment and, per expert in all layers, ExpertSet will take: for plans made beforehand.
int64_t DenseSegmentBytes(const ModelConfig& config);
int64_t ExpertResidentBytes(const ModelConfig& config, const Backend& backend);

}  // namespace shoal
