#include "worker/kv_cache.h"

#include <algorithm>
#include <cstddef>
#include <memory>

#include "absl/strings/str_cat.h"

namespace shoal {
namespace {

KvLayer EmptyLayer(const ModelConfig& config) {
  return {.data = nullptr,
          .num_blocks = 0,
          .num_kv_heads = config.num_kv_heads,
          .head_dim = config.head_dim};
}

size_t Bytes(const KvLayer& layer) {
  return static_cast<size_t>(layer.num_blocks * layer.block_bytes());
}

}  // namespace

int64_t FullBlockBytes(const ModelConfig& config) {
  return config.num_full_layers() * EmptyLayer(config).block_bytes();
}

int64_t WindowBlockBytes(const ModelConfig& config) {
  return config.num_window_layers() * EmptyLayer(config).block_bytes();
}

BlockCounts BlocksThatFit(const ModelConfig& config,
                          int64_t bytes,
                          int32_t num_sequences,
                          int32_t chunk) {
  constexpr int64_t kMostBlocks = (int64_t{1} << 30) / kBlockTokens - 1;
  const int64_t full_bytes = FullBlockBytes(config);
  const int64_t window_bytes = WindowBlockBytes(config);
  const int64_t both = std::max<int64_t>(0, bytes) / (full_bytes + window_bytes);
  // A window and the chunk behind it may begin and end inside a block.
  const int64_t enough_windows =
      int64_t{num_sequences} * (config.sliding_window / kBlockTokens + 2) + chunk / kBlockTokens +
      1;
  const int64_t window = std::min(both, enough_windows);
  const int64_t full = full_bytes == 0 ? both : (bytes - window * window_bytes) / full_bytes;
  return {.full = static_cast<int32_t>(std::clamp<int64_t>(full, 0, kMostBlocks)),
          .window = static_cast<int32_t>(std::min(window, kMostBlocks))};
}

KvCache::KvCache(const ModelConfig& config, Backend* backend)
    : config_(config),
      backend_(backend),
      layers_(static_cast<size_t>(config.num_layers), EmptyLayer(config)) {}

KvCache::~KvCache() {
  for (const KvLayer& layer : layers_) {
    if (layer.data != nullptr) backend_->Free(layer.data, Bytes(layer));
  }
}

int64_t KvCache::WantedBlocks(size_t layer, const BlockCounts& counts) const {
  return config_.is_window_layer[layer] ? counts.window : counts.full;
}

int64_t KvCache::bytes() const {
  return counts_.full * FullBlockBytes(config_) + counts_.window * WindowBlockBytes(config_);
}

absl::Status KvCache::Resize(const BlockCounts& counts) {
  if (counts == counts_) return absl::OkStatus();
  std::vector<KvLayer> resized = layers_;
  for (size_t i = 0; i < resized.size(); ++i) {
    KvLayer& layer = resized[i];
    layer.num_blocks = WantedBlocks(i, counts);
    if (layer.num_blocks == layers_[i].num_blocks) continue;
    layer.data = layer.num_blocks == 0 ? nullptr : backend_->Allocate(Bytes(layer));
    if (layer.num_blocks == 0 || layer.data != nullptr) continue;
    for (size_t j = 0; j < i; ++j) {
      if (resized[j].data != layers_[j].data) backend_->Free(resized[j].data, Bytes(resized[j]));
    }
    return absl::ResourceExhaustedError(absl::StrCat(
        "no memory for ",
        counts.full * FullBlockBytes(config_) + counts.window * WindowBlockBytes(config_),
        " bytes of K/V: give --kv-tokens or more --memory"));
  }
  for (size_t i = 0; i < resized.size(); ++i) {
    if (resized[i].num_blocks == layers_[i].num_blocks) continue;
    const size_t kept = std::min(Bytes(resized[i]), Bytes(layers_[i]));
    if (kept > 0) {
      // Through host memory in pieces: a backend copies to and from the host only.
      constexpr size_t kPiece = size_t{1} << 20;
      const auto piece = std::make_unique<std::byte[]>(std::min(kept, kPiece));
      for (size_t at = 0; at < kept; at += kPiece) {
        const size_t size = std::min(kPiece, kept - at);
        backend_->Read(piece.get(), static_cast<const std::byte*>(layers_[i].data) + at, size);
        backend_->Write(static_cast<std::byte*>(resized[i].data) + at, piece.get(), size);
      }
    }
    if (layers_[i].data != nullptr) backend_->Free(layers_[i].data, Bytes(layers_[i]));
  }
  layers_ = std::move(resized);
  counts_ = counts;
  return absl::OkStatus();
}

}  // namespace shoal
