#include "coordinator/serve/transcript.h"

#include <algorithm>
#include <utility>
#include <variant>

#include "absl/strings/str_cat.h"
#include "absl/time/time.h"

#include "base/check.h"
#include "base/status_macros.h"

namespace shoal {
namespace {

uint64_t Micros(absl::Duration duration) {
  return static_cast<uint64_t>(std::max<int64_t>(0, absl::ToInt64Microseconds(duration)));
}

}  // namespace

uint64_t HashToken(uint64_t hash, TokenId token) {
  const uint32_t id = static_cast<uint32_t>(token.value);
  for (int shift = 0; shift < 32; shift += 8) hash = (hash ^ ((id >> shift) & 0xffu)) * kFnvPrime;
  return hash;
}

absl::Status FailureOf(const Finish& action) {
  switch (action.reason) {
    case FinishReason::kStop:
    case FinishReason::kStopString:
    case FinishReason::kLength:
      return absl::OkStatus();
    case FinishReason::kCancelled:
      return absl::CancelledError("the request was cancelled");
    case FinishReason::kDeadline:
      return absl::DeadlineExceededError("the request's deadline passed");
    case FinishReason::kError:
      return action.error.ok() ? absl::InternalError("the request failed") : action.error;
  }
  return absl::OkStatus();
}

void SetUsage(const Usage& usage, v1::Usage* out) {
  out->set_prompt_tokens(static_cast<uint32_t>(usage.prompt_tokens));
  out->set_cached_tokens(static_cast<uint32_t>(usage.cached_tokens));
  out->set_completion_tokens(static_cast<uint32_t>(usage.completion_tokens));
}

void SetTimings(const Timings& timings, v1::Timings* out) {
  out->set_queue_us(Micros(timings.queue));
  out->set_prefill_us(Micros(timings.first_token - timings.queue));
  out->set_first_token_us(Micros(timings.first_token));
  out->set_decode_us(Micros(timings.total - timings.first_token));
  out->set_preemptions(static_cast<uint32_t>(timings.preemptions));
  out->set_epochs(static_cast<uint32_t>(timings.epochs));
}

Transcript::Output TokenTranscript::Write(const std::vector<Action>& actions) {
  Output out;
  for (const Action& action : actions) {
    absl::Status status;
    if (const auto* accepted = std::get_if<Accepted>(&action)) {
      status = On(*accepted);
    } else if (const auto* emit = std::get_if<Emit>(&action)) {
      status = On(*emit, &out.events);
    } else if (const auto* finish = std::get_if<Finish>(&action)) {
      status = On(*finish);
      if (status.ok() && IsComplete()) out.end = failure_;
    } else if (const auto* refuse = std::get_if<Refuse>(&action)) {
      status = refuse->status;
    }
    if (!status.ok()) out.end = status;
    if (out.end.has_value()) break;
  }
  if (out.end.has_value() && has_started_) OnEnd(*out.end);
  Flush(&out.messages);
  return out;
}

absl::Status TokenTranscript::On(const Accepted& action) {
  if (!choices_.empty()) return absl::OkStatus();  // It was parked and goes on.
  if (!envelope_.ParseFromString(action.envelope) || envelope_.num_choices() < 1) {
    return absl::InternalError("the request's envelope cannot be read");
  }
  if (args_.choice >= envelope_.num_choices()) {
    return absl::InvalidArgumentError(
        absl::StrCat("choice must be below ", envelope_.num_choices(), ": ", args_.choice));
  }
  choices_.resize(static_cast<size_t>(envelope_.num_choices()));
  if (args_.next_index == 0) RETURN_IF_ERROR(CheckPrefix(choices_[0]));
  RETURN_IF_ERROR(OnStarted(action));
  has_started_ = true;
  return absl::OkStatus();
}

absl::Status TokenTranscript::On(const Emit& action, std::vector<Event>* events) {
  CHECK(action.choice >= 0 && action.choice < std::ssize(choices_));
  Choice& choice = choices_[static_cast<size_t>(action.choice)];
  if (action.first_index > choice.next_index && !choice.is_stopped) {
    return absl::InternalError(absl::StrCat(
        "tokens ", choice.next_index, " to ", action.first_index, " of the answer are missing"));
  }
  for (size_t i = 0; i < action.tokens.size() && !choice.is_stopped; ++i) {
    if (action.first_index + static_cast<int32_t>(i) < choice.next_index) continue;
    RETURN_IF_ERROR(Read(action.choice, &choice, action.tokens[i]));
    if (!choice.is_stopped) continue;
    events->push_back(StopFound{.tenant = args_.tenant,
                                .request_id = args_.request_id,
                                .choice = action.choice,
                                .last_index = choice.next_index - 1});
  }
  return absl::OkStatus();
}

absl::Status TokenTranscript::Read(int32_t index, Choice* choice, const OutputToken& token) {
  const bool is_shown = choice->next_index >= args_.next_index;
  ++choice->next_index;
  choice->hash = HashToken(choice->hash, token.token);
  choice->is_stopped = OnToken(
      {.choice = index, .num_tokens = choice->next_index, .hash = choice->hash}, token, is_shown);
  if (is_shown) {
    ++num_tokens_;
    return absl::OkStatus();
  }
  return choice->next_index == args_.next_index ? CheckPrefix(*choice) : absl::OkStatus();
}

absl::Status TokenTranscript::CheckPrefix(const Choice& choice) const {
  if (!args_.prefix_hash.has_value() || *args_.prefix_hash == choice.hash) {
    return absl::OkStatus();
  }
  return absl::DataLossError(absl::StrCat("the first ",
                                          args_.next_index,
                                          " tokens that the client has are not those of request `",
                                          args_.request_id,
                                          "`: read it again from index 0"));
}

absl::Status TokenTranscript::On(const Finish& action) {
  if (choices_.empty()) return FailureOf(action);  // It ended before it was accepted.
  CHECK(action.choice >= 0 && action.choice < std::ssize(choices_));
  Choice& choice = choices_[static_cast<size_t>(action.choice)];
  if (choice.is_finished) return absl::OkStatus();
  choice.is_finished = true;
  if (choice.next_index < args_.next_index) {
    return absl::DataLossError(absl::StrCat("the answer ended with ",
                                            choice.next_index,
                                            " tokens: there is nothing at index ",
                                            args_.next_index));
  }
  const bool is_complete =
      OnFinished({.choice = action.choice, .num_tokens = choice.next_index, .hash = choice.hash},
                 action,
                 choice.is_stopped);
  if (!is_complete && failure_.ok()) failure_ = FailureOf(action);
  return absl::OkStatus();
}

bool TokenTranscript::IsComplete() const {
  if (args_.choice >= 0) return choices_[static_cast<size_t>(args_.choice)].is_finished;
  return std::all_of(
      choices_.begin(), choices_.end(), [](const Choice& choice) { return choice.is_finished; });
}

std::vector<ClientAttached> TokenTranscript::Resume() const {
  std::vector<ClientAttached> out;
  for (int32_t i = 0; i < std::ssize(choices_); ++i) {
    const Choice& choice = choices_[static_cast<size_t>(i)];
    if (choice.is_finished || (args_.choice >= 0 && args_.choice != i)) continue;
    out.push_back(ClientAttached{.stream = {},
                                 .tenant = args_.tenant,
                                 .request_id = args_.request_id,
                                 .choice = i,
                                 .next_index = choice.next_index});
  }
  return out;
}

std::optional<Event> TokenTranscript::Abandon() const {
  if (envelope_.is_named()) return std::nullopt;
  return CancelAsked{.tenant = args_.tenant, .request_id = args_.request_id};
}

}  // namespace shoal
