// Messages -> the text and tokens of a prompt, exactly as openai-harmony renders them. Pure.
//
// A client's text never becomes a marker: every text is encoded on its own, without special tokens,
// and markers come from this file alone.
#pragma once

#include <cstddef>
#include <limits>
#include <span>
#include <string>
#include <vector>

#include "absl/status/statusor.h"

#include "base/ids.h"
#include "coordinator/text/harmony.h"

namespace shoal {

struct RenderOptions {
  enum class Ending : uint8_t {
    kNothing,
    kPrompt,    // <|start|>assistant: the model goes on
    kTraining,  // A last answer ends with <|return|>
  };
  Ending ending = Ending::kPrompt;
  // As the library does: thinking before the first answer goes if the assistant's last message is
  // an answer. MessagesOf() has its own, later rule.
  bool drops_analysis = false;
  // A longer prompt is refused before it is encoded. What a context holds: 8 bytes for a position.
  size_t max_text_bytes = std::numeric_limits<size_t>::max();
};

// kInvalidArgument: content in a role that cannot have it, a tool message without a name, a schema
// that is not JSON, text that is not UTF-8 or has bytes that the vocabulary lacks.
// kOutOfRange: more text than max_text_bytes.
absl::StatusOr<std::vector<TokenId>> RenderHarmony(std::span<const HarmonyMessage> messages,
                                                   const HarmonyTokens& tokens,
                                                   const RenderOptions& options);

// A prompt as people read it: markers as they are spelled. Ill-formed UTF-8 becomes U+FFFD.
std::string HarmonyText(std::span<const TokenId> ids, const Tokenizer& tokenizer);

}  // namespace shoal
