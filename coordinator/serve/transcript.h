// From the core's actions on one stream to the messages that its client reads. A pure function of
// the tokens, so it may be computed again from token 0 by whoever continues the stream.
#pragma once

#include <cstdint>
#include <deque>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/status.h"

#include "base/prng.h"
#include "coordinator/events.h"
#include "coordinator/serve/request.h"
#include "proto/envelope.pb.h"
#include "proto/inference.pb.h"

namespace shoal {

// Chained over the tokens of a choice from its first: four bytes each, least significant first.
inline constexpr uint64_t kEmptyPrefixHash = kFnvOffset;
uint64_t HashToken(uint64_t hash, TokenId token);

// What actions on a stream come to.
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

// How a choice ended, as errors: OK for those ends that a client asked for.
absl::Status FailureOf(const Finish& action);

void SetUsage(const Usage& usage, v1::Usage* out);
void SetTimings(const Timings& timings, v1::Timings* out);

// What every answer has, whatever it looks like to its client: choices that are read token by
// token, the tokens that a reader that attached has already, and the hash over them.
class TokenTranscript : public Transcript {
 public:
  struct Args {
    const ServedModel* model = nullptr;  // Outlives this
    std::string fingerprint;
    std::string tenant;
    std::string request_id;
    int32_t choice = -1;     // -1: every choice
    int32_t next_index = 0;  // Tokens before it are read, but not written
    std::optional<uint64_t> prefix_hash;
  };

  explicit TokenTranscript(Args args) : args_(std::move(args)) {}

  Output Write(const std::vector<Action>& actions) final;
  std::vector<ClientAttached> Resume() const final;
  std::optional<Event> Abandon() const final;

  const std::string& request_id() const final { return args_.request_id; }

  int64_t num_tokens() const final { return num_tokens_; }

  int32_t choice() const { return args_.choice; }

 protected:
  // After a token, or at the end.
  struct Place {
    int32_t choice = 0;
    int32_t num_tokens = 0;  // Of the choice, with this one
    uint64_t hash = kEmptyPrefixHash;
  };

  const Args& args() const { return args_; }

  const fleet::v1::Envelope& envelope() const { return envelope_; }

  // The hooks, in the order of a stream: once; for each token; once for each choice; once. And
  // Flush after every Write, to add to the messages what the others came to.
  virtual absl::Status OnStarted(const Accepted& action) = 0;
  // `is_shown`: the client does not have it yet. Returns true if the answer's text ends with this
  // token, because a stop string was found.
  virtual bool OnToken(const Place& place, const OutputToken& token, bool is_shown) = 0;
  // `is_stopped`: by OnToken. Whatever the core came to before it heard of that, the answer is
  // complete then. Returns true if it is even so because of what was held back until the end.
  virtual bool OnFinished(const Place& place, const Finish& action, bool is_stopped) = 0;

  // After the last choice, or when the stream fails on its way. Not before OnStarted.
  virtual void OnEnd(const absl::Status& status) { static_cast<void>(status); }

  virtual void Flush(std::deque<std::string>* messages) = 0;

 private:
  struct Choice {
    int32_t next_index = 0;
    uint64_t hash = kEmptyPrefixHash;
    bool is_stopped = false;  // After token next_index - 1
    bool is_finished = false;
  };

  absl::Status On(const Accepted& action);
  absl::Status On(const Emit& action, std::vector<Event>* events);
  absl::Status On(const Finish& action);
  absl::Status Read(int32_t index, Choice* choice, const OutputToken& token);
  absl::Status CheckPrefix(const Choice& choice) const;
  bool IsComplete() const;

  const Args args_;
  fleet::v1::Envelope envelope_;
  std::vector<Choice> choices_;  // Empty until Accepted
  bool has_started_ = false;
  absl::Status failure_;  // Of the first choice that failed
  int64_t num_tokens_ = 0;
};

}  // namespace shoal
