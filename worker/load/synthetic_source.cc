// `--load-format dummy`.
#include <optional>
#include <string>
#include <utility>

#include "absl/container/flat_hash_map.h"

#include "base/check.h"
#include "model/synthetic.h"
#include "model/tensors.h"
#include "worker/load/digest.h"
#include "worker/load/loader.h"

namespace shoal {
namespace {

class SyntheticSource final : public WeightSource {
 public:
  explicit SyntheticSource(const ModelConfig& config)
      : config_(config), digest_(SyntheticDigest(config)) {
    for (ModelTensor& tensor : ModelTensors(config_)) {
      std::string name = tensor.name;
      tensors_.emplace(std::move(name), std::move(tensor));
    }
  }

  const ModelConfig& config() const override { return config_; }

  std::string digest() const override { return digest_; }

  absl::Status Read(absl::string_view tensor,
                    int64_t offset,
                    std::span<std::byte> out) const override {
    FillSynthetic(Find(tensor), offset, out);
    return absl::OkStatus();
  }

  std::optional<SyntheticFormula> formula(absl::string_view tensor) const override {
    return FormulaOf(Find(tensor));
  }

 private:
  const ModelTensor& Find(absl::string_view tensor) const {
    const auto it = tensors_.find(tensor);
    CHECK(it != tensors_.end());
    return it->second;
  }

  const ModelConfig config_;
  const std::string digest_;
  absl::flat_hash_map<std::string, ModelTensor> tensors_;  // By canonical name
};

}  // namespace

std::unique_ptr<WeightSource> MakeSyntheticSource(const ModelConfig& config) {
  return std::make_unique<SyntheticSource>(config);
}

}  // namespace shoal
