// POST /v1/completions: text or ids in, text out, nothing between.
#include <algorithm>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "nlohmann/json.hpp"

#include "base/status_macros.h"
#include "coordinator/api/json_fields.h"
#include "coordinator/api/request_fields.h"
#include "coordinator/serve/answer.h"
#include "coordinator/serve/chat_request.h"
#include "coordinator/serve/http_call.h"
#include "coordinator/text/json_text.h"

namespace shoal {
namespace {

using nlohmann::ordered_json;

constexpr int64_t kDefaultMaxTokens = 16;  // OpenAI's
constexpr int64_t kMaxLogprobs = 5;

// What the answer's shape depends on.
struct CompletionShape {
  bool is_stream = false;
  bool includes_usage = false;
  bool has_logprobs = false;
  std::string echo;  // The prompt, if it is to be repeated
};

std::string Dump(const ordered_json& json) {
  return json.dump(-1, ' ', false, ordered_json::error_handler_t::replace);
}

// The old form: lists in parallel, one element a token.
class LogprobLists {
 public:
  void Add(const OutputToken& token, size_t text_offset, const Tokenizer& tokenizer) {
    const auto spelled = [&tokenizer](TokenId id) {
      return std::string(tokenizer.Bytes(id).value_or(""));
    };
    tokens_.push_back(spelled(token.token));
    logprobs_.push_back(token.logprob);
    offsets_.push_back(text_offset);
    ordered_json top = ordered_json::object();
    for (const TopLogprob& other : token.top) top[spelled(other.token)] = other.logprob;
    tops_.push_back(std::move(top));
  }

  ordered_json Take() {
    ordered_json out = {{"tokens", std::exchange(tokens_, ordered_json::array())},
                        {"token_logprobs", std::exchange(logprobs_, ordered_json::array())},
                        {"top_logprobs", std::exchange(tops_, ordered_json::array())},
                        {"text_offset", std::exchange(offsets_, ordered_json::array())}};
    return out;
  }

  bool is_empty() const { return tokens_.empty(); }

 private:
  ordered_json tokens_ = ordered_json::array();
  ordered_json logprobs_ = ordered_json::array();
  ordered_json tops_ = ordered_json::array();
  ordered_json offsets_ = ordered_json::array();
};

class CompletionTranscript final : public TokenTranscript {
 public:
  CompletionTranscript(Args args, CompletionShape shape)
      : TokenTranscript(std::move(args)), shape_(std::move(shape)) {}

 protected:
  absl::Status OnStarted(const Accepted& action) override {
    for (int i = 0; i < envelope().num_choices(); ++i) {
      choices_.emplace_back(*args().model, envelope()).text = shape_.echo;
    }
    usage_.prompt_tokens = action.prompt_tokens;
    return absl::OkStatus();
  }

  bool OnToken(const Place& place, const OutputToken& token, bool) override {
    Choice& choice = choices_[static_cast<size_t>(place.choice)];
    if (shape_.has_logprobs) {
      choice.logprobs.Add(token, choice.num_shown + choice.text.size(), *args().model->tokenizer);
    }
    choice.text += choice.plain.Push(token.token);
    return choice.plain.stop().has_value();
  }

  bool OnFinished(const Place& place, const Finish& action, bool is_stopped) override {
    Choice& choice = choices_[static_cast<size_t>(place.choice)];
    choice.text += choice.plain.Flush();
    const bool is_complete = is_stopped || choice.plain.stop().has_value();
    choice.finish_reason =
        !is_complete && action.reason == FinishReason::kLength ? "length" : "stop";
    usage_.cached_tokens = std::max(usage_.cached_tokens, action.usage.cached_tokens);
    usage_.completion_tokens += place.num_tokens;
    return is_complete;
  }

  void OnEnd(const absl::Status& status) override {
    if (!shape_.is_stream) {
      if (!status.ok()) return;  // The reader says it with a status
      ordered_json body = Frame();
      for (size_t i = 0; i < choices_.size(); ++i) body["choices"].push_back(TakeChoice(i));
      body["usage"] = UsageJson();
      message_ = Dump(body);
      return;
    }
    TellChoices();
    if (!status.ok()) {
      message_ += ErrorEvent(status);
      return;
    }
    if (shape_.includes_usage) {
      ordered_json chunk = Frame();
      chunk["usage"] = UsageJson();
      absl::StrAppend(&message_, "data: ", Dump(chunk), "\n\n");
    }
    message_ += "data: [DONE]\n\n";
  }

