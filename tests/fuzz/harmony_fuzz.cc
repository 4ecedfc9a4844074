// Any bytes as tokens of a small vocabulary with harmony's markers: the reader's events form
// messages, and every API makes the same of them.
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <memory>
#include <string>
#include <vector>

#include "base/check.h"
#include "coordinator/text/harmony.h"
#include "tests/coordinator/text/harmony_streams.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace shoal;
  static const Tokenizer* const tokenizer = MakeHarmonyTokenizer().release();
  static const HarmonyTokens* const tokens = new HarmonyTokens(*HarmonyTokens::Find(tokenizer));
  static const FunctionNames* const functions = new FunctionNames{"get_weather", "f"};

  // The first byte says what is checked: the APIs' JSON takes a hundred times as long as the
  // reader. A further byte is itself, as it would be in a text; 0xF0 to 0xFF begin a pair that
  // names a word or a marker of the vocabulary, or an id beyond it.
  std::vector<TokenId> ids;
  for (size_t i = 1; i < size; ++i) {
    if (data[i] < 0xF0 || i + 1 == size) {
      ids.push_back(TokenId{data[i]});
    } else {
      ++i;
      ids.push_back(TokenId{tokenizer->size() + 2 - static_cast<int32_t>(data[i])});
    }
  }
  std::string faults = ReaderFaults(*tokens, *functions, ids);
  if (size > 0 && data[0] % 8 == 0) faults += ApiFaults(*tokens, *functions, ids);
  if (!faults.empty()) {
    fprintf(stderr, "%s\n", faults.c_str());
    CHECK(faults.empty());
  }
  return 0;
}
