// The worker link: what a worker and the coordinator say to each other besides steps. Plain values;
// proto/wire.h converts and validates; cluster.proto is the wire form.
#pragma once

#include <array>
#include <cstdint>
#include <string>
#include <variant>
#include <vector>

#include "absl/status/status.h"

#include "base/ids.h"
#include "proto/step.h"

namespace shoal {

// A worker may join a cell only if all of this is equal to the cell's.
struct NumericsClass {
  std::string version;            // Of the program
  std::string checkpoint_digest;  // Of config, tensor table and file sizes; hexadecimal
  std::string backend;            // Backend::numerics_class()
  int32_t numerics_version = 0;

  friend bool operator==(const NumericsClass&, const NumericsClass&) = default;
};

// worker -> coordinator, first message of a link.
struct Enrol {
  WorkerId worker;
  Incarnation incarnation;
  NumericsClass numerics;
  std::string host;               // Failure domain
  std::string exchange_endpoint;  // Where ranks reach it: "unix:/path", "tcp:host:port",
                                  // "shm:/path", "local:n", "nccl:..."
  std::string process;            // "pid 123", for people
  Term highest_term;
  int64_t memory_bytes = 0;  // For weights and K/V together
  int64_t dense_bytes = 0;   // Of that, dense weights (0 where they are shared with the host)
  int64_t expert_bytes = 0;  // One expert across all layers
  int32_t num_experts = 0;
  int32_t num_layers = 0;

  friend bool operator==(const Enrol&, const Enrol&) = default;
};

// worker -> coordinator, every second and when something changes.
struct Beat {
  Term highest_term;
  std::string phase;  // "loading", "ready", "stepping", ...
  int64_t load_done_bytes = 0;
  int64_t load_total_bytes = 0;
  int64_t kv_full_blocks_used = 0;  // By the block tables the worker holds
  int64_t resident_bytes = 0;

  friend bool operator==(const Beat&, const Beat&) = default;
};

// coordinator -> worker: hold (at least) these experts, in every layer; what is missing is read
// from the checkpoint, what is not listed may be dropped once an epoch without it is Ready.
struct LoadExperts {
  Term term;
  CellId cell;
  uint64_t placement_version = 0;
  std::vector<ExpertId> experts;  // Rising

  friend bool operator==(const LoadExperts&, const LoadExperts&) = default;
};

// worker -> coordinator.
struct ExpertsLoaded {
  CellId cell;
  uint64_t placement_version = 0;
  absl::Status status;
  int32_t num_full_blocks = 0;  // K/V blocks that fit beside the weights
  int32_t num_window_blocks = 0;

  friend bool operator==(const ExpertsLoaded&, const ExpertsLoaded&) = default;
};

struct Member {
  WorkerId worker;
  Incarnation incarnation;
  std::string exchange_endpoint;
  std::string host;

  friend bool operator==(const Member&, const Member&) = default;
};

using EpochKey = std::array<uint8_t, 32>;

// coordinator -> worker: the next membership of a cell. Ends the epoch before it.
struct Configure {
  Term term;
  CellId cell;
  Epoch epoch;
  StepId next_step;             // The first step of this epoch
  Rank rank;                    // The receiver's
  std::vector<Member> members;  // By rank
  EpochKey key{};               // Exchange handshakes of this epoch
  uint64_t placement_version = 0;
  std::vector<std::vector<Rank>>
      placement;                // [expert] -> the ranks that hold it, rising; never empty
  int32_t max_rows = 0;         // Per rank and step; buffers are sized by it
  int32_t num_full_blocks = 0;  // K/V blocks of this rank that plans may name
  int32_t num_window_blocks = 0;
  int64_t deadline_ms = 0;  // To build the exchange

  friend bool operator==(const Configure&, const Configure&) = default;
};

// worker -> coordinator.
struct Ready {
  Term term;
  CellId cell;
  Epoch epoch;
  absl::Status status;  // Not OK: the exchange could not be built
  std::vector<Rank> suspects;

  friend bool operator==(const Ready&, const Ready&) = default;
};

// Both ways, while an epoch is built: what its ranks need to find each other, made by rank 0
// (NCCL's unique id). Who has it can join, so the coordinator hands it to the epoch's other ranks
// and to nobody else.
struct Bootstrap {
  Term term;
  CellId cell;
  Epoch epoch;
  std::string id;  // Opaque bytes

  friend bool operator==(const Bootstrap&, const Bootstrap&) = default;
};

// coordinator -> worker: leave the exchange of this epoch, drop the plans in hand.
struct Abort {
  Term term;
  CellId cell;
  Epoch epoch;

  friend bool operator==(const Abort&, const Abort&) = default;
};

// Ids from `first` to `last`, both included.
struct TokenRange {
  TokenId first;
  TokenId last;

  friend bool operator==(const TokenRange&, const TokenRange&) = default;
};

// What decides the next token, besides the tokens themselves. Kept in the record.
struct SamplingSettings {
  float temperature = 1.0f;
  float top_p = 1.0f;
  float min_p = 0.0f;
  int32_t top_k = 0;
  float presence_penalty = 0.0f;
  float frequency_penalty = 0.0f;
  float repetition_penalty = 1.0f;
  int32_t penalty_exempt_from = 0x7fffffff;
  uint64_t seed = 0;
  std::vector<std::pair<TokenId, float>> logit_bias;  // Rising ids
  std::vector<TokenId>
      stop_tokens;  // Rising; forbidden until min_tokens are out. Includes end-of-sequence.
  int32_t min_tokens = 0;
  int32_t num_top_logprobs = -1;  // -1: no logprobs
  // Ids that no token may have, whatever else is said: the vocabulary's padding and the markers
  // that mean nothing. Rising.
  std::vector<TokenRange> never;

  friend bool operator==(const SamplingSettings&, const SamplingSettings&) = default;
};

// coordinator -> worker: tokens of a sequence's record from `index` on. index 0 creates the record
// and carries prompt length and settings. Tokens already there must be equal, else kDataLoss.
struct KeepRecord {
  Term term;
  SequenceId sequence;
  int32_t index = 0;
  std::vector<TokenId> tokens;
  int32_t prompt_length = 0;  // Meaningful with index 0
  SamplingSettings sampling;  // Meaningful with index 0
  std::string envelope;       // Sealed; opened by coordinators only. Meaningful with index 0

  friend bool operator==(const KeepRecord&, const KeepRecord&) = default;
};

// coordinator -> worker: the link is refused (unequal numerics, identity in use, ...); do not
// retry.
struct Dismiss {
  Term term;
  absl::Status reason;

  friend bool operator==(const Dismiss&, const Dismiss&) = default;
};

// coordinator -> worker: first message; tells the term.
struct Welcome {
  Term term;
  Incarnation coordinator;

  friend bool operator==(const Welcome&, const Welcome&) = default;
};

// worker -> coordinator: a message was refused (kAborted: stale term or epoch; kFailedPrecondition:
// a gap; kDataLoss: a record disagrees). Names the numbers the worker holds.
struct Refusal {
  Term term;
  CellId cell;
  Epoch epoch;
  StepId step;
  absl::Status reason;

  friend bool operator==(const Refusal&, const Refusal&) = default;
};

using ToWorker =
    std::variant<Welcome, Dismiss, LoadExperts, Configure, Bootstrap, Abort, KeepRecord, StepPlan>;
using FromWorker = std::variant<Enrol, Beat, ExpertsLoaded, Bootstrap, Ready, Refusal, StepResult>;

}  // namespace shoal
