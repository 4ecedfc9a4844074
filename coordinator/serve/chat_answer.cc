#include "coordinator/serve/chat_answer.h"

#include <algorithm>
#include <iterator>
#include <utility>
#include <variant>

#include "absl/strings/str_cat.h"
#include "absl/strings/string_view.h"

#include "base/prng.h"

namespace shoal {
namespace {

std::string Name(uint64_t seed, uint64_t purpose) {
  constexpr absl::string_view kLetters =
      "0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ";
  Prng prng(Mix64(seed) ^ Mix64(purpose + 1));
  std::string name;
  for (int i = 0; i < 24; ++i) name.push_back(kLetters[prng.Below(kLetters.size())]);
  return name;
}

// Appends, joining a delta to the one before it.
void Join(std::vector<ItemEvent> events, std::vector<ItemEvent>* out) {
  for (ItemEvent& event : events) {
    auto* const delta = std::get_if<ItemDelta>(&event);
    auto* const last = out->empty() ? nullptr : std::get_if<ItemDelta>(&out->back());
    if (delta == nullptr || last == nullptr) {
      out->push_back(std::move(event));
      continue;
    }
    last->text += delta->text;
    last->tokens.insert(last->tokens.end(),
                        std::make_move_iterator(delta->tokens.begin()),
                        std::make_move_iterator(delta->tokens.end()));
  }
}

}  // namespace

std::string RandomName(uint64_t seed, NamePurpose purpose) {
  return Name(seed, static_cast<uint64_t>(purpose));
}

std::string CallIds(uint64_t seed, int32_t choice) {
  return absl::StrCat("call_", Name(seed, static_cast<uint64_t>(choice)));
}

absl::Status ChatTranscript::OnStarted(const Accepted& action) {
  const fleet::v1::Chat& chat = envelope().chat();
  if (!envelope().has_chat() || args().model->harmony == nullptr) {
    return absl::InvalidArgumentError("this request is no chat: read it with Attach");
  }
  functions_.insert(chat.functions().begin(), chat.functions().end());
  const std::vector<std::string> stop(chat.stop().begin(), chat.stop().end());
  for (int i = 0; i < envelope().num_choices(); ++i) {
    choices_.emplace_back(ItemReader(args().model->harmony, &functions_, stop));
    choices_.back().mark.choice = i;
  }
  usage_.prompt_tokens = action.prompt_tokens;
  form_->Begin({.num_choices = envelope().num_choices(),
                .prompt_tokens = action.prompt_tokens,
                .created_us = envelope().created_us(),
                .id_seed = chat.id_seed(),
                .has_logprobs = envelope().num_top_logprobs() >= 0,
                .shows_reasoning = !chat.hides_reasoning()});
  return absl::OkStatus();
}

bool ChatTranscript::OnToken(const Place& place, const OutputToken& token, bool is_shown) {
  Choice& choice = choices_[static_cast<size_t>(place.choice)];
  std::vector<ItemEvent> events;
  choice.reader.Push({.id = token.token, .logprob = token.logprob, .top = token.top}, &events);
  Add(place, std::move(events), is_shown);
  return choice.reader.found_stop().has_value() || choice.reader.has_unanswered_call();
}

void ChatTranscript::Add(const Place& place, std::vector<ItemEvent> events, bool is_shown) {
  Choice& choice = choices_[static_cast<size_t>(place.choice)];
  if (choice.is_shown != is_shown) WriteOut(&choice);
  choice.is_shown = is_shown;
  choice.mark.num_tokens = place.num_tokens;
  choice.mark.prefix_hash = place.hash;
  for (const ItemEvent& event : events) {
    const auto* const repair = std::get_if<Repair>(&event);
    if (repair != nullptr && metrics_ != nullptr) metrics_->OnRepair(*repair);
  }
  Join(std::move(events), &choice.events);
}

void ChatTranscript::WriteOut(Choice* choice) {
  if (choice->events.empty()) return;
  form_->Write(choice->mark, choice->events, choice->is_shown);
  choice->events.clear();
}

bool ChatTranscript::OnFinished(const Place& place, const Finish& action, bool is_stopped) {
  Choice& choice = choices_[static_cast<size_t>(place.choice)];
  std::vector<ItemEvent> events;
  choice.reader.Finish(&events);
  Add(place, std::move(events), /*is_shown=*/true);
  WriteOut(&choice);
  const bool is_complete = is_stopped || choice.reader.found_stop().has_value();
  usage_.cached_tokens = std::max(usage_.cached_tokens, action.usage.cached_tokens);
  usage_.completion_tokens += place.num_tokens;
  usage_.reasoning_tokens += choice.reader.num_reasoning_tokens();
  ChatForm::Ending ending{.has_called = choice.reader.has_called(),
                          .stop = choice.reader.found_stop(),
                          .stop_token = std::nullopt,
                          .reasoning_tokens = choice.reader.num_reasoning_tokens(),
                          .finish = &action};
  if (is_complete) {
    ending.end = AnswerEnd::kStopString;
  } else if (action.reason == FinishReason::kStop) {
    ending.end = AnswerEnd::kStopToken;
    ending.stop_token = action.stop_token;
  }
  if (is_complete || FailureOf(action).ok()) form_->End(choice.mark, ending);
  return is_complete;
}

void ChatTranscript::OnEnd(const absl::Status& status) {
  for (Choice& choice : choices_) WriteOut(&choice);
  if (status.ok()) {
    form_->Complete(usage_);
  } else {
    form_->Fail(status);
  }
}

void ChatTranscript::Flush(std::deque<std::string>* messages) {
  for (Choice& choice : choices_) WriteOut(&choice);
  form_->Flush(messages);
}

}  // namespace shoal
