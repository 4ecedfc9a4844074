#include "worker/kv_cache.h"

#include <algorithm>
#include <cstddef>

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
  const int64_t full_bytes = FullBlockBytes(config);
  const int64_t window_bytes = WindowBlockBytes(config);
  const int64_t both = std::max<int64_t>(0, bytes) / (full_bytes + window_bytes);
  // A window and the chunk behind it may begin and end inside a block.
  const int64_t blocks_of_window = config.sliding_window / kBlockTokens + 2;
  const int64_t bytes_of_sequence =
      kUsualTokens / kBlockTokens * full_bytes + blocks_of_window * window_bytes;
  const int64_t sequences = std::max<int64_t>(num_sequences, bytes / bytes_of_sequence);
  const int64_t enough_windows = sequences * blocks_of_window + chunk / kBlockTokens + 1;
  const int64_t window = std::min(both, enough_windows);
  const int64_t full = full_bytes == 0 ? both : (bytes - window * window_bytes) / full_bytes;
  return {.full = static_cast<int32_t>(std::clamp<int64_t>(full, 0, kMaxBlocks)),
          .window = static_cast<int32_t>(std::min<int64_t>(window, kMaxBlocks))};
}

KvCache::KvCache(const ModelConfig& config, Backend* backend)
    : config_(config),
      backend_(backend),
      layers_(static_cast<size_t>(config.num_layers), EmptyLayer(config)) {}

KvCache::~KvCache() {
  Free();
}

void KvCache::Free() {
  for (KvLayer& layer : layers_) {
    if (layer.data != nullptr) backend_->Free(layer.data, Bytes(layer));
    layer = EmptyLayer(config_);
  }
  counts_ = {};
}

int64_t KvCache::bytes() const {
  return counts_.full * FullBlockBytes(config_) + counts_.window * WindowBlockBytes(config_);
}

absl::Status KvCache::Resize(const BlockCounts& counts) {
  if (counts == counts_) return absl::OkStatus();
  Free();  // First: there may not be room for both.
  counts_ = counts;
  for (size_t i = 0; i < layers_.size(); ++i) {
    KvLayer& layer = layers_[i];
    layer.num_blocks = config_.is_window_layer[i] ? counts.window : counts.full;
    if (layer.num_blocks == 0) continue;
    layer.data = backend_->Allocate(Bytes(layer));
    if (layer.data != nullptr) continue;
    const int64_t wanted = bytes();
    Free();
    return absl::ResourceExhaustedError(absl::StrCat(
        "no memory for ", wanted, " bytes of K/V: give fewer --kv-tokens or more --memory"));
  }
  return absl::OkStatus();
}

}  // namespace shoal
