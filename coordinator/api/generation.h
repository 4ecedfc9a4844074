// What all OpenAI requests say beside the conversation: how to sample, when to end, which functions
// may be called, what the answer must look like. Values, made by chat_completions.h and
// responses.h; unset means the service's default.
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "base/ids.h"
#include "coordinator/text/harmony.h"

namespace shoal {

inline constexpr int64_t kMaxApiChoices = 8;
inline constexpr size_t kMaxApiStopStrings = 4;
inline constexpr size_t kMaxApiStopBytes = 256;
inline constexpr size_t kMaxApiLogitBias = 300;
inline constexpr int64_t kMaxApiTopLogprobs = 20;
inline constexpr size_t kMaxFunctionNameBytes = 64;

struct GenerationSettings {
  std::optional<double> temperature, top_p, min_p;
  std::optional<double> frequency_penalty, presence_penalty, repetition_penalty;
  std::optional<int64_t> top_k, seed;
  std::vector<std::pair<TokenId, double>> logit_bias;  // Ids are not judged here
  int32_t num_choices = 1;
  std::optional<int64_t> max_tokens;  // Headers and reasoning included; at least 1
  // Matched on visible text only, by ItemReader: not for the text layer below.
  std::vector<std::string> stop;
  std::optional<int32_t> num_top_logprobs;  // nullopt: no logprobs
};

// For the grammar, which makes the model obey. With kNone the conversation has no functions.
struct ToolChoice {
  enum class Mode : uint8_t { kAuto, kNone, kRequired };
  Mode mode = Mode::kAuto;
  std::vector<std::string> allowed;  // Functions that may be called; empty: each that is declared
};

// What the answer (the final channel) must be. The schema itself is in the conversation, too, whose
// prompt shows it.
struct OutputFormat {
  enum class Kind : uint8_t { kText, kJsonObject, kJsonSchema };
  Kind kind = Kind::kText;
  std::string schema;      // Of kJsonSchema: JSON text
  bool is_strict = false;  // The client's word. The schema is enforced either way
};

// What both APIs' requests come to.
struct ApiRequest {
  std::string model;  // Empty: the one that is served
  Conversation conversation;
  FunctionNames functions;  // Those of the conversation, for the reader's repairs
  GenerationSettings settings;
  ToolChoice tool_choice;
  OutputFormat format;
  bool is_stream = false;
  bool includes_usage = false;       // Of a chat stream
  bool includes_reasoning = true;    // false: it is generated and counted, but not shown
  std::string cache_key;             // A routing hint
  std::vector<std::string> ignored;  // Fields without effect here; worth a line in a log
};

}  // namespace shoal
