// Every tensor of a model: what it is, its shape, and what each checkpoint layout calls it.
//
// The canonical names are those of the Hugging Face release (spec 2.2), and for BF16 experts those
// of a BF16 re-save (2.4). OpenAI's original/ layout (2.3) holds the same bytes under other names,
// with q, k and v in one tensor.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "absl/strings/string_view.h"

#include "model/config.h"

namespace shoal {

enum class StoredType : uint8_t { kBf16, kU8 };

constexpr int64_t StoredTypeBytes(StoredType type) {
  return type == StoredType::kBf16 ? 2 : 1;
}

// As safetensors spells it: "BF16", "U8".
absl::string_view StoredTypeName(StoredType type);

// What a tensor is for. Shapes in the letters of the spec: H hidden, I intermediate, E experts.
enum class TensorKind : uint8_t {
  kAttentionNorm,  // [H]
  kOutBias,        // [H]
  kOutWeight,      // [H, num_heads * head_dim]
  kQueryBias,
  kKeyBias,
  kValueBias,
  kQueryWeight,  // [num_heads * head_dim, H]
  kKeyWeight,    // [num_kv_heads * head_dim, H]
  kValueWeight,
  kSinks,         // [num_heads]
  kRouterBias,    // [E]
  kRouterWeight,  // [E, H]
  kGateUpBias,    // [E, 2 I], gate and up alternating
  kGateUpCodes,   // MXFP4: [E, 2 I, H / 32, 16] u8
  kGateUpScales,  // MXFP4: [E, 2 I, H / 32] u8
  kGateUpWeight,  // BF16: [E, H, 2 I], transposed
  kDownBias,      // [E, H]
  kDownCodes,     // MXFP4: [E, H, I / 32, 16] u8
  kDownScales,    // MXFP4: [E, H, I / 32] u8
  kDownWeight,    // BF16: [E, I, H], transposed
  kMlpNorm,       // [H]
  kEmbedding,     // [vocab, H]
  kFinalNorm,     // [H]
  kUnembedding,   // [vocab, H]
};

// Expert tensors are [E, ...]: one expert's part is contiguous. Every rank holds all dense ones.
enum class TensorClass : uint8_t { kDense, kExpert };

TensorClass ClassOf(TensorKind kind);

struct ModelTensor {
  TensorKind kind{};
  int layer = -1;    // -1: not of a layer
  std::string name;  // Canonical
  StoredType type = StoredType::kBf16;
  std::vector<int64_t> shape;
  // Where the original layout keeps it: in tensor `original_name`, from this row on.
  std::string original_name;
  int64_t original_row = 0;

  int64_t num_elements() const;

  int64_t bytes() const { return num_elements() * StoredTypeBytes(type); }

  // Of an expert tensor.
  int64_t bytes_per_expert() const { return bytes() / shape[0]; }
};

// The name of one tensor; `layer` is ignored for the three that belong to none.
std::string TensorName(TensorKind kind, int layer);

// All tensors under their canonical names, in the order of the released files: layers in the string
// order of their numbers (0, 1, 10, 11, ..., 2, 20, ...), then embedding, final norm, unembedding.
std::vector<ModelTensor> ModelTensors(const ModelConfig& config);

// How the files of a checkpoint spell their tensors.
enum class CheckpointLayout : uint8_t { kHuggingFace, kOriginal };

// "Hugging Face MXFP4", "Hugging Face BF16", "OpenAI original".
absl::string_view LayoutName(CheckpointLayout layout, ExpertStorage storage);

// A tensor as a file names it.
struct FileTensor {
  std::string name;
  StoredType type = StoredType::kBf16;
  std::vector<int64_t> shape;

  int64_t bytes() const;
};

// What the files of a checkpoint in this layout must hold, neither more nor less, in the order of
// ModelTensors. REQUIRES: MXFP4 storage for kOriginal.
std::vector<FileTensor> FileTensors(const ModelConfig& config, CheckpointLayout layout);

int64_t NumElements(const std::vector<int64_t>& shape);

// "[128, 64]".
std::string ShapeToString(const std::vector<int64_t>& shape);

}  // namespace shoal