  void Flush(std::deque<std::string>* messages) override {
    if (shape_.is_stream) TellChoices();
    if (!message_.empty()) messages->push_back(std::exchange(message_, ""));
  }

 private:
  struct Choice {
    Choice(const ServedModel& model, const fleet::v1::Envelope& envelope)
        : plain(model, envelope) {}

    PlainText plain;
    std::string text;  // Not told yet
    LogprobLists logprobs;
    size_t num_shown = 0;  // Bytes told
    std::string finish_reason;
    bool is_told = false;  // The finish reason
  };

  void TellChoices() {
    for (size_t i = 0; i < choices_.size(); ++i) {
      Choice& choice = choices_[i];
      if (choice.text.empty() && choice.logprobs.is_empty() && choice.finish_reason.empty()) {
        continue;
      }
      if (choice.is_told) continue;
      choice.is_told = !choice.finish_reason.empty();
      ordered_json chunk = Frame();
      chunk["choices"].push_back(TakeChoice(i));
      if (shape_.includes_usage) chunk["usage"] = nullptr;
      absl::StrAppend(&message_, "data: ", Dump(chunk), "\n\n");
    }
  }

  ordered_json Frame() const {
    return {{"id", absl::StrCat("cmpl-", args().request_id)},
            {"object", "text_completion"},
            {"created", envelope().created_us() / 1'000'000},
            {"model", args().model->name},
            {"choices", ordered_json::array()},
            {"system_fingerprint", args().fingerprint}};
  }

  ordered_json TakeChoice(size_t index) {
    Choice& choice = choices_[index];
    choice.num_shown += choice.text.size();
    return {{"text", std::exchange(choice.text, "")},
            {"index", index},
            {"logprobs", shape_.has_logprobs ? choice.logprobs.Take() : ordered_json(nullptr)},
            {"finish_reason",
             choice.finish_reason.empty() ? ordered_json(nullptr)
                                          : ordered_json(choice.finish_reason)}};
  }

  ordered_json UsageJson() const {
    return {{"prompt_tokens", usage_.prompt_tokens},
            {"completion_tokens", usage_.completion_tokens},
            {"total_tokens", usage_.prompt_tokens + usage_.completion_tokens},
            {"prompt_tokens_details", {{"cached_tokens", usage_.cached_tokens}}}};
  }

