// config.json and generation_config.json to ModelConfig: ParseModelConfig of config.h.
#include <algorithm>
#include <cmath>
#include <cstddef>
#include <initializer_list>
#include <iterator>
#include <optional>

#include "absl/strings/str_cat.h"
#include "nlohmann/json.hpp"

#include "base/status_macros.h"
#include "model/config.h"
#include "model/strict_json.h"

namespace shoal {
namespace {

using Json = nlohmann::json;

constexpr double kEpsOfOriginal = 1e-5;  // OpenAI's code has it as a constant.

// Far above any model, and small enough that no product of them leaves 63 bits:
// experts * 2 * intermediate * hidden * 2 bytes * layers <= 2^(12 + 1 + 17 + 17 + 1 + 10).
constexpr int kMaxLayers = 1 << 10;
constexpr int kMaxExperts = 1 << 12;
constexpr int kMaxWidth = 1 << 17;
constexpr int kMaxHeads = 1 << 12;
constexpr int kMaxVocab = 1 << 24;
constexpr int kMaxPositions = 1 << 20;  // PortableCosSin's range

// The harmony ids that end a turn: <|endoftext|>, <|return|>, <|call|>.
constexpr int32_t kReleasedEosIds[] = {199999, 200002, 200012};

absl::Status Fault(absl::string_view key, const Json& value, absl::string_view what_would_do) {
  return absl::InvalidArgumentError(
      absl::StrCat("config.json: ",
                   key,
                   " = ",
                   value.dump(-1, ' ', false, Json::error_handler_t::replace),
                   ": ",
                   what_would_do));
}

// Reads the fields of one JSON object; remembers the first fault and then returns zeros, so that
// a caller reads everything and asks once.
class Reader {
 public:
  explicit Reader(const Json& object) : object_(object) {}

  const absl::Status& status() const { return status_; }

  // The value of the first key that is present and not null; all present ones must be equal.
  const Json* Find(std::initializer_list<const char*> keys) {
    const Json* found = nullptr;
    for (const char* key : keys) {
      const auto it = object_.find(key);
      if (it == object_.end() || it->is_null()) continue;
      if (found != nullptr && *found != *it) {
        Fail(Fault(key, *it, absl::StrCat("contradicts ", *keys.begin(), " = ", found->dump())));
      }
      if (found == nullptr) found = &*it;
    }
    return found;
  }

  // A whole number, also when written as 4096.0. Without `fallback` the key is needed.
  int Int(std::initializer_list<const char*> keys,
          int min,
          int max,
          std::optional<int> fallback = {}) {
    const double number = Number(keys, min, max, fallback);
    if (number == std::floor(number)) return static_cast<int>(number);
    Fail(Fault(*keys.begin(), number, "a whole number is needed"));
    return min;
  }

  double Number(std::initializer_list<const char*> keys,
                double min,
                double max,
                std::optional<double> fallback = {}) {
    const Json* value = Find(keys);
    if (value == nullptr) {
      if (!fallback) {
        Fail(absl::InvalidArgumentError(absl::StrCat("config.json: ",
                                                     *keys.begin(),
                                                     " is missing; a number from ",
                                                     min,
                                                     " to ",
                                                     max,
                                                     " is needed")));
      }
      return fallback.value_or(min);
    }
    if (!value->is_number() || !(value->get<double>() >= min && value->get<double>() <= max)) {
      Fail(Fault(
          *keys.begin(), *value, absl::StrCat("a number from ", min, " to ", max, " is needed")));
      return min;
    }
    return value->get<double>();
  }

  bool Bool(const char* key, bool fallback) {
    const Json* value = Find({key});
    if (value == nullptr) return fallback;
    if (value->is_boolean()) return value->get<bool>();
    Fail(Fault(key, *value, "true or false is needed"));
    return fallback;
  }

