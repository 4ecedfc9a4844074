#include "coordinator/serve/answer.h"

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "google/protobuf/util/time_util.h"

namespace shoal {
namespace {

// Bounds a message: with 20 alternatives a token takes about 1 KiB.
constexpr int kMaxTokensPerChunk = 1024;

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

}  // namespace

PlainText::PlainText(const ServedModel& model, const fleet::v1::Envelope& envelope)
    : tokenizer_(model.tokenizer),
      stop_tokens_(envelope.stop_tokens().begin(), envelope.stop_tokens().end()),
      stops_(std::vector<std::string>(envelope.stop().begin(), envelope.stop().end())) {
  if (tokenizer_ != nullptr) detokenizer_.emplace(tokenizer_);
}

std::string PlainText::Push(TokenId token) {
  if (!detokenizer_.has_value()) return "";
  const bool is_stop_token =
      std::binary_search(stop_tokens_.begin(), stop_tokens_.end(), token.value);
  if (is_stop_token || !tokenizer_->Bytes(token).has_value()) return "";
  StopStrings::Result result = stops_.Push(detokenizer_->Push(token).value());
  if (result.stopped) stop_ = std::move(result.stop);
  return std::move(result.text);
}

std::string PlainText::Flush() {
  if (!detokenizer_.has_value() || stop_.has_value()) return "";
  StopStrings::Result last = stops_.Push(detokenizer_->Flush());
  if (last.stopped) {
    stop_ = std::move(last.stop);
  } else {
    absl::StrAppend(&last.text, stops_.Flush());
  }
  return std::move(last.text);
}

void SetLogprob(const OutputToken& token, const Tokenizer* tokenizer, v1::TokenLogprob* out) {
  const auto set = [tokenizer](TokenId id, float logprob, auto* entry) {
    entry->set_token_id(static_cast<uint32_t>(id.value));
    entry->set_logprob(logprob);
    if (tokenizer == nullptr) return;
    const auto raw = tokenizer->Bytes(id);
    if (raw.has_value()) entry->set_raw(raw->data(), raw->size());
  };
  set(token.token, token.logprob, out);
  for (const TopLogprob& top : token.top) set(top.token, top.logprob, out->add_top());
}

absl::Status AnswerTranscript::OnStarted(const Accepted& action) {
  for (int i = 0; i < envelope().num_choices(); ++i) {
    texts_.emplace_back(*args().model, envelope());
  }
  v1::Started* const started = events_.emplace_back().mutable_started();
  started->set_request_id(args().request_id);
  started->set_model(args().model->name);
  *started->mutable_created() =
      google::protobuf::util::TimeUtil::MicrosecondsToTimestamp(envelope().created_us());
  started->set_prompt_tokens(static_cast<uint32_t>(action.prompt_tokens));
  started->set_system_fingerprint(args().fingerprint);
  return absl::OkStatus();
}

bool AnswerTranscript::OnToken(const Place& place, const OutputToken& token, bool is_shown) {
  PlainText& text = texts_[static_cast<size_t>(place.choice)];
  const std::string piece = text.Push(token.token);
  if (is_shown) {
    v1::TokenChunk* const chunk = ChunkFor(place);
    chunk->add_token_ids(static_cast<uint32_t>(token.token.value));
    chunk->mutable_text()->append(piece);
    if (envelope().num_top_logprobs() >= 0) {
      SetLogprob(token, args().model->tokenizer, chunk->add_logprobs());
    }
    chunk->set_prefix_hash(place.hash);
  }
  return text.stop().has_value();
}

v1::TokenChunk* AnswerTranscript::ChunkFor(const Place& place) {
  const auto choice = static_cast<uint32_t>(place.choice);
  if (!events_.empty() && events_.back().has_chunk() && events_.back().choice() == choice &&
      events_.back().chunk().token_ids_size() < kMaxTokensPerChunk) {
    return events_.back().mutable_chunk();
  }
  v1::GenerateEvent& event = events_.emplace_back();
  event.set_choice(choice);
  event.mutable_chunk()->set_first_index(static_cast<uint32_t>(place.num_tokens - 1));
  return event.mutable_chunk();
}

bool AnswerTranscript::OnFinished(const Place& place, const Finish& action, bool is_stopped) {
  PlainText& text = texts_[static_cast<size_t>(place.choice)];
  v1::GenerateEvent& event = events_.emplace_back();
  event.set_choice(static_cast<uint32_t>(place.choice));
  v1::Finished* const finished = event.mutable_finished();
  finished->set_text(text.Flush());
  finished->set_reason(ToProto(action.reason));
  SetUsage(action.usage, finished->mutable_usage());
  SetTimings(action.timings, finished->mutable_timings());
  if (!is_stopped && !text.stop().has_value()) {
    if (action.stop_token.has_value()) {
      finished->set_stop_token_id(static_cast<uint32_t>(action.stop_token->value));
    }
    return false;
  }
  finished->set_reason(v1::Finished::STOP_STRING);
  finished->set_stop_string(*text.stop());
  finished->mutable_usage()->set_completion_tokens(static_cast<uint32_t>(place.num_tokens));
  return true;
}

void AnswerTranscript::Flush(std::deque<std::string>* messages) {
  for (const v1::GenerateEvent& event : events_) messages->push_back(event.SerializeAsString());
  events_.clear();
}

}  // namespace shoal
