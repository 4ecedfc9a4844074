// POST /v1/chat/completions and /v1/responses.
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"

#include "base/prng.h"
#include "base/status_macros.h"
#include "coordinator/api/chat_completions.h"
#include "coordinator/api/errors.h"
#include "coordinator/api/responses.h"
#include "coordinator/api/responses_writer.h"
#include "coordinator/serve/cache_room.h"
#include "coordinator/serve/chat_answer.h"
#include "coordinator/serve/chat_request.h"
#include "coordinator/serve/http_call.h"

namespace shoal {
namespace {

constexpr int64_t kMicrosPerSecond = 1'000'000;

std::string Event(absl::string_view data) {
  return absl::StrCat("data: ", data, "\n\n");
}

// A stream of chunks.
class ChatStreamForm final : public ChatForm {
 public:
  explicit ChatStreamForm(ChatAnswerArgs args) : args_(std::move(args)) {}

  void Begin(const Beginning& beginning) override {
    args_.created = beginning.created_us / kMicrosPerSecond;
    for (int32_t i = 0; i < beginning.num_choices; ++i) {
      writers_.emplace_back(&args_, i, CallIds(beginning.id_seed, i));
      chunks_.push_back(writers_.back().Begin());
    }
  }

  void Write(const Mark& mark, std::span<const ItemEvent> events, bool) override {
    writers_[static_cast<size_t>(mark.choice)].Write(events, &chunks_);
  }

  void End(const Mark& mark, const Ending& ending) override {
    chunks_.push_back(writers_[static_cast<size_t>(mark.choice)].End(ending.end));
  }

  void Complete(const ApiUsage& usage) override {
    if (args_.includes_usage) chunks_.push_back(ChatUsageChunk(args_, usage));
    chunks_.push_back("[DONE]");
  }

  void Fail(const absl::Status& status) override {
    chunks_.push_back(ErrorBody(ApiErrorOf(status)));
  }

  void Flush(std::deque<std::string>* messages) override {
    if (chunks_.empty()) return;
    std::string message;
    for (const std::string& chunk : chunks_) absl::StrAppend(&message, Event(chunk));
    chunks_.clear();
    messages->push_back(std::move(message));
  }

 private:
  ChatAnswerArgs args_;
  std::vector<ChatStreamWriter> writers_;
  std::vector<std::string> chunks_;
};

// One object at the end.
class ChatObjectForm final : public ChatForm {
 public:
  explicit ChatObjectForm(ChatAnswerArgs args) : args_(std::move(args)) {}

  void Begin(const Beginning& beginning) override {
    args_.created = beginning.created_us / kMicrosPerSecond;
    for (int32_t i = 0; i < beginning.num_choices; ++i) {
      choices_.emplace_back(CallIds(beginning.id_seed, i));
    }
  }

  void Write(const Mark& mark, std::span<const ItemEvent> events, bool) override {
    choices_[static_cast<size_t>(mark.choice)].Write(events);
  }

  void End(const Mark& mark, const Ending& ending) override {
    choices_[static_cast<size_t>(mark.choice)].End(ending.end);
  }

  void Complete(const ApiUsage& usage) override {
    body_ = ChatCompletionBody(args_, choices_, usage);
  }

  void Fail(const absl::Status&) override {}  // The reader says it with a status

  void Flush(std::deque<std::string>* messages) override {
    if (!body_.empty()) messages->push_back(std::exchange(body_, ""));
  }

 private:
  ChatAnswerArgs args_;
  std::vector<ChatChoice> choices_;
  std::string body_;
};

// Both forms of /v1/responses, which has one choice.
class ResponsesForm final : public ChatForm {
 public:
  ResponsesForm(AnswerForm form, ResponsesAnswerArgs args) : form_(form), args_(std::move(args)) {}

  void Begin(const Beginning& beginning) override {
    args_.created_at = beginning.created_us / kMicrosPerSecond;
    writer_.emplace(std::move(args_));
    writer_->Begin(&events_);
  }

  void Write(const Mark&, std::span<const ItemEvent> events, bool) override {
    writer_->Write(events, &events_);
  }

  void End(const Mark&, const Ending& ending) override { end_ = ending.end; }

  void Complete(const ApiUsage& usage) override {
    writer_->End(end_, usage, &events_);
    is_complete_ = true;
  }

  void Fail(const absl::Status& status) override { writer_->Fail(ApiErrorOf(status), &events_); }

