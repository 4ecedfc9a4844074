// Any bytes as text: refused with the offset of the first bad byte, or cut at the borders of
// characters, encoded, and given back byte for byte, whole and in a stream.
#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>

#include "base/check.h"
#include "coordinator/text/detokenizer.h"
#include "coordinator/text/pretokenizer.h"
#include "coordinator/text/tokenizer.h"
#include "coordinator/text/utf8.h"
#include "tests/coordinator/text/tokenizer_json.h"

namespace {

const shoal::Tokenizer& SmallTokenizer() {
  static const std::unique_ptr<shoal::Tokenizer> tokenizer = *shoal::Tokenizer::Parse(
      shoal::TokenizerText(shoal::MakeTestVocabulary(
                               {{"a", "a"}, {" ", " "}, {"\xE4", "\xB8"}, {"'", "s"}}, {"<|end|>"}),
                           shoal::PairForm::kList));
  return *tokenizer;
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const absl::string_view bytes(reinterpret_cast<const char*>(data), size);
  const absl::string_view text = bytes.substr(0, shoal::ValidUtf8Prefix(bytes));
  const auto refused = SmallTokenizer().Encode(bytes, {});
  CHECK_EQ(refused.ok(), text.size() == bytes.size());

  for (size_t at = 0; at < text.size();) {
    const size_t end = shoal::PieceEnd(text, at);
    CHECK_GT(end, at);
    CHECK_LE(end, text.size());
    CHECK_EQ(shoal::ValidUtf8Prefix(text.substr(at, end - at)), end - at);
    at = end;
  }

  const auto ids = SmallTokenizer().Encode(text, {shoal::SpecialTokens::Mode::kAll, {}});
  CHECK(ids.ok());
  shoal::Detokenizer detokenizer(&SmallTokenizer());
  std::string decoded;
  for (const shoal::TokenId id : *ids) decoded += detokenizer.Push(id).value();
  CHECK(decoded + detokenizer.Flush() == text);
  return 0;
}
