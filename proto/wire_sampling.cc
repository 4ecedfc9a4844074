#include "proto/wire_sampling.h"

#include <limits>

#include "base/status_macros.h"
#include "proto/wire_checks.h"

namespace shoal {

namespace pb = fleet::v1;

void SetSampling(const SamplingSettings& s, pb::SamplingSettings* p) {
  p->set_temperature(s.temperature);
  p->set_top_p(s.top_p);
  p->set_min_p(s.min_p);
  p->set_top_k(s.top_k);
  p->set_presence_penalty(s.presence_penalty);
  p->set_frequency_penalty(s.frequency_penalty);
  p->set_repetition_penalty(s.repetition_penalty);
  p->set_penalty_exempt_from(s.penalty_exempt_from);
  p->set_seed(s.seed);
  for (const auto& [token, bias] : s.logit_bias) {
    pb::LogitBias* q = p->add_logit_bias();
    q->set_token(token.value);
    q->set_bias(bias);
  }
  SetIds(s.stop_tokens, p->mutable_stop_tokens());
  p->set_min_tokens(s.min_tokens);
  p->set_num_top_logprobs(s.num_top_logprobs);
  for (const TokenRange& range : s.never) {
    pb::TokenRange* q = p->add_never();
    q->set_first(range.first.value);
    q->set_last(range.last.value);
  }
}

absl::Status GetSampling(const pb::SamplingSettings& p, SamplingSettings* s) {
  s->temperature = p.temperature();
  s->top_p = p.top_p();
  s->min_p = p.min_p();
  s->presence_penalty = p.presence_penalty();
  s->frequency_penalty = p.frequency_penalty();
  s->repetition_penalty = p.repetition_penalty();
  for (const float value : {s->temperature,
                            s->top_p,
                            s->min_p,
                            s->presence_penalty,
                            s->frequency_penalty,
                            s->repetition_penalty}) {
    RETURN_IF_ERROR(CheckFinite("keep_record.sampling", value));
  }
  s->top_k = p.top_k();
  s->penalty_exempt_from = p.penalty_exempt_from();
  s->seed = p.seed();
  for (const pb::LogitBias& entry : p.logit_bias()) {
    RETURN_IF_ERROR(CheckCount("keep_record.sampling.logit_bias.token", entry.token()));
    RETURN_IF_ERROR(CheckFinite("keep_record.sampling.logit_bias.bias", entry.bias()));
    if (!s->logit_bias.empty() && entry.token() <= s->logit_bias.back().first.value) {
      return Refused("keep_record.sampling.logit_bias.token", entry.token(), "rising");
    }
    s->logit_bias.emplace_back(TokenId{entry.token()}, entry.bias());
  }
  RETURN_IF_ERROR(
      GetRisingIds("keep_record.sampling.stop_tokens", p.stop_tokens(), &s->stop_tokens));
  s->min_tokens = p.min_tokens();
  RETURN_IF_ERROR(CheckCount("keep_record.sampling.min_tokens", s->min_tokens));
  s->num_top_logprobs = p.num_top_logprobs();
  if (s->num_top_logprobs < -1) {
    return Refused("keep_record.sampling.num_top_logprobs", s->num_top_logprobs, "at least -1");
  }
  int32_t next = 0;
  for (const pb::TokenRange& range : p.never()) {
    if (range.first() < next) {
      return Refused("keep_record.sampling.never.first", range.first(), "rising");
    }
    if (range.last() < range.first() || range.last() == std::numeric_limits<int32_t>::max()) {
      return Refused("keep_record.sampling.never.last", range.last(), "at least the first one");
    }
    s->never.push_back({TokenId{range.first()}, TokenId{range.last()}});
    next = range.last() + 1;
  }
  return absl::OkStatus();
}

}  // namespace shoal