  void Flush(std::deque<std::string>* messages) override {
    if (form_ == AnswerForm::kWhole) {
      events_.clear();
      if (std::exchange(is_complete_, false)) messages->push_back(writer_->Body());
      return;
    }
    if (events_.empty()) return;
    std::string message;
    for (const ResponsesEvent& event : events_) {
      absl::StrAppend(&message, "event: ", event.type, "\n", Event(event.data));
    }
    events_.clear();
    messages->push_back(std::move(message));
  }

 private:
  const AnswerForm form_;
  ResponsesAnswerArgs args_;
  std::optional<ResponsesWriter> writer_;
  std::vector<ResponsesEvent> events_;
  AnswerEnd end_ = AnswerEnd::kLength;
  bool is_complete_ = false;
};

// What chat and responses have in common: from what was asked to a started request.
absl::Status StartChat(const HttpCall& call,
                       const char* method,
                       const ApiRequest& asked,
                       uint64_t entropy,
                       std::unique_ptr<ChatForm> form) {
  ServiceContext& service = *call.service;
  ASSIGN_OR_RETURN(Request request,
                   MakeChatRequest(asked, call.RequestedId(), service.model, absl::Now(), entropy));
  request.tenant = call.tenant;
  if (!asked.settings.max_tokens.has_value()) {
    ASSIGN_OR_RETURN(const FleetStatus fleet, service.loop->Status());
    FitToCache(fleet, &request);
  }
  auto transcript =
      std::make_unique<ChatTranscript>(TokenTranscript::Args{.model = &service.model,
                                                             .fingerprint = service.fingerprint,
                                                             .tenant = request.tenant,
                                                             .request_id = request.id,
                                                             .prefix_hash = std::nullopt},
                                       std::move(form),
                                       &service.metrics);
  call.Start(method,
             asked.is_stream ? AnswerForm::kEvents : AnswerForm::kWhole,
             std::move(request),
             std::move(transcript));
  return absl::OkStatus();
}

absl::Status Chat(const HttpCall& call) {
  ServiceContext& service = *call.service;
  ASSIGN_OR_RETURN(const ApiRequest asked,
                   ParseChatRequest(call.request.body, DateOf(absl::Now())));
  const uint64_t entropy = service.NextEntropy();
  ChatAnswerArgs args{
      .id = absl::StrCat("chatcmpl-", RandomName(entropy, NamePurpose::kAnswer)),
      .model = asked.model.empty() ? service.model.name : asked.model,
      .system_fingerprint = service.fingerprint,
      .includes_usage = asked.includes_usage,
      .includes_reasoning = asked.includes_reasoning,
      .logprobs = asked.settings.num_top_logprobs ? service.model.tokenizer : nullptr};
  std::unique_ptr<ChatForm> form;
  if (asked.is_stream) {
    form = std::make_unique<ChatStreamForm>(std::move(args));
  } else {
    form = std::make_unique<ChatObjectForm>(std::move(args));
  }
  return StartChat(call, "chat.completions", asked, entropy, std::move(form));
}

absl::Status Responses(const HttpCall& call) {
  ServiceContext& service = *call.service;
  ASSIGN_OR_RETURN(ResponsesRequest parsed,
                   ParseResponsesRequest(call.request.body, DateOf(absl::Now())));
  const ApiRequest& asked = parsed.request;
  const uint64_t entropy = service.NextEntropy();
  auto form = std::make_unique<ResponsesForm>(
      asked.is_stream ? AnswerForm::kEvents : AnswerForm::kWhole,
      ResponsesAnswerArgs{
          .id = absl::StrCat("resp_", RandomName(entropy, NamePurpose::kAnswer)),
          .model = asked.model.empty() ? service.model.name : asked.model,
          .echo = std::move(parsed.echo),
          .item_ids = RandomName(entropy, NamePurpose::kItems),
          .logprobs = asked.settings.num_top_logprobs ? service.model.tokenizer : nullptr});
  return StartChat(call, "responses", asked, entropy, std::move(form));
}

}  // namespace

void HandleChatCompletions(const HttpCall& call) {
  if (const absl::Status status = Chat(call); !status.ok()) call.Fail(status);
}

void HandleResponses(const HttpCall& call) {
  if (const absl::Status status = Responses(call); !status.ok()) call.Fail(status);
}

}  // namespace shoal
