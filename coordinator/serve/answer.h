// The answer to Generate: tokens and their text, as v1::GenerateEvent.
#pragma once

#include <optional>
#include <string>
#include <vector>

#include "absl/strings/string_view.h"

#include "coordinator/serve/transcript.h"
#include "coordinator/text/detokenizer.h"
#include "coordinator/text/stop_strings.h"

namespace shoal {

// The plain text of one choice: without the stop token, without ids that the tokenizer does not
// know, and up to a stop string.
class PlainText {
 public:
  PlainText(const ServedModel& model, const fleet::v1::Envelope& envelope);

  // The text that the token completes.
  std::string Push(TokenId token);
  // What was held back until the end.
  std::string Flush();

  // The stop string that was found.
  const std::optional<std::string>& stop() const { return stop_; }

 private:
  const Tokenizer* tokenizer_;  // Without one there is no text
  std::vector<int32_t> stop_tokens_;
  std::optional<Detokenizer> detokenizer_;
  StopStrings stops_;
  std::optional<std::string> stop_;
};

// Its token's bytes too, if there is a tokenizer.
void SetLogprob(const OutputToken& token, const Tokenizer* tokenizer, v1::TokenLogprob* out);

class AnswerTranscript final : public TokenTranscript {
 public:
  explicit AnswerTranscript(Args args) : TokenTranscript(std::move(args)) {}

 protected:
  absl::Status OnStarted(const Accepted& action) override;
  bool OnToken(const Place& place, const OutputToken& token, bool is_shown) override;
  bool OnFinished(const Place& place, const Finish& action, bool is_stopped) override;
  void Flush(std::deque<std::string>* messages) override;

 private:
  v1::TokenChunk* ChunkFor(const Place& place);

  std::vector<PlainText> texts_;  // By choice
  std::vector<v1::GenerateEvent> events_;
};

}  // namespace shoal
