#include "coordinator/serve/answer.h"

#include <algorithm>
#include <utility>
#include <variant>

#include "absl/strings/str_cat.h"
#include "absl/time/time.h"
#include "google/protobuf/util/time_util.h"

#include "base/check.h"
#include "base/status_macros.h"

namespace shoal {
namespace {

// Bounds a message: with 20 alternatives a token takes about 1 KiB.
constexpr int kMaxTokensPerChunk = 1024;

uint64_t Micros(absl::Duration duration) {
  return static_cast<uint64_t>(std::max<int64_t>(0, absl::ToInt64Microseconds(duration)));
}

v1::Finished::Reason ToProto(FinishReason reason) {
  switch (reason) {
    case FinishReason::kStop:
      return v1::Finished::STOP;
    case FinishReason::kStopString:
      return v1::Finished::STOP_STRING;
    case FinishReason::kLength:
      return v1::Finished::LENGTH;
    case FinishReason::kCancelled:
      return v1::Finished::CANCELLED;
    case FinishReason::kDeadline:
      return v1::Finished::DEADLINE;
    case FinishReason::kError:
      return v1::Finished::ERROR;
  }
  return v1::Finished::REASON_UNSPECIFIED;
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

void Set(const Finish& action, v1::Finished* out) {
  out->set_reason(ToProto(action.reason));
  out->mutable_usage()->set_prompt_tokens(static_cast<uint32_t>(action.usage.prompt_tokens));
  out->mutable_usage()->set_cached_tokens(static_cast<uint32_t>(action.usage.cached_tokens));
  out->mutable_usage()->set_completion_tokens(
      static_cast<uint32_t>(action.usage.completion_tokens));
  if (action.stop_token.has_value()) {
    out->set_stop_token_id(static_cast<uint32_t>(action.stop_token->value));
  }
  const Timings& timings = action.timings;
  out->mutable_timings()->set_queue_us(Micros(timings.queue));
  out->mutable_timings()->set_prefill_us(Micros(timings.first_token - timings.queue));
  out->mutable_timings()->set_first_token_us(Micros(timings.first_token));
  out->mutable_timings()->set_decode_us(Micros(timings.total - timings.first_token));
  out->mutable_timings()->set_preemptions(static_cast<uint32_t>(timings.preemptions));
  out->mutable_timings()->set_epochs(static_cast<uint32_t>(timings.epochs));
}

}  // namespace

uint64_t HashToken(uint64_t hash, TokenId token) {
  const uint32_t id = static_cast<uint32_t>(token.value);
  for (int shift = 0; shift < 32; shift += 8) hash = (hash ^ ((id >> shift) & 0xffu)) * kFnvPrime;
  return hash;
}

AnswerTranscript::Choice::Choice(const ServedModel& model, const fleet::v1::Envelope& envelope)
    : stops(std::vector<std::string>(envelope.stop().begin(), envelope.stop().end())) {
  if (model.tokenizer != nullptr) detokenizer.emplace(model.tokenizer);
}

AnswerTranscript::AnswerTranscript(Args args) : args_(std::move(args)) {}

Transcript::Output AnswerTranscript::Write(const std::vector<Action>& actions) {
  Output out;
  Events messages;
  for (const Action& action : actions) {
    absl::Status status;
    if (const auto* accepted = std::get_if<Accepted>(&action)) {
      status = On(*accepted, &messages);
    } else if (const auto* emit = std::get_if<Emit>(&action)) {
      status = On(*emit, &messages, &out.events);
    } else if (const auto* finish = std::get_if<Finish>(&action)) {
      status = On(*finish, &messages);
      if (status.ok() && IsComplete()) out.end = failure_;
    } else if (const auto* refuse = std::get_if<Refuse>(&action)) {
      status = refuse->status;
    }
    if (!status.ok()) out.end = status;
    if (out.end.has_value()) break;
  }
  for (const v1::GenerateEvent& message : messages) {
    out.messages.push_back(message.SerializeAsString());
  }
  return out;
}

absl::Status AnswerTranscript::On(const Accepted& action, Events* out) {
  if (!choices_.empty()) return absl::OkStatus();  // It was parked and goes on.
  if (!envelope_.ParseFromString(action.envelope) || envelope_.num_choices() < 1) {
    return absl::InternalError("the request's envelope cannot be read");
  }
  if (args_.choice >= envelope_.num_choices()) {
    return absl::InvalidArgumentError(
        absl::StrCat("choice must be below ", envelope_.num_choices(), ": ", args_.choice));
  }
  choices_.reserve(static_cast<size_t>(envelope_.num_choices()));
  for (int i = 0; i < envelope_.num_choices(); ++i) choices_.emplace_back(*args_.model, envelope_);
  if (args_.next_index == 0) RETURN_IF_ERROR(CheckPrefix(choices_[0]));

  v1::Started* started = out->emplace_back().mutable_started();
  started->set_request_id(args_.request_id);
  started->set_model(args_.model->name);
  *started->mutable_created() =
      google::protobuf::util::TimeUtil::MicrosecondsToTimestamp(envelope_.created_us());
  started->set_prompt_tokens(static_cast<uint32_t>(action.prompt_tokens));
  started->set_system_fingerprint(args_.fingerprint);
  return absl::OkStatus();
}

absl::Status AnswerTranscript::On(const Emit& action, Events* out, std::vector<Event>* events) {
  CHECK(action.choice >= 0 && action.choice < std::ssize(choices_));
  Choice& choice = choices_[static_cast<size_t>(action.choice)];
  if (action.first_index > choice.next_index && !choice.stop.has_value()) {
    return absl::InternalError(absl::StrCat(
        "tokens ", choice.next_index, " to ", action.first_index, " of the answer are missing"));
  }
  for (size_t i = 0; i < action.tokens.size() && !choice.stop.has_value(); ++i) {
    if (action.first_index + static_cast<int32_t>(i) < choice.next_index) continue;
    RETURN_IF_ERROR(Read(action.choice, &choice, action.tokens[i], out));
    if (!choice.stop.has_value()) continue;
    events->push_back(StopFound{.tenant = args_.tenant,
                                .request_id = args_.request_id,
                                .choice = action.choice,
                                .last_index = choice.next_index - 1});
  }
  return absl::OkStatus();
}

absl::Status AnswerTranscript::Read(int32_t index,
                                    Choice* choice,
                                    const OutputToken& token,
                                    Events* out) {
  const bool is_shown = choice->next_index >= args_.next_index;
  ++choice->next_index;
  choice->hash = HashToken(choice->hash, token.token);
  const std::string text = Text(token, choice);
  if (!is_shown) {
    return choice->next_index == args_.next_index ? CheckPrefix(*choice) : absl::OkStatus();
  }
  ++num_tokens_;
  v1::TokenChunk* chunk = ChunkFor(index, *choice, out);
  chunk->add_token_ids(static_cast<uint32_t>(token.token.value));
  chunk->mutable_text()->append(text);
  if (envelope_.num_top_logprobs() >= 0) SetLogprob(token, chunk->add_logprobs());
  chunk->set_prefix_hash(choice->hash);
  return absl::OkStatus();
}

// The text that `token` completes. A stop token is not part of the text; neither is an id that the
// tokenizer does not know, as in the padding at the end of a vocabulary.
std::string AnswerTranscript::Text(const OutputToken& token, Choice* choice) {
  if (!choice->detokenizer.has_value()) return "";
  const bool is_stop_token = std::binary_search(
      envelope_.stop_tokens().begin(), envelope_.stop_tokens().end(), token.token.value);
  if (is_stop_token || !args_.model->tokenizer->Bytes(token.token).has_value()) return "";
  StopStrings::Result result = choice->stops.Push(choice->detokenizer->Push(token.token).value());
  if (result.stopped) choice->stop = std::move(result.stop);
  return std::move(result.text);
}

v1::TokenChunk* AnswerTranscript::ChunkFor(int32_t index, const Choice& choice, Events* out) {
  if (!out->empty() && out->back().has_chunk() &&
      out->back().choice() == static_cast<uint32_t>(index) &&
      out->back().chunk().token_ids_size() < kMaxTokensPerChunk) {
    return out->back().mutable_chunk();
  }
  v1::GenerateEvent& event = out->emplace_back();
  event.set_choice(static_cast<uint32_t>(index));
  event.mutable_chunk()->set_first_index(static_cast<uint32_t>(choice.next_index - 1));
  return event.mutable_chunk();
}

void AnswerTranscript::SetLogprob(const OutputToken& token, v1::TokenLogprob* out) const {
  const auto set = [this](TokenId id, float logprob, auto* entry) {
    entry->set_token_id(static_cast<uint32_t>(id.value));
    entry->set_logprob(logprob);
    if (args_.model->tokenizer == nullptr) return;
    const auto raw = args_.model->tokenizer->Bytes(id);
    if (raw.has_value()) entry->set_raw(raw->data(), raw->size());
  };
  set(token.token, token.logprob, out);
  for (const TopLogprob& top : token.top) set(top.token, top.logprob, out->add_top());
}

absl::Status AnswerTranscript::CheckPrefix(const Choice& choice) const {
  if (!args_.prefix_hash.has_value() || *args_.prefix_hash == choice.hash) {
    return absl::OkStatus();
  }
  return absl::DataLossError(absl::StrCat("the first ",
                                          args_.next_index,
                                          " tokens that the client has are not those of request `",
                                          args_.request_id,
                                          "`: read it again from index 0"));
}

absl::Status AnswerTranscript::On(const Finish& action, Events* out) {
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
  std::string tail;
  if (choice.detokenizer.has_value() && !choice.stop.has_value()) {
    StopStrings::Result last = choice.stops.Push(choice.detokenizer->Flush());
    tail = std::move(last.text);
    if (last.stopped) {
      choice.stop = std::move(last.stop);
    } else {
      absl::StrAppend(&tail, choice.stops.Flush());
    }
  }
  v1::GenerateEvent& event = out->emplace_back();
  event.set_choice(static_cast<uint32_t>(action.choice));
  v1::Finished* finished = event.mutable_finished();
  Set(action, finished);
  finished->set_text(tail);
  if (choice.stop.has_value()) {
    // The text was complete, whatever the core came to before it heard of it.
    finished->set_reason(v1::Finished::STOP_STRING);
    finished->set_stop_string(*choice.stop);
    finished->clear_stop_token_id();
    finished->mutable_usage()->set_completion_tokens(static_cast<uint32_t>(choice.next_index));
  } else if (failure_.ok()) {
    failure_ = FailureOf(action);
  }
  return absl::OkStatus();
}

bool AnswerTranscript::IsComplete() const {
  if (args_.choice >= 0) return choices_[static_cast<size_t>(args_.choice)].is_finished;
  return std::all_of(
      choices_.begin(), choices_.end(), [](const Choice& choice) { return choice.is_finished; });
}

std::vector<ClientAttached> AnswerTranscript::Resume() const {
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

std::optional<Event> AnswerTranscript::Abandon() const {
  if (envelope_.is_named()) return std::nullopt;
  return CancelAsked{.tenant = args_.tenant, .request_id = args_.request_id};
}

}  // namespace shoal
