// The control plane's table of contents: everything that can happen to the coordinator (Event) and
// everything it can do about it (Action). The core is a value, Handle(now, event) -> actions;
// sockets, clocks and text exist only in coordinator/serve and coordinator/text. Next:
// coordinator/coordinator.cc
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <variant>
#include <vector>

#include "absl/status/status.h"
#include "absl/time/time.h"

#include "base/ids.h"
#include "proto/cluster.h"
#include "proto/step.h"
#include "proto/token_mask.h"

namespace shoal {

// A client's reader of one request. Given by the frontend; never reused.
using StreamId = Id<struct StreamTag, uint64_t>;

// A request as the frontend made it: parsed, validated against the vocabulary, tokenised.
struct Request {
  std::string id;          // Unique per tenant; from the client or made by the frontend
  std::string tenant;      // "" is a tenant too; prefixes are shared within one tenant only
  uint64_t body_hash = 0;  // Same id, same hash: the same request
  bool is_named = false;   // The client chose the id: kept for re-attaching when its reader leaves
  std::vector<TokenId> prompt;  // Never empty
  SamplingSettings sampling;    // seed: of choice 0; choice c uses a hash of (seed, c)
  int32_t max_tokens = 0;       // Output bound, at least 1
  bool ignore_eos = false;      // sampling.stop_tokens do not end the sequence
  bool is_constrained = false;  // Every token needs a mask first: see AskMask
  int32_t num_choices = 1;
  bool wants_prompt_logits = false;  // shoal logits: EmitLogits for every prompt position
  bool use_prefix_cache = true;
  std::string cache_salt;  // Further splits the prefix cache
  absl::Time deadline = absl::InfiniteFuture();
  std::string envelope;  // What a new coordinator would need again; sealed
};

// ---- Events
// ----------------------------------------------------------------------------------------

struct RequestArrived {
  StreamId stream;  // Attached from the first token on
  Request request;
};

// A reader wants the tokens of `choice` from `next_index` on (every choice if -1).
struct ClientAttached {
  StreamId stream;
  std::string tenant;
  std::string request_id;
  int32_t choice = -1;
  int32_t next_index = 0;
};

// The reader left or was parked. A request that is not named ends with its last reader, unless
// `keep` says that the reader will attach again (it was parked for being slow).
struct ClientGone {
  StreamId stream;
  bool keep = false;
};

struct CancelAsked {
  std::string tenant;
  std::string request_id;
};

// The text layer found the end (a stop string) in token `last_index`; later tokens do not count.
struct StopFound {
  std::string tenant;
  std::string request_id;
  int32_t choice = 0;
  int32_t last_index = 0;  // Index of the last output token that counts
};

// The answer to AskMask: what may follow the first `num_output` output tokens. An answer to a
// question that the sequence has outgrown means nothing; one that never comes is asked for again.
struct MaskReady {
  SequenceId sequence;
  int32_t num_output = 0;
  absl::Status status;  // Not OK: the sequence cannot go on
  TokenMask mask;
};

struct WorkerEnrolled {
  Enrol enrol;
};

struct WorkerSaid {  // Any later message of the worker's link
  WorkerId worker;
  Incarnation incarnation;
  FromWorker message;
};

struct WorkerLost {  // Its link ended, or it passed a deadline
  WorkerId worker;
  Incarnation incarnation;
  std::string why;
};

// Time passed. Sent at least every 50 ms, and at NextDeadline().
struct Tick {};

using Event = std::variant<RequestArrived,
                           ClientAttached,
                           ClientGone,
                           CancelAsked,
                           StopFound,
                           MaskReady,
                           WorkerEnrolled,
                           WorkerSaid,
                           WorkerLost,
                           Tick>;

// ---- Actions
// ---------------------------------------------------------------------------------------

enum class FinishReason : uint8_t {
  kStop,  // A stop token, which is the last output token
  kStopString,
  kLength,  // max_tokens, or the context is full
  kCancelled,
  kDeadline,
  kError,  // `error` says what
};

struct Usage {
  int32_t prompt_tokens = 0;
  int32_t cached_tokens = 0;  // Of the prompt, taken from the prefix cache at first admission
  int32_t completion_tokens = 0;
};

struct Timings {
  absl::Duration queue;        // Arrival to first plan
  absl::Duration first_token;  // Arrival to first accepted token
  absl::Duration total;
  int32_t preemptions = 0;
  int32_t epochs = 0;  // Epoch changes it lived through
};

// The stream's request will not run: say why, and what would do. Ends the stream.
struct Refuse {
  StreamId stream;
  absl::Status status;
};

// The request was admitted (or found again): the first thing an attached stream hears.
struct Accepted {
  StreamId stream;
  std::string request_id;
  int32_t prompt_tokens = 0;
  std::string envelope;  // The request's own: what a reader that attached needs to write its text
};

struct OutputToken {
  TokenId token;
  float logprob = 0.0f;
  std::vector<TopLogprob> top;
};

// Output tokens [first_index, first_index + tokens.size()) of one choice; per stream without gap or
// repeat.
struct Emit {
  StreamId stream;
  int32_t choice = 0;
  int32_t first_index = 0;
  std::vector<OutputToken> tokens;
};

struct EmitLogits {
  StreamId stream;
  LogitRows rows;  // Positions rise without gap over a stream's messages
};

// One choice ended. After the last choice the stream has ended.
struct Finish {
  StreamId stream;
  int32_t choice = 0;
  FinishReason reason = FinishReason::kStop;
  absl::Status error;
  std::optional<TokenId> stop_token;
  Usage usage;
  Timings timings;
  bool is_last_choice = true;
};

// The text layer shall say which tokens may come next: a function of what is here and of nothing
// else. The sequence's next token waits for it, nobody else's does.
struct AskMask {
  SequenceId sequence;
  std::vector<TokenId> output;  // All of it
  std::string envelope;
};

// A message to a worker's current link; lost if that link is gone.
struct SendToWorker {
  WorkerId worker;
  Incarnation incarnation;
  ToWorker message;
};

// Close the worker's link (it was dismissed or declared lost).
struct CloseLink {
  WorkerId worker;
  Incarnation incarnation;
};

// One line for the operator's log; no prompt text.
struct Note {
  std::string text;
};

using Action = std::
    variant<Refuse, Accepted, Emit, EmitLogits, Finish, AskMask, SendToWorker, CloseLink, Note>;

}  // namespace shoal
