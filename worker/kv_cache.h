// The physical K/V blocks of one rank: memory for the full layers and for the window layers. Which
// sequence uses which block is the coordinator's business.
#pragma once

#include <cstdint>
#include <vector>

#include "absl/status/status.h"

#include "kernels/backend.h"
#include "model/config.h"

namespace shoal {

// Block b of a kind is block b of every layer of that kind.
struct BlockCounts {
  int32_t full = 0;
  int32_t window = 0;

  friend bool operator==(const BlockCounts&, const BlockCounts&) = default;
};

// Of one kind; so that a slot (block * kBlockTokens + offset) is an int32.
inline constexpr int32_t kMaxBlocks = (1 << 30) / kBlockTokens - 1;

// Bytes of one block across all full layers, and across all window layers.
int64_t FullBlockBytes(const ModelConfig& config);
int64_t WindowBlockBytes(const ModelConfig& config);

// As many blocks as `bytes` hold. Long sequences leave the window layers behind, so beyond what the
// windows of sequences and a chunk of `chunk` positions need, all room goes to full layers; up to
// there both kinds grow alike, since short sequences need one for one. Windows are for
// `num_sequences`, or for as many of kUsualTokens as `bytes` hold if those are more: whichever kind
// runs out first bounds how many sequences run.
inline constexpr int32_t kUsualTokens = 2048;
BlockCounts BlocksThatFit(const ModelConfig& config,
                          int64_t bytes,
                          int32_t num_sequences,
                          int32_t chunk);

// Memory of one backend. One thread.
class KvCache {
 public:
  KvCache(const ModelConfig& config, Backend* backend);
  ~KvCache();

  KvCache(const KvCache&) = delete;
  KvCache& operator=(const KvCache&) = delete;

  // With the counts it has: nothing changes, and the survivors of a lost rank go on with what they
  // computed. With others all blocks are new, zeroed. kResourceExhausted, naming the bytes: there
  // is too little memory; then there are no blocks.
  absl::Status Resize(const BlockCounts& counts);

  KvLayer layer(int layer) const { return layers_[static_cast<size_t>(layer)]; }

  const BlockCounts& counts() const { return counts_; }

  int64_t bytes() const;

 private:
  void Free();

  const ModelConfig config_;
  Backend* const backend_;
  BlockCounts counts_;
  std::vector<KvLayer> layers_;  // [num_layers]
};

}  // namespace shoal
