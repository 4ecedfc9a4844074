#include "model/config.h"

#include <algorithm>
#include <cstddef>

#include "absl/strings/str_cat.h"

#include "model/rope.h"

namespace shoal {
namespace {

std::vector<bool> Alternating(int num_layers) {
  std::vector<bool> window;
  for (int layer = 0; layer < num_layers; ++layer) window.push_back(layer % 2 == 0);
  return window;
}

ModelConfig Released(int num_layers, int num_experts) {
  ModelConfig config;
  config.num_layers = num_layers;
  config.hidden = 2880;
  config.intermediate = 2880;
  config.num_experts = num_experts;
  config.experts_per_token = 4;
  config.num_heads = 64;
  config.num_kv_heads = 8;
  config.head_dim = 64;
  config.vocab = 201'088;
  config.sliding_window = 128;
  config.max_positions = 131'072;
  config.is_window_layer = Alternating(num_layers);
  config.eos_token_ids = {199999, 200002, 200012};  // <|endoftext|>, <|return|>, <|call|>
  return config;
}

}  // namespace

int ModelConfig::num_window_layers() const {
  return static_cast<int>(std::count(is_window_layer.begin(), is_window_layer.end(), true));
}

int ModelConfig::num_full_layers() const {
  return num_layers - num_window_layers();
}

absl::Status ModelConfig::Validate() const {
  const auto fault = [](const auto&... parts) {
    return absl::InvalidArgumentError(absl::StrCat("config.json: ", parts...));
  };
  if (storage == ExpertStorage::kMxfp4 && (hidden % 32 != 0 || intermediate % 32 != 0)) {
    return fault("hidden_size = ",
                 hidden,
                 ", intermediate_size = ",
                 intermediate,
                 ": MXFP4 experts need multiples of 32");
  }
  if (num_heads % num_kv_heads != 0) {
    return fault("num_attention_heads = ",
                 num_heads,
                 ": a multiple of num_key_value_heads = ",
                 num_kv_heads,
                 " is needed");
  }
  if (head_dim % 2 != 0) return fault("head_dim = ", head_dim, ": an even number is needed");
  if (experts_per_token > num_experts) {
    return fault("num_experts_per_tok = ",
                 experts_per_token,
                 ": at most num_local_experts = ",
                 num_experts,
                 " is possible");
  }
  if (is_window_layer.size() != static_cast<size_t>(num_layers)) {
    return fault("layer_types has ",
                 is_window_layer.size(),
                 " entries: num_hidden_layers = ",
                 num_layers,
                 " are needed");
  }
  for (const int32_t id : eos_token_ids) {
    if (id < 0 || id >= vocab)
      return fault("eos_token_id = ", id, ": below vocab_size = ", vocab, " is needed");
  }
  if (const auto frequencies = ComputeRopeFrequencies(rope, head_dim); !frequencies.ok()) {
    return fault(frequencies.status().message());
  }
  return absl::OkStatus();
}

ModelConfig ModelConfig::GptOss120b() {
  return Released(36, 128);
}

ModelConfig ModelConfig::GptOss20b() {
  return Released(24, 32);
}

ModelConfig ModelConfig::Tiny() {
  ModelConfig config;
  config.num_layers = 4;
  config.hidden = 64;
  config.intermediate = 96;
  config.num_experts = 8;
  config.experts_per_token = 4;
  config.num_heads = 4;
  config.num_kv_heads = 2;
  config.head_dim = 32;
  config.vocab = 128;
  config.sliding_window = 4;
  config.max_positions = 131'072;
  config.is_window_layer = Alternating(config.num_layers);
  config.eos_token_ids = {119, 120, 126};  // As the tokenizer of `shoal synth` numbers them.
  return config;
}

}  // namespace shoal
