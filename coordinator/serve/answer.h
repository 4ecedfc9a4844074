// From the core's actions on one stream to the messages that its client reads: text, stop strings,
// hashes, what a reader that attached has already. A pure function of the tokens, so it may be
// computed again from token 0 by whoever continues the stream.
#pragma once

#include <cstdint>
#include <deque>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/strings/string_view.h"

#include "base/prng.h"
#include "coordinator/events.h"
#include "coordinator/serve/request.h"
#include "coordinator/text/detokenizer.h"
#include "coordinator/text/stop_strings.h"
#include "proto/envelope.pb.h"
#include "proto/inference.pb.h"

namespace shoal {

// Chained over the tokens of a choice from its first: four bytes each, least significant first.
inline constexpr uint64_t kEmptyPrefixHash = kFnvOffset;
uint64_t HashToken(uint64_t hash, TokenId token);

// What actions on a stream come to. An interface, because an answer and a prompt's logits are two.
class Transcript {
 public:
  virtual ~Transcript() = default;

  struct Output {
    std::deque<std::string> messages;  // Serialised
    std::vector<Event> events;         // For the core
    std::optional<absl::Status> end;   // After the messages; nothing follows
  };

  virtual Output Write(const std::vector<Action>& actions) = 0;

  // What a reader asks for that was parked and goes on; their streams are for the caller to fill
  // in. Empty: it cannot go on.
  virtual std::vector<ClientAttached> Resume() const = 0;

  // What ends the request if its reader never goes on; nullopt: it is kept for attaching.
  virtual std::optional<Event> Abandon() const = 0;

  virtual const std::string& request_id() const = 0;
  virtual int64_t num_tokens() const = 0;  // Written so far
};

class AnswerTranscript final : public Transcript {
 public:
  struct Args {
    const ServedModel* model;  // Outlives this
    std::string fingerprint;
    std::string tenant;
    std::string request_id;
    int32_t choice = -1;     // -1: every choice
    int32_t next_index = 0;  // Tokens before it are read, but not written
    std::optional<uint64_t> prefix_hash;
  };

  explicit AnswerTranscript(Args args);

  Output Write(const std::vector<Action>& actions) override;
  std::vector<ClientAttached> Resume() const override;
  std::optional<Event> Abandon() const override;

  const std::string& request_id() const override { return args_.request_id; }

  int64_t num_tokens() const override { return num_tokens_; }

 private:
  struct Choice {
    Choice(const ServedModel& model, const fleet::v1::Envelope& envelope);

    std::optional<Detokenizer> detokenizer;  // Without a tokenizer there is no text
    StopStrings stops;
    int32_t next_index = 0;
    uint64_t hash = kEmptyPrefixHash;
    std::optional<std::string> stop;  // Found in token next_index - 1
    bool is_finished = false;
  };

  using Events = std::vector<v1::GenerateEvent>;

  absl::Status On(const Accepted& action, Events* out);
  absl::Status On(const Emit& action, Events* out, std::vector<Event>* events);
  absl::Status On(const Finish& action, Events* out);
  absl::Status Read(int32_t index, Choice* choice, const OutputToken& token, Events* out);
  std::string Text(const OutputToken& token, Choice* choice);
  v1::TokenChunk* ChunkFor(int32_t index, const Choice& choice, Events* out);
  void SetLogprob(const OutputToken& token, v1::TokenLogprob* out) const;
  absl::Status CheckPrefix(const Choice& choice) const;
  bool IsComplete() const;

  const Args args_;
  fleet::v1::Envelope envelope_;
  std::vector<Choice> choices_;  // Empty until Accepted
  absl::Status failure_;         // Of the first choice that failed
  int64_t num_tokens_ = 0;
};

}  // namespace shoal
