// What clients do, in one run of the simulator.
#include <string>
#include <utility>

#include "absl/strings/str_cat.h"

#include "tests/sim/simulator.h"

namespace shoal::sim {

Request Simulator::DrawRequest(int32_t number) {
  const Workload& work = scene_.workload;
  Request request;
  request.id = absl::StrCat("r", number);
  request.tenant = prng_.Chance(50) ? "a" : "b";
  request.body_hash = prng_.Next();
  request.is_named = prng_.Chance(work.named_percent);
  const auto draw = [&](int32_t most) {
    return 1 + static_cast<int32_t>(prng_.Below(static_cast<uint64_t>(most)));
  };
  const int32_t length = draw(work.max_prompt);
  // One of three common beginnings, then text of its own.
  const bool is_shared = prng_.Chance(work.shared_prefix_percent);
  const int32_t num_shared = is_shared ? length - draw(length) : 0;
  Prng common(prng_.Below(3) + 1);
  for (int32_t i = 0; i < length; ++i) {
    Prng& source = i < num_shared ? common : prng_;
    request.prompt.push_back(TokenId{static_cast<int32_t>(source.Below(kVocabulary))});
  }
  request.max_tokens = draw(work.max_output);
  request.num_choices = draw(work.max_choices);
  request.sampling.seed = prng_.Next();
  request.sampling.stop_tokens = {kStopToken};
  request.sampling.min_tokens = static_cast<int32_t>(prng_.Below(4));
  request.ignore_eos = prng_.Chance(30);
  if (prng_.Chance(work.logits_percent)) {
    request.wants_prompt_logits = true;
    request.num_choices = 1;
    request.max_tokens = 0;
    request.is_named = false;
  }
  if (prng_.Chance(20)) request.cache_salt = "salt";
  if (!request.wants_prompt_logits && prng_.Chance(work.constrained_percent)) {
    request.is_constrained = true;
    request.envelope = kConstrainedEnvelope;
  }
  return request;
}

// The text layer: slow, forgetful, and sometimes it says things twice. Who asks again after the
// faults' end gets an answer.
void Simulator::Answer(const AskMask& ask) {
  const MaskReady answer{.sequence = ask.sequence,
                         .num_output = static_cast<int32_t>(ask.output.size()),
                         .mask = MaskAfter({ask.output.data(), ask.output.size()})};
  const auto later = [&](Micros most) {
    return now_ + 1 + static_cast<Micros>(prng_.Below(static_cast<uint64_t>(most)));
  };
  const bool is_lost = !IsQuiet() && prng_.Chance(scene_.faults.lose_mask_percent);
  if (!is_lost) At(later(scene_.faults.max_mask_delay), [this, answer] { Tell(answer); });
  if (!prng_.Chance(scene_.faults.repeat_mask_percent)) return;
  At(later(100'000), [this, answer] { Tell(answer); });
}

void Simulator::PlanRequests() {
  const Workload& work = scene_.workload;
  for (int32_t i = 0; i < work.num_requests; ++i) {
    Asked& asked = asked_.emplace_back();
    asked.request = DrawRequest(i);
    for (int32_t c = 0; c < asked.request.num_choices; ++c) {
      SamplingSettings sampling = asked.request.sampling;
      sampling.seed =
          c == 0 ? sampling.seed : Mix64(sampling.seed + kSplitMixStep * static_cast<uint64_t>(c));
      asked.expected.push_back(
          ExpectedOutput({asked.request.prompt.data(), asked.request.prompt.size()},
                         sampling,
                         asked.request.max_tokens,
                         asked.request.ignore_eos,
                         asked.request.is_constrained));
    }
    first_streams_.push_back(StreamId{});
    const Micros when = static_cast<Micros>(prng_.Below(static_cast<uint64_t>(work.arrive_within)));
    At(when, [this, i] { Arrive(static_cast<size_t>(i)); });
  }
}

void Simulator::Arrive(size_t index) {
  Asked& asked = asked_[index];
  if (prng_.Chance(scene_.workload.deadline_percent)) {
    asked.request.deadline =
        Now() + absl::Microseconds(20'000 + static_cast<int64_t>(prng_.Below(2'000'000)));
  }
  const StreamId stream{++last_stream_};
  first_streams_[index] = stream;
  streams_.Open(stream, &asked, -1, 0);
  ++num_arrived_;
  Tell(RequestArrived{stream, asked.request});
  LiveOn(stream, index);
  if (asked.request.wants_prompt_logits || !prng_.Chance(10)) return;
  // Sent again under the same id: the same request if it has the same body.
  At(now_ + static_cast<Micros>(prng_.Below(100'000)), [this, index] {
    const Asked& again = asked_[index];
    const StreamId second{++last_stream_};
    Request request = again.request;
    const bool is_other = prng_.Chance(30);
    if (is_other) ++request.body_hash;
    streams_.Open(second, &again, -1, 0);
    Tell(RequestArrived{second, std::move(request)});
    if (is_other && !again.request.is_named) return;  // It may be over and its id free again
    if (is_other && streams_.refusal(second).code() != absl::StatusCode::kAlreadyExists) {
      Violate("stream: another body under a known id was not refused");
    }
  });
}

// What else the client of a stream does.
void Simulator::LiveOn(StreamId stream, size_t index) {
  const Workload& work = scene_.workload;
  const auto later = [&] { return now_ + static_cast<Micros>(prng_.Below(400'000)); };
  const bool is_named = asked_[index].request.is_named;
  if (prng_.Chance(work.cancel_percent)) {
    At(later(), [this, index] {
      Asked& asked = asked_[index];
      asked.may_cancel = true;
      Tell(CancelAsked{asked.request.tenant, asked.request.id});
    });
  }
  if (prng_.Chance(work.detach_percent)) {
    const bool keep = prng_.Chance(50);
    const bool comes_back = (is_named || keep) && !asked_[index].request.wants_prompt_logits;
    At(later(), [this, stream, index, keep] { Leave(stream, index, keep); });
    if (comes_back) At(later() + 400'000, [this, index] { Attach(index, -1, 0); });
  }
  if (prng_.Chance(work.stop_percent)) {
    At(later(), [this, stream, index] { FindStop(stream, index); });
  }
}

void Simulator::Leave(StreamId stream, size_t index, bool keep) {
  if (streams_.has_ended(stream)) return;
  Asked& asked = asked_[index];
  if (!asked.request.is_named && !keep) asked.may_cancel = true;
  streams_.Close(stream);
  Tell(ClientGone{stream, keep});
}

void Simulator::Attach(size_t index, int32_t choice, int32_t next_index) {
  const Asked& asked = asked_[index];
  const StreamId stream{++last_stream_};
  const int32_t from = next_index + static_cast<int32_t>(prng_.Below(5));
  streams_.Open(stream, &asked, choice, from);
  Tell(ClientAttached{stream, asked.request.tenant, asked.request.id, choice, from});
}

void Simulator::FindStop(StreamId stream, size_t index) {
  Asked& asked = asked_[index];
  const int32_t heard = streams_.NextIndex(stream, 0);
  if (heard == 0 || asked.request.wants_prompt_logits) return;
  asked.may_stop = true;
  const int32_t last = static_cast<int32_t>(prng_.Below(static_cast<uint64_t>(heard)));
  Tell(StopFound{asked.request.tenant, asked.request.id, 0, last});
}

}  // namespace shoal::sim