  const CompletionShape shape_;
  std::string message_;  // Ready, not flushed
  std::vector<Choice> choices_;
  Usage usage_;
};

absl::Status ReadPrompt(const JsonFields& body, v1::GenerateRequest* out, std::string* text) {
  const ordered_json* prompt = body.Find("prompt");
  if (prompt != nullptr && prompt->is_array() && prompt->size() == 1 &&
      !prompt->front().is_number()) {
    prompt = &prompt->front();
  }
  if (prompt != nullptr && prompt->is_string()) {
    *text = prompt->get<std::string>();
    out->set_text(*text);
    return absl::OkStatus();
  }
  const auto is_id = [](const ordered_json& id) {
    return id.is_number_unsigned() && id.get<uint64_t>() <= 0x7fffffffu;
  };
  if (prompt != nullptr && prompt->is_array() &&
      std::all_of(prompt->begin(), prompt->end(), is_id)) {
    v1::TokenIds* const tokens = out->mutable_tokens();
    for (const ordered_json& id : *prompt) tokens->add_ids(id.get<uint32_t>());
    return absl::OkStatus();
  }
  return body.Bad("prompt", "a text or a list of token ids; send several prompts one by one");
}

struct ParsedCompletion {
  v1::GenerateRequest wire;
  CompletionShape shape;
};

absl::StatusOr<ParsedCompletion> ParseCompletion(const ordered_json& json,
                                                 const ServedModel& model) {
  ParsedCompletion out;
  ASSIGN_OR_RETURN(const JsonFields body, JsonFields::Of(json, ""));
  RETURN_IF_ERROR(RefuseUnsupported(
      body, {{"suffix", "there is no text to insert into"}, {"best_of", "use n"}}));
  ASSIGN_OR_RETURN(const std::optional<std::string> name, body.Text("model"));
  RETURN_IF_ERROR(CheckModel(name.value_or(""), model));
  RETURN_IF_ERROR(NeedTokenizer(model, "/v1/completions").status());
  std::string prompt;
  RETURN_IF_ERROR(ReadPrompt(body, &out.wire, &prompt));
  ASSIGN_OR_RETURN(const std::optional<bool> parse_special, body.Flag("parse_special"));
  out.wire.set_parse_special(parse_special.value_or(false));

  GenerationSettings settings;
  RETURN_IF_ERROR(ReadSampling(body, &settings));
  RETURN_IF_ERROR(ReadStop(body, &settings));
  ASSIGN_OR_RETURN(settings.max_tokens, ReadTokenLimit(body, "max_tokens"));
  if (!settings.max_tokens.has_value()) settings.max_tokens = kDefaultMaxTokens;
  ASSIGN_OR_RETURN(const std::optional<int64_t> logprobs, body.Integer("logprobs"));
  if (logprobs.has_value()) {
    if (*logprobs < 0 || *logprobs > kMaxLogprobs) {
      return body.Bad("logprobs", absl::StrCat("between 0 and ", kMaxLogprobs));
    }
    settings.num_top_logprobs = static_cast<int32_t>(*logprobs);
    out.shape.has_logprobs = true;
  }
  ASSIGN_OR_RETURN(const std::optional<int64_t> n, body.Integer("n"));
  if (n.has_value() && (*n < 1 || *n > kMaxChoices)) {
    return body.Bad("n", absl::StrCat("between 1 and ", kMaxChoices));
  }
  settings.num_choices = static_cast<int32_t>(n.value_or(1));
  SetSettings(settings, &out.wire);
  for (const std::string& stop : settings.stop) out.wire.mutable_limits()->add_stop(stop);
  ASSIGN_OR_RETURN(const std::optional<bool> ignore_eos, body.Flag("ignore_eos"));
  out.wire.mutable_limits()->set_ignore_eos(ignore_eos.value_or(false));

  ASSIGN_OR_RETURN(const std::optional<bool> stream, body.Flag("stream"));
  out.shape.is_stream = stream.value_or(false);
  ASSIGN_OR_RETURN(const JsonFields options, body.Object("stream_options"));
  ASSIGN_OR_RETURN(const std::optional<bool> usage, options.Flag("include_usage"));
  out.shape.includes_usage = usage.value_or(false);
  ASSIGN_OR_RETURN(const std::optional<bool> echo, body.Flag("echo"));
  if (echo.value_or(false)) out.shape.echo = std::move(prompt);
  return out;
}

absl::Status Complete(const HttpCall& call) {
  ServiceContext& service = *call.service;
  ASSIGN_OR_RETURN(const ordered_json json, ParseJson(call.request.body));
  ASSIGN_OR_RETURN(ParsedCompletion parsed, ParseCompletion(json, service.model));
  parsed.wire.set_request_id(call.RequestedId());
  ASSIGN_OR_RETURN(Request request,
                   ParseRequest(parsed.wire, service.model, absl::Now(), service.NextEntropy()));
  request.tenant = call.tenant;
  const AnswerForm form = parsed.shape.is_stream ? AnswerForm::kEvents : AnswerForm::kWhole;
  auto transcript = std::make_unique<CompletionTranscript>(
      TokenTranscript::Args{.model = &service.model,
                            .fingerprint = service.fingerprint,
                            .tenant = request.tenant,
                            .request_id = request.id,
                            .prefix_hash = std::nullopt},
      std::move(parsed.shape));
  call.Start("completions", form, std::move(request), std::move(transcript));
  return absl::OkStatus();
}

}  // namespace

void HandleCompletions(const HttpCall& call) {
  if (const absl::Status status = Complete(call); !status.ok()) call.Fail(status);
}

}  // namespace shoal
