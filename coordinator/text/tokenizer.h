// Text <-> token ids, as the checkpoint's tokenizer.json says (o200k_harmony, or any byte-level BPE
// with the same split rules). Immutable after loading; thread-safe. Pure: no file is read here.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"

#include "base/ids.h"

namespace shoal {

// Which markers such as <|end|> become single ids when met in a text; the others are plain text.
struct SpecialTokens {
  enum class Mode : uint8_t { kNone, kAll, kListed };
  Mode mode = Mode::kNone;
  std::vector<std::string> listed;
};

class Tokenizer {
 public:
  // From the text of tokenizer.json. Errors name what is missing or not understood.
  static absl::StatusOr<std::unique_ptr<Tokenizer>> Parse(absl::string_view json);

  virtual ~Tokenizer() = default;

  // Linear in text.size(), whatever the text. kInvalidArgument: invalid UTF-8 or a byte that no
  // token has, with the offset; a listed marker that does not exist.
  virtual absl::StatusOr<std::vector<TokenId>> Encode(absl::string_view text,
                                                      const SpecialTokens& special) const = 0;

  // Bytes of one token; nullopt: no such id. A special token's bytes are its spelling.
  virtual std::optional<absl::string_view> Bytes(TokenId id) const = 0;
  virtual bool IsSpecial(TokenId id) const = 0;
  // The id of a marker such as "<|return|>".
  virtual std::optional<TokenId> Special(absl::string_view marker) const = 0;
  // Smallest special id; ids from here on take no penalties and no bias.
  virtual TokenId FirstSpecial() const = 0;
  virtual int32_t size() const = 0;  // Largest id + 1
};

// What the harmony format and its ends cannot do without.
inline constexpr absl::string_view kHarmonySpecials[] = {"<|start|>",
                                                         "<|message|>",
                                                         "<|end|>",
                                                         "<|channel|>",
                                                         "<|constrain|>",
                                                         "<|call|>",
                                                         "<|return|>",
                                                         "<|endoftext|>"};

// kInvalidArgument names each of kHarmonySpecials that the tokenizer lacks.
absl::Status RequireHarmonySpecials(const Tokenizer& tokenizer);

}  // namespace shoal
