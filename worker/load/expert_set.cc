// The experts of one rank: read, checked and repacked, each into one slab of device memory that
// holds it in all layers, so that experts come and go without touching the others.
#include <algorithm>
#include <array>
#include <cstring>
#include <optional>
#include <utility>

#include "absl/strings/str_cat.h"

#include "base/check.h"
#include "base/status_macros.h"
#include "model/tensors.h"
#include "worker/load/loader.h"
#include "worker/load/meter.h"
#include "worker/load/mxfp4.h"
#include "worker/load/pinned.h"
#include "worker/load/read_ahead.h"
#include "worker/load/widen.h"

namespace shoal {
namespace {

constexpr int64_t kAlignment = 64;

int64_t Aligned(int64_t bytes) {
  return (bytes + kAlignment - 1) / kAlignment * kAlignment;
}

// Scales outside [2, 252] give values that bf16 holds only as subnormals or not at all (spec 3.2).
constexpr uint8_t kFirstOrdinaryScale = 2;
constexpr uint8_t kLastOrdinaryScale = 252;
constexpr int kNanScale = 255;

// One of the two matrices of an expert and the names of its tensors.
struct Projection {
  int64_t out;
  int64_t in;
  TensorKind codes, scales;  // As MXFP4
  TensorKind weight;         // As BF16
  TensorKind bias;
};

// Where things lie in one layer's part of a slab.
struct SlabLayout {
  int64_t gate_up = 0, down = 0, gate_up_bias = 0, down_bias = 0;
  int64_t layer_bytes = 0;
};

std::array<Projection, 2> Projections(const ModelConfig& config) {
  return {Projection{.out = int64_t{2} * config.intermediate,
                     .in = config.hidden,
                     .codes = TensorKind::kGateUpCodes,
                     .scales = TensorKind::kGateUpScales,
                     .weight = TensorKind::kGateUpWeight,
                     .bias = TensorKind::kGateUpBias},
          Projection{.out = config.hidden,
                     .in = config.intermediate,
                     .codes = TensorKind::kDownCodes,
                     .scales = TensorKind::kDownScales,
                     .weight = TensorKind::kDownWeight,
                     .bias = TensorKind::kDownBias}};
}

ExpertFormat FormatOf(const ModelConfig& config) {
  return config.storage == ExpertStorage::kMxfp4 ? ExpertFormat::kMxfp4 : ExpertFormat::kBf16;
}

SlabLayout LayOutSlab(const ModelConfig& config, const Backend& backend) {
  const auto [gate_up, down] = Projections(config);
  const ExpertFormat format = FormatOf(config);
  SlabLayout layout;
  layout.gate_up = 0;
  layout.down = Aligned(backend.PackedBytes(format, gate_up.out, gate_up.in));
  layout.gate_up_bias = layout.down + Aligned(backend.PackedBytes(format, down.out, down.in));
  layout.down_bias = layout.gate_up_bias + Aligned(gate_up.out * 4);
  layout.layer_bytes = layout.down_bias + Aligned(down.out * 4);
  return layout;
}

// One projection of one expert: its MXFP4 codes and scales, or its BF16 weight.
struct Stored {
  std::vector<uint16_t> weight;
  Mxfp4Matrix packed;
  int64_t odd_scales = 0;
  std::vector<float> bias;
};

// What is read for one projection of one expert.
int64_t StoredBytes(const Projection& p, ExpertStorage stored) {
  const int64_t elements = p.out * p.in;
  const bool is_mxfp4 = stored == ExpertStorage::kMxfp4;
  return (is_mxfp4 ? elements / 2 + elements / kMxBlock : 2 * elements) + 2 * p.out;
}

absl::Status ReadMxfp4(const WeightSource& source,
                       const Projection& p,
                       int layer,
                       int64_t expert,
                       Mxfp4Matrix* matrix) {
  matrix->codes.resize(static_cast<size_t>(p.out * p.in / 2));
  matrix->scales.resize(static_cast<size_t>(p.out * p.in / kMxBlock));
  RETURN_IF_ERROR(
      source.Read(TensorName(p.codes, layer), expert * std::ssize(matrix->codes), matrix->codes));
  return source.Read(TensorName(p.scales, layer),
                     expert * std::ssize(matrix->scales),
                     std::as_writable_bytes(std::span(matrix->scales)));
}

absl::Status Pack(const Projection& p, int layer, int64_t expert, Stored* stored) {
  const std::optional<MatrixPlace> bad = PackMxfp4(stored->weight, p.in, p.out, &stored->packed);
  if (!bad.has_value()) return absl::OkStatus();
  return absl::DataLossError(
      absl::StrCat("tensor ",
                   TensorName(p.weight, layer),
                   ": the block [",
                   expert,
                   ", ",
                   bad->in,
                   " to ",
                   bad->in + kMxBlock - 1,
                   ", ",
                   bad->out,
                   "] holds values that MXFP4 does not have, while samples of all experts have "
                   "only such; --load-format stored keeps the experts as BF16"));
}

// Returns how many scales are out of the ordinary.
absl::StatusOr<int64_t> CheckScales(std::span<const uint8_t> scales,
                                    const Projection& p,
                                    int layer,
                                    int64_t expert) {
  const void* nan = scales.empty() ? nullptr : std::memchr(scales.data(), kNanScale, scales.size());
  if (nan != nullptr) {
    const int64_t at = static_cast<const uint8_t*>(nan) - scales.data();
    const int64_t groups = p.in / kMxBlock;
    return absl::DataLossError(
        absl::StrCat("tensor ",
                     TensorName(p.scales, layer),
                     ": scale [",
                     expert,
                     ", ",
                     at / groups,
                     ", ",
                     at % groups,
                     "] is 255, which makes the whole block NaN; 0 to 254 are numbers"));
  }
  return std::count_if(scales.begin(), scales.end(), [](uint8_t scale) {
    return scale < kFirstOrdinaryScale || scale > kLastOrdinaryScale;
  });
}

// Overwrites `stored`, whose memory is used again: fresh pages cost as much as the reading.
absl::Status ReadStored(
    const WeightSource& source, const Projection& p, int layer, int64_t expert, Stored* stored) {
  if (source.stored() == ExpertStorage::kMxfp4) {
    RETURN_IF_ERROR(ReadMxfp4(source, p, layer, expert, &stored->packed));
  } else {
    stored->weight.resize(static_cast<size_t>(p.out * p.in));
    RETURN_IF_ERROR(source.Read(TensorName(p.weight, layer),
                                expert * 2 * std::ssize(stored->weight),
                                std::as_writable_bytes(std::span(stored->weight))));
    if (source.config().storage == ExpertStorage::kMxfp4) {
      RETURN_IF_ERROR(Pack(p, layer, expert, stored));
    }
  }
  if (source.config().storage == ExpertStorage::kMxfp4) {
    ASSIGN_OR_RETURN(stored->odd_scales, CheckScales(stored->packed.scales, p, layer, expert));
  }
  stored->bias.resize(static_cast<size_t>(p.out));
  return ReadWidened(source, TensorName(p.bias, layer), expert * p.out, stored->bias);
}

class DeviceExpertSet final : public ExpertSet {
 public:
  DeviceExpertSet(const WeightSource* source, Backend* backend)
      : source_(*source),
        backend_(*backend),
        projections_(Projections(source->config())),
        layout_(LayOutSlab(source->config(), *backend)),
        layers_(static_cast<size_t>(source->config().num_layers)),
        local_index_(static_cast<size_t>(source->config().num_experts), -1) {}

