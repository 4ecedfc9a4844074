// What exactly is served: the geometry and constants of a gpt-oss model. 120b, 20b and the tiny
// test models differ by data in ModelConfig alone. A value: copyable, comparable.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"

namespace shoal {

// How the experts lie in the files. Everything else is bf16.
enum class ExpertStorage : uint8_t { kMxfp4, kBf16 };

struct RopeConfig {
  double theta = 150000.0;
  double factor = 32.0;  // 1: plain rotary embedding
  double beta_fast = 32.0;
  double beta_slow = 1.0;
  int original_positions = 4096;
  bool truncate = false;
  double attention_factor = 0.0;  // 0: 0.1 ln(factor) + 1

  friend bool operator==(const RopeConfig&, const RopeConfig&) = default;
};

struct ModelConfig {
  int num_layers = 0;
  int hidden = 0;
  int intermediate = 0;
  int num_experts = 0;
  int experts_per_token = 0;
  int num_heads = 0;
  int num_kv_heads = 0;
  int head_dim = 0;
  int vocab = 0;
  int sliding_window = 0;             // Positions that a window layer sees, its own included
  int max_positions = 0;              // The context limit
  std::vector<bool> is_window_layer;  // [num_layers]
  double norm_eps = 1e-5;
  double swiglu_limit = 7.0;
  double swiglu_alpha = 1.702;
  RopeConfig rope;
  ExpertStorage storage = ExpertStorage::kMxfp4;
  std::vector<int32_t>
      eos_token_ids;  // Stop set: config.json and generation_config.json united, rising

  friend bool operator==(const ModelConfig&, const ModelConfig&) = default;

  // Attention span of a layer; 0: unlimited.
  int window(int layer) const {
    return is_window_layer[static_cast<size_t>(layer)] ? sliding_window : 0;
  }

  int qkv_rows() const { return (num_heads + 2 * num_kv_heads) * head_dim; }

  int q_cols() const { return num_heads * head_dim; }

  int num_full_layers() const;
  int num_window_layers() const;

  // Every constraint of the format and the mathematics, and nothing more.
  absl::Status Validate() const;

  // The released models, and the micro-model of spec 8.6 (4 layers, window 4, vocabulary 128).
  static ModelConfig GptOss120b();
  static ModelConfig GptOss20b();
  static ModelConfig Tiny();
};

// From the text of config.json in Hugging Face's or OpenAI's own spelling (told apart by their
// keys) and of generation_config.json (empty: there is none). Errors name the key and the value.
absl::StatusOr<ModelConfig> ParseModelConfig(absl::string_view config_json,
                                             absl::string_view generation_config_json);

// The rotary table: [num_positions, head_dim / 2, 2 (cos, sin)] with YaRN's factor m included. The
// angle is the fp32 product position * frequency; cos and sin of it are taken in double and
// rounded.
std::vector<float> RopeTable(const ModelConfig& config, int num_positions);

}  // namespace shoal
