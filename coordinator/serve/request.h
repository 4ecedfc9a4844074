// What a client asked, judged and made ours: ranges, vocabulary, tokens. Pure; thread-safe.
//
// Every refusal is kInvalidArgument and says which field, which value and what would do;
// kFailedPrecondition means that the server has no tokenizer; kNotFound, another model.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/time/time.h"
#include "google/protobuf/repeated_field.h"

#include "coordinator/events.h"
#include "coordinator/text/harmony.h"
#include "coordinator/text/token_index.h"
#include "coordinator/text/tokenizer.h"
#include "model/config.h"
#include "proto/envelope.pb.h"
#include "proto/inference.pb.h"

namespace shoal {

inline constexpr int kMaxChoices = 8;
inline constexpr int kMaxStopStrings = 16;
inline constexpr size_t kMaxStopStringBytes = 256;
inline constexpr int kMaxLogitBias = 300;
inline constexpr uint32_t kMaxTopLogprobs = 20;
inline constexpr size_t kMaxRequestIdBytes = 128;
inline constexpr size_t kMaxCacheSaltBytes = 256;
// A prompt of more bytes cannot fit the context; it is refused before it is tokenised.
inline constexpr int64_t kMaxPromptBytesPerPosition = 8;

struct ServedModel {
  std::string name;
  ModelConfig config;
  const Tokenizer* tokenizer = nullptr;     // Null: token ids in, token ids out
  const HarmonyTokens* harmony = nullptr;   // Null: the tokenizer lacks what a chat needs
  const TokenIndex* token_index = nullptr;  // Of the tokenizer, if there is one
  std::vector<TokenRange> never = {};       // Ids that are not sampled
};

// `entropy` seeds a request that brings no seed, and names one that brings no id. The request's
// deadline is left to the caller.
absl::StatusOr<Request> ParseRequest(const v1::GenerateRequest& wire,
                                     const ServedModel& model,
                                     absl::Time now,
                                     uint64_t entropy);

// A prompt whose logits are wanted: one sampled token is the least that a request can ask for.
absl::StatusOr<Request> ParseLogitsRequest(std::vector<TokenId> prompt,
                                           const ServedModel& model,
                                           absl::Time now,
                                           uint64_t entropy);

// Ids as the client wrote them; `field` is what an error calls them.
absl::StatusOr<std::vector<TokenId>> ParseTokens(
    absl::string_view field,
    const google::protobuf::RepeatedField<uint32_t>& ids,
    const ServedModel& model);

absl::Status CheckRequestId(absl::string_view id);

// The tokenizer, or kFailedPrecondition naming `wish`.
absl::StatusOr<const Tokenizer*> NeedTokenizer(const ServedModel& model, absl::string_view wish);

// `text` as tokens, if it can fit the context at all.
absl::StatusOr<std::vector<TokenId>> EncodeText(const std::string& text,
                                                bool parse_special,
                                                const ServedModel& model);

}  // namespace shoal