  ~DeviceExpertSet() override { FreeAll(slabs_); }

  absl::Status Hold(std::span<const ExpertId> experts, const LoadProgress& progress) override;

  std::span<const ExpertId> experts() const override { return experts_; }

  std::span<const ExpertLayer> layers() const override { return layers_; }

  std::span<const int32_t> local_index() const override { return local_index_; }

  int64_t resident_bytes() const override { return std::ssize(slabs_) * slab_bytes(); }

  int64_t odd_scales() const override { return odd_scales_; }

 private:
  // One projection of one expert in one layer.
  struct Item {
    int layer;
    ExpertId expert;
    std::byte* slab;
    const Projection* projection;
  };

  int64_t slab_bytes() const { return layout_.layer_bytes * source_.config().num_layers; }

  bool is_mxfp4() const { return source_.config().storage == ExpertStorage::kMxfp4; }

  absl::Status Load(std::span<const ExpertId> missing,
                    const LoadProgress& progress,
                    std::vector<std::byte*>* slabs);
  absl::Status AllocateSlabs(std::span<const ExpertId> missing, std::vector<std::byte*>* slabs);
  absl::Status Read(std::span<const Item> items, LoadMeter* meter);
  void Reserve(const Projection& p, Stored* buffer) const;
  void Place(const Stored& stored, const Item& item);
  bool CanSynthesize() const;
  absl::Status Synthesize(std::span<const Item> items, LoadMeter* meter);
  void SynthesizeItem(const Item& item, std::byte* codes, uint8_t* scales);
  std::byte* PackedOf(const Item& item) const;
  std::byte* BiasOf(const Item& item) const;
  void Adopt(std::span<const ExpertId> experts, std::vector<std::byte*> slabs);
  void FreeAll(std::span<std::byte* const> slabs);

