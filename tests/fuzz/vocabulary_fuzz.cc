// Any bytes as tokenizer.json: refused, or a tokenizer whose tokens spell what they encode.
#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>

#include "base/check.h"
#include "coordinator/text/tokenizer.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using shoal::SpecialTokens;
  const absl::string_view json(reinterpret_cast<const char*>(data), size);
  const auto tokenizer = shoal::Tokenizer::Parse(json);
  if (!tokenizer.ok()) return 0;

  const std::string text = "abcabcabc <|start|>aabbccaabbcc\n" + std::string(60, 'a');
  for (const auto mode : {SpecialTokens::Mode::kNone, SpecialTokens::Mode::kAll}) {
    const auto ids = (*tokenizer)->Encode(text, {mode, {}});
    if (!ids.ok()) continue;  // A vocabulary without some of these bytes
    std::string decoded;
    for (const shoal::TokenId id : *ids) {
      const absl::string_view bytes = (*tokenizer)->Bytes(id).value();
      decoded.append(bytes.data(), bytes.size());
      CHECK(mode == SpecialTokens::Mode::kAll || !(*tokenizer)->IsSpecial(id));
    }
    CHECK(decoded == text);
  }
  return 0;
}
