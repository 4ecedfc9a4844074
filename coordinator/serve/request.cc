#include "coordinator/serve/request.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <utility>

#include "absl/strings/ascii.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "google/protobuf/io/coded_stream.h"
#include "google/protobuf/io/zero_copy_stream_impl_lite.h"

#include "base/prng.h"
#include "base/status_macros.h"
#include "coordinator/serve/request_constraint.h"

namespace shoal {
namespace {

template <typename T>
absl::Status Bad(absl::string_view field, const T& value, absl::string_view rule) {
  return absl::InvalidArgumentError(absl::StrCat(field, " must be ", rule, ": ", value));
}

// Written so that a NaN is outside of every range.
absl::Status CheckRange(absl::string_view field, float value, float low, float high) {
  if (value >= low && value <= high) return absl::OkStatus();
  return Bad(field, value, absl::StrCat("between ", low, " and ", high));
}

absl::Status ParseSampling(const v1::SamplingParams& wire,
                           const ServedModel& model,
                           SamplingSettings* out) {
  if (wire.has_temperature()) out->temperature = wire.temperature();
  RETURN_IF_ERROR(CheckRange("sampling.temperature", out->temperature, 0.0f, 2.0f));
  if (wire.has_top_p()) out->top_p = wire.top_p();
  if (!(out->top_p > 0.0f && out->top_p <= 1.0f)) {
    return Bad("sampling.top_p", out->top_p, "above 0 and at most 1");
  }
  if (wire.has_top_k()) out->top_k = std::max(wire.top_k(), 0);
  if (wire.top_k() < -1) return Bad("sampling.top_k", wire.top_k(), "at least 1, or 0 for off");
  if (wire.has_min_p()) out->min_p = wire.min_p();
  RETURN_IF_ERROR(CheckRange("sampling.min_p", out->min_p, 0.0f, 1.0f));
  if (wire.has_frequency_penalty()) out->frequency_penalty = wire.frequency_penalty();
  RETURN_IF_ERROR(CheckRange("sampling.frequency_penalty", out->frequency_penalty, -2.0f, 2.0f));
  if (wire.has_presence_penalty()) out->presence_penalty = wire.presence_penalty();
  RETURN_IF_ERROR(CheckRange("sampling.presence_penalty", out->presence_penalty, -2.0f, 2.0f));
  if (wire.has_repetition_penalty()) out->repetition_penalty = wire.repetition_penalty();
  if (!(out->repetition_penalty > 0.0f && std::isfinite(out->repetition_penalty))) {
    return Bad("sampling.repetition_penalty", out->repetition_penalty, "above 0; 1 is off");
  }
  if (wire.logit_bias_size() > kMaxLogitBias) {
    return Bad("sampling.logit_bias.size",
               wire.logit_bias_size(),
               absl::StrCat("at most ", kMaxLogitBias));
  }
  // A bias on a marker would let a client write the structure of the conversation.
  const int32_t bound =
      model.tokenizer == nullptr ? model.config.vocab : model.tokenizer->FirstSpecial().value;
  for (const auto& [id, bias] : wire.logit_bias()) {
    if (id >= static_cast<uint32_t>(bound)) {
      return Bad("sampling.logit_bias token", id, absl::StrCat("below ", bound));
    }
    RETURN_IF_ERROR(
        CheckRange(absl::StrCat("sampling.logit_bias of token ", id), bias, -100.0f, 100.0f));
    out->logit_bias.emplace_back(TokenId{static_cast<int32_t>(id)}, bias);
  }
  std::sort(out->logit_bias.begin(), out->logit_bias.end());
  out->never = model.never;
  if (model.tokenizer != nullptr) {
    out->penalty_exempt_from = model.tokenizer->FirstSpecial().value;
  }
  return absl::OkStatus();
}

absl::Status ParseStopTokens(const v1::Limits& wire,
                             const ServedModel& model,
                             std::vector<TokenId>* out) {
  ASSIGN_OR_RETURN(*out, ParseTokens("limits.stop_token_ids", wire.stop_token_ids(), model));
  // What the model itself ends with; "ignored" means that it is a token like any other.
  if (!wire.ignore_eos()) {
    for (const int32_t id : model.config.eos_token_ids) out->push_back(TokenId{id});
  }
  std::sort(out->begin(), out->end());
  out->erase(std::unique(out->begin(), out->end()), out->end());
  return absl::OkStatus();
}

absl::Status ParseStopStrings(const v1::Limits& wire,
                              const ServedModel& model,
                              fleet::v1::Envelope* envelope) {
  if (wire.stop_size() > kMaxStopStrings) {
    return Bad("limits.stop.size", wire.stop_size(), absl::StrCat("at most ", kMaxStopStrings));
  }
  if (wire.stop_size() > 0) RETURN_IF_ERROR(NeedTokenizer(model, "limits.stop").status());
  for (const std::string& stop : wire.stop()) {
    if (stop.empty() || stop.size() > kMaxStopStringBytes) {
      return Bad("limits.stop of bytes",
                 stop.size(),
                 absl::StrCat("1 to ", kMaxStopStringBytes, " bytes long"));
    }
    envelope->add_stop(stop);
  }
  return absl::OkStatus();
}

absl::Status ParseLimits(const v1::Limits& wire, const ServedModel& model, Request* out) {
  const int32_t room =
      std::max(1, model.config.max_positions - static_cast<int32_t>(out->prompt.size()));
  out->max_tokens = room;
  if (wire.has_max_tokens()) {
    if (wire.max_tokens() == 0) {
      return Bad("limits.max_tokens", 0, "at least 1; leave it out for all that the context holds");
    }
    out->max_tokens =
        static_cast<int32_t>(std::min<uint32_t>(wire.max_tokens(), static_cast<uint32_t>(room)));
  }
  const uint32_t most =
      wire.has_max_tokens() ? wire.max_tokens() : static_cast<uint32_t>(out->max_tokens);
  if (wire.min_tokens() > most) {
    return Bad("limits.min_tokens", wire.min_tokens(), absl::StrCat("at most max_tokens, ", most));
  }
  out->sampling.min_tokens = static_cast<int32_t>(
      std::min<uint32_t>(wire.min_tokens(), static_cast<uint32_t>(out->max_tokens)));
  return ParseStopTokens(wire, model, &out->sampling.stop_tokens);
}

absl::StatusOr<std::vector<TokenId>> ParsePrompt(const v1::GenerateRequest& wire,
                                                 const ServedModel& model) {
  switch (wire.prompt_case()) {
    case v1::GenerateRequest::kText:
      return EncodeText(wire.text(), wire.parse_special(), model);
    case v1::GenerateRequest::kTokens:
      return ParseTokens("tokens.ids", wire.tokens().ids(), model);
    case v1::GenerateRequest::PROMPT_NOT_SET:
      break;
  }
  return absl::InvalidArgumentError("a request needs a prompt: set `text` or `tokens`");
}

absl::Status CheckPrompt(const std::vector<TokenId>& prompt, const ServedModel& model) {
  if (prompt.empty()) {
    return absl::InvalidArgumentError("the prompt is empty: at least one token is needed");
  }
  const int64_t most = model.config.max_positions - 1;
  if (std::ssize(prompt) <= most) return absl::OkStatus();
  return Bad("the prompt's length in tokens",
             prompt.size(),
             absl::StrCat("at most ", most, ", one below the context of ", most + 1));
}

// Equal bodies have equal hashes, whatever order a map was built in.
uint64_t HashBody(v1::GenerateRequest wire) {
  wire.clear_request_id();
  std::string bytes;
  {
    google::protobuf::io::StringOutputStream sink(&bytes);
    google::protobuf::io::CodedOutputStream coded(&sink);
    coded.SetSerializationDeterministic(true);
    wire.SerializeWithCachedSizes(&coded);
  }
  return Fnv1a64(bytes);
}

std::string MakeId(uint64_t entropy) {
  return absl::StrFormat("req-%016x%016x", Mix64(entropy), Mix64(entropy + kSplitMixStep));
}

absl::Status CheckNames(const v1::GenerateRequest& wire, const ServedModel& model) {
  if (!wire.model().empty() && wire.model() != model.name) {
    return absl::NotFoundError(absl::StrCat("this server serves `",
                                            model.name,
                                            "`, not `",
                                            absl::string_view(wire.model()).substr(0, 128),
                                            "`"));
  }
  if (wire.cache_salt().size() > kMaxCacheSaltBytes) {
    return Bad("cache_salt of bytes",
               wire.cache_salt().size(),
               absl::StrCat("at most ", kMaxCacheSaltBytes, " long"));
  }
  if (wire.request_id().empty()) return absl::OkStatus();
  return CheckRequestId(wire.request_id());
}

}  // namespace

absl::Status CheckRequestId(absl::string_view id) {
  const auto is_allowed = [](char c) {
    return absl::ascii_isalnum(static_cast<unsigned char>(c)) || c == '-' || c == '_' || c == '.' ||
           c == ':';
  };
  if (!id.empty() && id.size() <= kMaxRequestIdBytes &&
      std::all_of(id.begin(), id.end(), is_allowed)) {
    return absl::OkStatus();
  }
  return Bad("request_id",
             absl::StrCat("`", id.substr(0, kMaxRequestIdBytes), "`"),
             absl::StrCat("1 to ", kMaxRequestIdBytes, " letters, digits, '-', '_', '.' or ':'"));
}

absl::StatusOr<const Tokenizer*> NeedTokenizer(const ServedModel& model, absl::string_view wish) {
  if (model.tokenizer != nullptr) return model.tokenizer;
  return absl::FailedPreconditionError(absl::StrCat(
      wish,
      " needs a tokenizer, and this server has none: put tokenizer.json into the checkpoint's "
      "folder, or send token ids"));
}

absl::StatusOr<std::vector<TokenId>> EncodeText(const std::string& text,
                                                bool parse_special,
                                                const ServedModel& model) {
  ASSIGN_OR_RETURN(const Tokenizer* tokenizer, NeedTokenizer(model, "text"));
  const int64_t most = kMaxPromptBytesPerPosition * model.config.max_positions;
  if (std::ssize(text) > most) {
    return Bad("text of bytes",
               text.size(),
               absl::StrCat("at most ", most, " long, eight for each position of the context"));
  }
  const SpecialTokens special{
      .mode = parse_special ? SpecialTokens::Mode::kAll : SpecialTokens::Mode::kNone, .listed = {}};
  return tokenizer->Encode(text, special);
}

absl::StatusOr<std::vector<TokenId>> ParseTokens(
    absl::string_view field,
    const google::protobuf::RepeatedField<uint32_t>& ids,
    const ServedModel& model) {
  std::vector<TokenId> tokens;
  tokens.reserve(static_cast<size_t>(ids.size()));
  for (const uint32_t id : ids) {
    if (id >= static_cast<uint32_t>(model.config.vocab)) {
      return Bad(absl::StrCat(field, "[", tokens.size(), "]"),
                 id,
                 absl::StrCat("below ", model.config.vocab, ", the size of the vocabulary"));
    }
    tokens.push_back(TokenId{static_cast<int32_t>(id)});
  }
  return tokens;
}

absl::StatusOr<Request> ParseRequest(const v1::GenerateRequest& wire,
                                     const ServedModel& model,
                                     absl::Time now,
                                     uint64_t entropy) {
  Request out;
  RETURN_IF_ERROR(CheckNames(wire, model));
  out.is_named = !wire.request_id().empty();
  out.id = out.is_named ? wire.request_id() : MakeId(entropy);
  out.body_hash = HashBody(wire);
  out.cache_salt = wire.cache_salt();
  RETURN_IF_ERROR(ParseSampling(wire.sampling(), model, &out.sampling));
  out.sampling.seed =
      wire.sampling().has_seed() ? static_cast<uint64_t>(wire.sampling().seed()) : entropy;

  fleet::v1::Envelope envelope;
  RETURN_IF_ERROR(ParseStopStrings(wire.limits(), model, &envelope));
  if (wire.output().has_logprobs()) {
    if (wire.output().logprobs() > kMaxTopLogprobs) {
      return Bad("output.logprobs", wire.output().logprobs(), "between 0 and 20");
    }
    out.sampling.num_top_logprobs = static_cast<int32_t>(wire.output().logprobs());
  }
  if (wire.sampling().has_n()) {
    if (wire.sampling().n() < 1 || wire.sampling().n() > kMaxChoices) {
      return Bad("sampling.n", wire.sampling().n(), absl::StrCat("between 1 and ", kMaxChoices));
    }
    out.num_choices = static_cast<int32_t>(wire.sampling().n());
  }
  // Last, because it is the expensive part.
  ASSIGN_OR_RETURN(out.prompt, ParsePrompt(wire, model));
  RETURN_IF_ERROR(CheckPrompt(out.prompt, model));
  RETURN_IF_ERROR(ParseLimits(wire.limits(), model, &out));

  if (wire.has_constraint()) {
    ASSIGN_OR_RETURN(const ConstraintSpec spec, PlainConstraint(wire.constraint()));
    RETURN_IF_ERROR(Constrain(spec, model, wire.limits(), &out, &envelope));
  }
  for (const TokenId id : out.sampling.stop_tokens) envelope.add_stop_tokens(id.value);
  envelope.set_num_choices(out.num_choices);
  envelope.set_num_top_logprobs(out.sampling.num_top_logprobs);
  envelope.set_created_us(absl::ToUnixMicros(now));
  envelope.set_is_named(out.is_named);
  out.envelope = envelope.SerializeAsString();
  return out;
}

absl::StatusOr<Request> ParseLogitsRequest(std::vector<TokenId> prompt,
                                           const ServedModel& model,
                                           absl::Time now,
                                           uint64_t entropy) {
  v1::GenerateRequest wire;
  for (const TokenId id : prompt) {
    wire.mutable_tokens()->add_ids(static_cast<uint32_t>(id.value));
  }
  wire.mutable_limits()->set_max_tokens(1);
  wire.mutable_sampling()->set_temperature(0.0f);
  ASSIGN_OR_RETURN(Request out, ParseRequest(wire, model, now, entropy));
  out.wants_prompt_logits = true;
  // A prefix taken from the cache is not computed, so it has no logits.
  out.use_prefix_cache = false;
  return out;
}

}  // namespace shoal