  const WeightSource& source_;
  Backend& backend_;
  const std::array<Projection, 2> projections_;
  const SlabLayout layout_;

  std::vector<ExpertId> experts_;  // Rising
  std::vector<std::byte*> slabs_;  // Of experts_; owned
  std::vector<ExpertLayer> layers_;
  std::vector<int32_t> local_index_;
  int64_t odd_scales_ = 0;
};

absl::Status DeviceExpertSet::Hold(std::span<const ExpertId> experts,
                                   const LoadProgress& progress) {
  CHECK(std::is_sorted(experts.begin(), experts.end()));
  CHECK(std::adjacent_find(experts.begin(), experts.end()) == experts.end());
  std::vector<ExpertId> missing;
  for (const ExpertId expert : experts) {
    CHECK(expert.value >= 0 && expert.value < source_.config().num_experts);
    if (local_index_[static_cast<size_t>(expert.value)] < 0) missing.push_back(expert);
  }
  std::vector<std::byte*> loaded;
  if (const absl::Status status = Load(missing, progress, &loaded); !status.ok()) {
    FreeAll(loaded);
    return status;
  }
  std::vector<std::byte*> slabs;
  auto next_loaded = loaded.begin();
  for (const ExpertId expert : experts) {
    const int32_t held = local_index_[static_cast<size_t>(expert.value)];
    slabs.push_back(held < 0 ? *next_loaded++
                             : std::exchange(slabs_[static_cast<size_t>(held)], nullptr));
  }
  FreeAll(slabs_);  // What was not taken over.
  Adopt(experts, std::move(slabs));
  return absl::OkStatus();
}

// Layer by layer, so that the reads of a file rise.
absl::Status DeviceExpertSet::Load(std::span<const ExpertId> missing,
                                   const LoadProgress& progress,
                                   std::vector<std::byte*>* slabs) {
  RETURN_IF_ERROR(AllocateSlabs(missing, slabs));
  std::vector<Item> items;
  int64_t total = 0;
  for (int layer = 0; layer < source_.config().num_layers; ++layer) {
    for (const Projection& projection : projections_) {
      for (size_t local = 0; local < missing.size(); ++local) {
        items.push_back({layer, missing[local], (*slabs)[local], &projection});
        total += StoredBytes(projection, source_.stored());
      }
    }
  }
  if (items.empty()) return absl::OkStatus();
  LoadMeter meter(progress, total);
  try {
    RETURN_IF_ERROR(CanSynthesize() ? Synthesize(items, &meter) : Read(items, &meter));
    backend_.Synchronize();  // Other threads compute with these, on streams of their own.
  } catch (const DeviceFault& fault) {
    return absl::UnavailableError(absl::StrCat("loading experts: ", fault.what()));
  }
  return absl::OkStatus();
}

absl::Status DeviceExpertSet::AllocateSlabs(std::span<const ExpertId> missing,
                                            std::vector<std::byte*>* slabs) {
  for (const ExpertId expert : missing) {
    void* slab = backend_.Allocate(static_cast<size_t>(slab_bytes()));
    if (slab == nullptr) {
      return absl::ResourceExhaustedError(
          absl::StrCat("no memory for expert ",
                       expert.value,
                       ": each of the ",
                       missing.size(),
                       " experts to load needs ",
                       slab_bytes(),
                       " bytes, and ",
                       slabs->size(),
                       " have got them; ",
                       (std::ssize(missing) - std::ssize(*slabs)) * slab_bytes(),
                       " are missing: more workers or a smaller cache would do"));
    }
    slabs->push_back(static_cast<std::byte*>(slab));
  }
  return absl::OkStatus();
}

// While some projections are read, another one is repacked.
absl::Status DeviceExpertSet::Read(std::span<const Item> items, LoadMeter* meter) {
  std::vector<Stored> buffers(static_cast<size_t>(backend_.num_readers()) + 1);
  std::vector<std::span<const std::byte>> ranges;
  for (Stored& buffer : buffers) {
    for (const Projection& p : projections_) Reserve(p, &buffer);
    if (is_mxfp4()) {
      ranges.push_back(buffer.packed.codes);
      ranges.push_back(std::as_bytes(std::span(buffer.packed.scales)));
    } else {
      ranges.push_back(std::as_bytes(std::span(buffer.weight)));
    }
  }
  const PinnedRanges pinned(&backend_, std::move(ranges));
  return ReadAhead(
      std::ssize(items),
      static_cast<int>(buffers.size()),
      [&](int64_t i, size_t buffer) {
        const Item& item = items[static_cast<size_t>(i)];
        return ReadStored(
            source_, *item.projection, item.layer, item.expert.value, &buffers[buffer]);
      },
      [&](int64_t i, size_t buffer) {
        const Item& item = items[static_cast<size_t>(i)];
        Place(buffers[buffer], item);
        return meter->Add(StoredBytes(*item.projection, source_.stored()));
      });
}

// Room for a projection, so that reading the larger or the smaller one moves nothing.
void DeviceExpertSet::Reserve(const Projection& p, Stored* buffer) const {
  const auto elements = static_cast<size_t>(p.out * p.in);
  const auto grow = [](auto* vector, size_t size) {
    if (vector->size() < size) vector->resize(size);
  };
  if (source_.stored() == ExpertStorage::kBf16) grow(&buffer->weight, elements);
  if (!is_mxfp4()) return;
  grow(&buffer->packed.codes, elements / 2);
  grow(&buffer->packed.scales, elements / kMxBlock);
}

bool DeviceExpertSet::CanSynthesize() const {
  return is_mxfp4() && source_.stored() == ExpertStorage::kMxfp4 &&
         source_.formula(TensorName(projections_[0].codes, 0)).has_value() &&
         backend_.Synthesize({});
}

absl::Status DeviceExpertSet::Synthesize(std::span<const Item> items, LoadMeter* meter) {
  int64_t most = 0;  // Elements of a projection
  for (const Projection& p : projections_) most = std::max(most, p.out * p.in);
  const int64_t bytes = most / 2 + most / kMxBlock;
  auto* const codes = static_cast<std::byte*>(backend_.Allocate(static_cast<size_t>(bytes)));
  if (codes == nullptr) {
    return absl::ResourceExhaustedError(
        absl::StrCat("no memory for ", bytes, " bytes to make experts in"));
  }
  absl::Status status;
  for (size_t i = 0; i < items.size() && status.ok(); ++i) {
    SynthesizeItem(items[i], codes, reinterpret_cast<uint8_t*>(codes + most / 2));
    status = meter->Add(StoredBytes(*items[i].projection, source_.stored()));
  }
  backend_.Free(codes, static_cast<size_t>(bytes));
  return status;
}

void DeviceExpertSet::SynthesizeItem(const Item& item, std::byte* codes, uint8_t* scales) {
  const Projection& p = *item.projection;
  const auto make = [&](TensorKind kind, int64_t count, DType dtype, void* out) {
    backend_.Synthesize({.formula = *source_.formula(TensorName(kind, item.layer)),
                         .first = item.expert.value * count,
                         .count = count,
                         .dtype = dtype,
                         .out = out});
  };
  make(p.codes, p.out * p.in / 2, DType::kU8, codes);
  make(p.scales, p.out * p.in / kMxBlock, DType::kU8, scales);
  backend_.Repack({.format = ExpertFormat::kMxfp4,
                   .out = p.out,
                   .in = p.in,
                   .codes = codes,
                   .scales = scales,
                   .packed = PackedOf(item),
                   .source = RepackArgs::Source::kDevice});
  make(p.bias, p.out, DType::kF32, BiasOf(item));
}

std::byte* DeviceExpertSet::PackedOf(const Item& item) const {
  const bool is_gate_up = item.projection->bias == TensorKind::kGateUpBias;
  return item.slab + item.layer * layout_.layer_bytes +
         (is_gate_up ? layout_.gate_up : layout_.down);
}

std::byte* DeviceExpertSet::BiasOf(const Item& item) const {
  const bool is_gate_up = item.projection->bias == TensorKind::kGateUpBias;
  return item.slab + item.layer * layout_.layer_bytes +
         (is_gate_up ? layout_.gate_up_bias : layout_.down_bias);
}

void DeviceExpertSet::Place(const Stored& stored, const Item& item) {
  const Projection& p = *item.projection;
  backend_.Repack({.format = FormatOf(source_.config()),
                   .out = p.out,
                   .in = p.in,
                   .codes = is_mxfp4() ? stored.packed.codes.data()
                                       : std::as_bytes(std::span(stored.weight)).data(),
                   .scales = is_mxfp4() ? stored.packed.scales.data() : nullptr,
                   .packed = PackedOf(item)});
  backend_.Write(BiasOf(item), stored.bias.data(), stored.bias.size() * sizeof(float));
  odd_scales_ += stored.odd_scales;
}

void DeviceExpertSet::Adopt(std::span<const ExpertId> experts, std::vector<std::byte*> slabs) {
  experts_.assign(experts.begin(), experts.end());
  slabs_ = std::move(slabs);
  std::fill(local_index_.begin(), local_index_.end(), -1);
  for (size_t i = 0; i < experts_.size(); ++i) {
    local_index_[static_cast<size_t>(experts_[i].value)] = static_cast<int32_t>(i);
  }
  const ExpertFormat format = FormatOf(source_.config());
  for (size_t layer = 0; layer < layers_.size(); ++layer) {
    ExpertLayer& views = layers_[layer];
    views.gate_up = {
        .format = format, .out = projections_[0].out, .in = projections_[0].in, .experts = {}};
    views.down = {
        .format = format, .out = projections_[1].out, .in = projections_[1].in, .experts = {}};
    views.gate_up_bias.clear();
    views.down_bias.clear();
    for (const std::byte* slab : slabs_) {
      const std::byte* base = slab + static_cast<int64_t>(layer) * layout_.layer_bytes;
      views.gate_up.experts.push_back(base + layout_.gate_up);
      views.down.experts.push_back(base + layout_.down);
      views.gate_up_bias.push_back(reinterpret_cast<const float*>(base + layout_.gate_up_bias));
      views.down_bias.push_back(reinterpret_cast<const float*>(base + layout_.down_bias));
    }
  }
}

void DeviceExpertSet::FreeAll(std::span<std::byte* const> slabs) {
  for (std::byte* slab : slabs) {
    if (slab != nullptr) backend_.Free(slab, static_cast<size_t>(slab_bytes()));
  }
}

}  // namespace

int64_t ExpertResidentBytes(const ModelConfig& config, const Backend& backend) {
  return LayOutSlab(config, backend).layer_bytes * config.num_layers;
}

std::unique_ptr<ExpertSet> ExpertSet::Create(const WeightSource* source, Backend* backend) {
  return std::make_unique<DeviceExpertSet>(source, backend);
}

}  // namespace shoal