  // A key that means something else than we compute unless it has this value.
  void Expect(const char* key, const Json& only) {
    const Json* value = Find({key});
    if (value != nullptr && *value != only) {
      Fail(Fault(key, *value, absl::StrCat("not supported; only ", only.dump(), " is")));
    }
  }

  void Fail(const absl::Status& fault) { status_.Update(fault); }

 private:
  const Json& object_;
  absl::Status status_;
};

absl::Status ReadRopeObject(const Json& object, absl::string_view key, RopeConfig* rope) {
  if (!object.is_object()) return Fault(key, object, "an object is needed");
  // A key that we do not know could change every angle, so it is not passed over.
  for (const auto& [name, value] : object.items()) {
    static constexpr const char* kKnown[] = {"rope_type",
                                             "type",
                                             "rope_theta",
                                             "factor",
                                             "beta_fast",
                                             "beta_slow",
                                             "original_max_position_embeddings",
                                             "truncate",
                                             "attention_factor"};
    if (std::find(std::begin(kKnown), std::end(kKnown), name) == std::end(kKnown)) {
      return Fault(absl::StrCat(key, ".", name),
                   value,
                   "not a setting of gpt-oss's rotary embedding; remove it");
    }
  }
  Reader reader(object);
  const Json* type = reader.Find({"rope_type", "type"});
  if (type == nullptr)
    return Fault(key, object, "rope_type is missing; \"yarn\" or \"default\" is needed");
  if (*type != "yarn" && *type != "default") {
    return Fault(absl::StrCat(key, ".rope_type"),
                 *type,
                 "not supported; \"yarn\" and \"default\" (plain) are");
  }
  rope->theta = reader.Number({"rope_theta"}, 2.0, 1e12, rope->theta);
  if (*type == "default") {
    rope->factor = 1.0;
    return reader.status();
  }
  rope->factor = reader.Number({"factor"}, 1.0, 1e6);
  rope->beta_fast = reader.Number({"beta_fast"}, 1e-3, 1e6, 32.0);
  rope->beta_slow = reader.Number({"beta_slow"}, 1e-3, 1e6, 1.0);
  rope->original_positions =
      reader.Int({"original_max_position_embeddings"}, 1, kMaxPositions, rope->original_positions);
  rope->truncate = reader.Bool("truncate", false);
  rope->attention_factor = reader.Number({"attention_factor"}, 0.0, 100.0, 0.0);
  return reader.status();
}

// rope_scaling + rope_theta (up to transformers 4) or rope_parameters (from 5), or both if they
// agree.
absl::Status ReadHuggingFaceRope(const Json& json, Reader* reader, RopeConfig* rope) {
  rope->theta = reader->Number({"rope_theta"}, 2.0, 1e12, 0.0);
  rope->original_positions = reader->Int({"initial_context_length"}, 1, kMaxPositions, 0);
  std::optional<RopeConfig> found;
  for (const char* key : {"rope_parameters", "rope_scaling"}) {
    const Json* object = reader->Find({key});
    if (object == nullptr) continue;
    RopeConfig read = *rope;
    RETURN_IF_ERROR(ReadRopeObject(*object, key, &read));
    if (found && !(*found == read)) return Fault(key, *object, "contradicts rope_parameters");
    found = read;
  }
  if (found) {
    if (rope->theta != 0.0 && rope->theta != found->theta) {
      return Fault("rope_theta",
                   rope->theta,
                   absl::StrCat("contradicts rope_parameters.rope_theta = ", found->theta));
    }
    *rope = *found;
  } else if (json.contains("rope_scaling") || json.contains("rope_parameters")) {
    rope->factor = 1.0;  // An explicit null: no scaling.
  } else {
    return absl::InvalidArgumentError(
        "config.json: neither rope_scaling nor rope_parameters is there; without them positions "
        "would be wrong (null means plain rotary embedding)");
  }
  if (rope->theta == 0.0)
    return absl::InvalidArgumentError(
        "config.json: rope_theta is missing (neither at the top nor in rope_parameters); gpt-oss "
        "has 150000");
  if (rope->original_positions == 0) {
    if (rope->factor > 1.0)
      return absl::InvalidArgumentError(
          "config.json: original_max_position_embeddings is missing; gpt-oss has 4096");
    rope->original_positions = RopeConfig{}.original_positions;  // Not used without scaling.
  }
  return absl::OkStatus();
}

absl::Status ReadLayerTypes(const Json* list, ModelConfig* config) {
  config->is_window_layer.clear();
  if (list == nullptr) {  // Both releases: even layers slide.
    for (int layer = 0; layer < config->num_layers; ++layer)
      config->is_window_layer.push_back(layer % 2 == 0);
    return absl::OkStatus();
  }
  if (!list->is_array() || list->size() != static_cast<size_t>(config->num_layers)) {
    return Fault(
        "layer_types",
        *list,
        absl::StrCat("a list of num_hidden_layers = ", config->num_layers, " entries is needed"));
  }
  for (const Json& type : *list) {
    if (type != "sliding_attention" && type != "full_attention") {
      return Fault(
          "layer_types", type, "not supported; \"sliding_attention\" and \"full_attention\" are");
    }
    config->is_window_layer.push_back(type == "sliding_attention");
  }
  return absl::OkStatus();
}

absl::Status ReadStorage(const Json* quantization, ModelConfig* config) {
  config->storage = ExpertStorage::kBf16;
  if (quantization == nullptr) return absl::OkStatus();
  const Json method =
      quantization->is_object() ? quantization->value("quant_method", Json()) : Json();
  if (method != "mxfp4") {
    return Fault("quantization_config.quant_method",
                 method,
                 "not supported; \"mxfp4\", or no quantization_config for BF16 experts, is");
  }
  config->storage = ExpertStorage::kMxfp4;
  return absl::OkStatus();
}

// Adds eos_token_id, a number or a list of numbers, to the stop set.
absl::Status ReadEos(const Json& json, absl::string_view file, ModelConfig* config) {
  const auto it = json.find("eos_token_id");
  if (it == json.end() || it->is_null()) return absl::OkStatus();
  const Json list = it->is_array() ? *it : Json::array({*it});
  for (const Json& id : list) {
    if (!id.is_number_integer() || id.get<double>() < 0 || id.get<double>() >= config->vocab) {
      return absl::InvalidArgumentError(absl::StrCat(file,
                                                     ": eos_token_id = ",
                                                     id.dump(),
                                                     ": token ids from 0 to vocab_size - 1 = ",
                                                     config->vocab - 1,
                                                     " are needed"));
    }
    config->eos_token_ids.push_back(id.get<int32_t>());
  }
  return absl::OkStatus();
}

void ReadDimensions(Reader* reader, ModelConfig* config) {
  config->num_layers = reader->Int({"num_hidden_layers"}, 1, kMaxLayers);
  config->hidden = reader->Int({"hidden_size"}, 1, kMaxWidth);
  config->intermediate = reader->Int({"intermediate_size"}, 1, kMaxWidth);
  config->num_experts = reader->Int({"num_local_experts", "num_experts"}, 1, kMaxExperts);
  config->experts_per_token =
      reader->Int({"num_experts_per_tok", "experts_per_token"}, 1, kMaxExperts);
  config->num_heads = reader->Int({"num_attention_heads"}, 1, kMaxHeads);
  config->num_kv_heads = reader->Int({"num_key_value_heads"}, 1, kMaxHeads);
  config->head_dim = reader->Int({"head_dim"}, 2, kMaxHeads);
  config->vocab = reader->Int({"vocab_size"}, 1, kMaxVocab);
  config->sliding_window = reader->Int({"sliding_window"}, 1, kMaxPositions);
  config->swiglu_limit = reader->Number({"swiglu_limit"}, 1e-3, 1e6, 7.0);
}

int DerivedPositions(const RopeConfig& rope) {
  return static_cast<int>(std::min<double>(kMaxPositions, rope.original_positions * rope.factor));
}

absl::StatusOr<ModelConfig> ParseHuggingFace(const Json& json) {
  ModelConfig config;
  Reader reader(json);
  const Json* type = reader.Find({"model_type"});
  if (type == nullptr || *type != "gpt_oss") {
    return Fault(
        "model_type",
        type == nullptr ? Json() : *type,
        "not supported; \"gpt_oss\" is (or OpenAI's own config.json, which has rope_ntk_alpha)");
  }
  ReadDimensions(&reader, &config);
  config.norm_eps = reader.Number({"rms_norm_eps"}, 1e-12, 1.0);
  config.swiglu_alpha = reader.Number({"swiglu_alpha"}, 1e-3, 1e3, config.swiglu_alpha);
  // "silu" is what the releases say; what they compute is the clamped SwiGLU of spec 4.7.
  reader.Expect("hidden_act", "silu");
  reader.Expect("attention_bias", true);
  reader.Expect("tie_word_embeddings", false);
  RETURN_IF_ERROR(reader.status());
  RETURN_IF_ERROR(ReadHuggingFaceRope(json, &reader, &config.rope));
  RETURN_IF_ERROR(ReadLayerTypes(reader.Find({"layer_types"}), &config));
  RETURN_IF_ERROR(ReadStorage(reader.Find({"quantization_config"}), &config));
  config.max_positions =
      reader.Int({"max_position_embeddings"}, 1, kMaxPositions, DerivedPositions(config.rope));
  RETURN_IF_ERROR(reader.status());
  RETURN_IF_ERROR(ReadEos(json, "config.json", &config));
  return config;
}

absl::StatusOr<ModelConfig> ParseOriginal(const Json& json) {
  ModelConfig config;
  Reader reader(json);
  ReadDimensions(&reader, &config);
  config.norm_eps = kEpsOfOriginal;
  config.rope.theta = reader.Number({"rope_theta"}, 2.0, 1e12);
  config.rope.factor = reader.Number({"rope_scaling_factor"}, 1.0, 1e6);
  config.rope.beta_fast = reader.Number({"rope_ntk_beta"}, 1e-3, 1e6);
  config.rope.beta_slow = reader.Number({"rope_ntk_alpha"}, 1e-3, 1e6);
  config.rope.original_positions = reader.Int({"initial_context_length"}, 1, kMaxPositions);
  RETURN_IF_ERROR(reader.status());
  RETURN_IF_ERROR(ReadLayerTypes(nullptr, &config));
  config.max_positions = DerivedPositions(config.rope);
  config.storage = ExpertStorage::kMxfp4;
  for (const int32_t id : kReleasedEosIds) {
    if (id < config.vocab) config.eos_token_ids.push_back(id);
  }
  return config;
}

}  // namespace

absl::StatusOr<ModelConfig> ParseModelConfig(absl::string_view config_json,
                                             absl::string_view generation_config_json) {
  ASSIGN_OR_RETURN(const Json json, ParseStrictJson(config_json, "config.json"));
  const bool is_original = json.contains("rope_ntk_alpha") && !json.contains("model_type");
  ASSIGN_OR_RETURN(ModelConfig config, is_original ? ParseOriginal(json) : ParseHuggingFace(json));
  if (!generation_config_json.empty()) {
    ASSIGN_OR_RETURN(const Json generation,
                     ParseStrictJson(generation_config_json, "generation_config.json"));
    RETURN_IF_ERROR(ReadEos(generation, "generation_config.json", &config));
  }
  std::sort(config.eos_token_ids.begin(), config.eos_token_ids.end());
  config.eos_token_ids.erase(std::unique(config.eos_token_ids.begin(), config.eos_token_ids.end()),
                             config.eos_token_ids.end());
  RETURN_IF_ERROR(config.Validate());
  return config;
}

}  // namespace shoal
