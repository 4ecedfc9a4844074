#include "model/config_writer.h"

#include <algorithm>
#include <cmath>
#include <vector>

#include "nlohmann/json.hpp"

namespace shoal {
namespace {

using Json = nlohmann::json;  // Sorts its keys, as the released files do.

constexpr int32_t kReturnId = 200002;
constexpr char kWriterVersion[] = "4.55.0.dev0";  // The transformers that wrote the releases

// The id that ends an ordinary turn comes first: config.json has it alone.
std::vector<int32_t> EosInReleasedOrder(const ModelConfig& config) {
  std::vector<int32_t> ids = config.eos_token_ids;
  const auto turn_end = std::find(ids.begin(), ids.end(), kReturnId);
  if (turn_end != ids.end()) std::rotate(ids.begin(), turn_end, turn_end + 1);
  return ids;
}

// <|endoftext|>, the padding, is the first special that can stop.
Json PadId(const ModelConfig& config) {
  return config.eos_token_ids.empty() ? Json() : Json(config.eos_token_ids.front());
}

// 150000, not 150000.0: as released.
Json WholeIfPossible(double value) {
  return value == std::floor(value) ? Json(static_cast<int64_t>(value)) : Json(value);
}

Json Rope(const RopeConfig& rope) {
  if (rope.factor <= 1.0) return {{"rope_type", "default"}};
  Json json = {{"beta_fast", rope.beta_fast},
               {"beta_slow", rope.beta_slow},
               {"factor", rope.factor},
               {"original_max_position_embeddings", rope.original_positions},
               {"rope_type", "yarn"},
               {"truncate", rope.truncate}};
  if (rope.attention_factor > 0) json["attention_factor"] = rope.attention_factor;
  return json;
}

Json HuggingFace(const ModelConfig& config) {
  Json layer_types = Json::array();
  for (const bool is_window : config.is_window_layer) {
    layer_types.push_back(is_window ? "sliding_attention" : "full_attention");
  }
  const std::vector<int32_t> eos = EosInReleasedOrder(config);
  Json json = {{"architectures", {"GptOssForCausalLM"}},
               {"attention_bias", true},
               {"attention_dropout", 0.0},
               {"eos_token_id", eos.empty() ? Json() : Json(eos.front())},
               {"experts_per_token", config.experts_per_token},
               {"head_dim", config.head_dim},
               {"hidden_act", "silu"},
               {"hidden_size", config.hidden},
               {"initial_context_length", config.rope.original_positions},
               {"initializer_range", 0.02},
               {"intermediate_size", config.intermediate},
               {"layer_types", layer_types},
               {"max_position_embeddings", config.max_positions},
               {"model_type", "gpt_oss"},
               {"num_attention_heads", config.num_heads},
               {"num_experts_per_tok", config.experts_per_token},
               {"num_hidden_layers", config.num_layers},
               {"num_key_value_heads", config.num_kv_heads},
               {"num_local_experts", config.num_experts},
               {"output_router_logits", false},
               {"pad_token_id", PadId(config)},
               {"rms_norm_eps", config.norm_eps},
               {"rope_scaling", Rope(config.rope)},
               {"rope_theta", WholeIfPossible(config.rope.theta)},
               {"router_aux_loss_coef", 0.9},
               {"sliding_window", config.sliding_window},
               {"swiglu_limit", config.swiglu_limit},
               {"tie_word_embeddings", false},
               {"transformers_version", kWriterVersion},
               {"use_cache", true},
               {"vocab_size", config.vocab}};
  if (config.swiglu_alpha != ModelConfig{}.swiglu_alpha) json["swiglu_alpha"] = config.swiglu_alpha;
  if (config.storage == ExpertStorage::kMxfp4) {
    json["quantization_config"] = {{"modules_to_not_convert",
                                    {"model.layers.*.self_attn",
                                     "model.layers.*.mlp.router",
                                     "model.embed_tokens",
                                     "lm_head"}},
                                   {"quant_method", "mxfp4"}};
  } else {
    json["torch_dtype"] = "bfloat16";
  }
  return json;
}

Json Original(const ModelConfig& config) {
  return {{"num_hidden_layers", config.num_layers},
          {"num_experts", config.num_experts},
          {"experts_per_token", config.experts_per_token},
          {"vocab_size", config.vocab},
          {"hidden_size", config.hidden},
          {"intermediate_size", config.intermediate},
          {"swiglu_limit", config.swiglu_limit},
          {"head_dim", config.head_dim},
          {"num_attention_heads", config.num_heads},
          {"num_key_value_heads", config.num_kv_heads},
          {"sliding_window", config.sliding_window},
          {"initial_context_length", config.rope.original_positions},
          {"rope_theta", WholeIfPossible(config.rope.theta)},
          {"rope_scaling_factor", config.rope.factor},
          {"rope_ntk_alpha", WholeIfPossible(config.rope.beta_slow)},
          {"rope_ntk_beta", WholeIfPossible(config.rope.beta_fast)}};
}

}  // namespace

std::string WriteConfigJson(const ModelConfig& config, CheckpointLayout layout) {
  const Json json = layout == CheckpointLayout::kOriginal ? Original(config) : HuggingFace(config);
  return json.dump(2) + "\n";
}

std::string WriteGenerationConfigJson(const ModelConfig& config) {
  Json json = {{"do_sample", true},
               {"eos_token_id", EosInReleasedOrder(config)},
               {"pad_token_id", PadId(config)},
               {"transformers_version", kWriterVersion}};
  // <|startoftext|> lies right before <|endoftext|>.
  if (!config.eos_token_ids.empty()) json["bos_token_id"] = config.eos_token_ids.front() - 1;
  return json.dump(2) + "\n";
}

}  // namespace shoal
