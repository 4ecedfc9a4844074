#include "coordinator/serve/chat_request.h"

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"

#include "base/check.h"
#include "base/status_macros.h"
#include "coordinator/api/chat_completions.h"
#include "coordinator/serve/http_call.h"
#include "coordinator/serve/request_constraint.h"
#include "coordinator/text/harmony_writer.h"

namespace shoal {
namespace {

// The ids that end an answer, whatever generation_config.json says of them: a server that does not
// stop at <|call|> goes on talking to itself.
void AddStopTokens(const HarmonyTokens& tokens, v1::Limits* out) {
  for (const TokenId id : {tokens.end_of_answer, tokens.call, tokens.end_of_text}) {
    out->add_stop_token_ids(static_cast<uint32_t>(id.value));
  }
}

void FillChat(const ApiRequest& asked, uint64_t entropy, fleet::v1::Chat* chat) {
  // Sorted, because equal requests have equal envelopes.
  std::vector<std::string> functions(asked.functions.begin(), asked.functions.end());
  std::sort(functions.begin(), functions.end());
  for (std::string& name : functions) chat->add_functions(std::move(name));
  for (const std::string& stop : asked.settings.stop) chat->add_stop(stop);
  chat->set_id_seed(entropy);
  chat->set_hides_reasoning(!asked.includes_reasoning);
}

}  // namespace

std::string DateOf(absl::Time now) {
  return absl::FormatTime("%Y-%m-%d", now, absl::UTCTimeZone());
}

absl::StatusOr<std::vector<TokenId>> RenderPrompt(const Conversation& conversation,
                                                  const ServedModel& model) {
  RETURN_IF_ERROR(NeedTokenizer(model, "a chat").status());
  if (model.harmony == nullptr) {
    return absl::FailedPreconditionError(
        "this model's tokenizer has no harmony markers: it completes texts, but does not chat");
  }
  const int32_t context = model.config.max_positions;
  RenderOptions options;
  options.max_text_bytes = static_cast<size_t>(kMaxPromptBytesPerPosition * context);
  const std::vector<HarmonyMessage> messages = MessagesOf(conversation);
  ASSIGN_OR_RETURN(std::vector<TokenId> prompt, RenderHarmony(messages, *model.harmony, options));
  if (std::ssize(prompt) < context) return prompt;
  return absl::OutOfRangeError(absl::StrCat("the messages have ",
                                            prompt.size(),
                                            " tokens; this model's context of ",
                                            context,
                                            " leaves room for at most ",
                                            context - 1));
}

absl::StatusOr<std::vector<TokenId>> ChatPrompt(absl::string_view body, const ServedModel& model) {
  ASSIGN_OR_RETURN(const ApiRequest asked, ParseChatRequest(body, DateOf(absl::Now())));
  RETURN_IF_ERROR(CheckModel(asked.model, model));
  return RenderPrompt(asked.conversation, model);
}

void SetSettings(const GenerationSettings& settings, v1::GenerateRequest* out) {
  v1::SamplingParams* const sampling = out->mutable_sampling();
  const auto set = [](const std::optional<double>& value) { return static_cast<float>(*value); };
  if (settings.temperature) sampling->set_temperature(set(settings.temperature));
  if (settings.top_p) sampling->set_top_p(set(settings.top_p));
  if (settings.min_p) sampling->set_min_p(set(settings.min_p));
  if (settings.frequency_penalty) {
    sampling->set_frequency_penalty(set(settings.frequency_penalty));
  }
  if (settings.presence_penalty) sampling->set_presence_penalty(set(settings.presence_penalty));
  if (settings.repetition_penalty) {
    sampling->set_repetition_penalty(set(settings.repetition_penalty));
  }
  if (settings.top_k) {
    sampling->set_top_k(static_cast<int32_t>(std::min<int64_t>(*settings.top_k, 0x7fffffff)));
  }
  if (settings.seed) sampling->set_seed(*settings.seed);
  for (const auto& [id, bias] : settings.logit_bias) {
    (*sampling->mutable_logit_bias())[static_cast<uint32_t>(id.value)] = static_cast<float>(bias);
  }
  sampling->set_n(static_cast<uint32_t>(settings.num_choices));
  if (settings.max_tokens) {
    out->mutable_limits()->set_max_tokens(
        static_cast<uint32_t>(std::min<int64_t>(*settings.max_tokens, 0x7fffffff)));
  }
  if (settings.num_top_logprobs) {
    out->mutable_output()->set_logprobs(static_cast<uint32_t>(*settings.num_top_logprobs));
  }
}

absl::StatusOr<Request> MakeChatRequest(const ApiRequest& asked,
                                        absl::string_view request_id,
                                        const ServedModel& model,
                                        absl::Time now,
                                        uint64_t entropy) {
  RETURN_IF_ERROR(CheckModel(asked.model, model));
  ASSIGN_OR_RETURN(const std::vector<TokenId> prompt, RenderPrompt(asked.conversation, model));
  v1::GenerateRequest wire;
  wire.set_request_id(std::string(request_id));
  for (const TokenId id : prompt) {
    wire.mutable_tokens()->add_ids(static_cast<uint32_t>(id.value));
  }
  SetSettings(asked.settings, &wire);
  AddStopTokens(*model.harmony, wire.mutable_limits());
  ASSIGN_OR_RETURN(Request request, ParseRequest(wire, model, now, entropy));
  fleet::v1::Envelope envelope;
  CHECK(envelope.ParseFromString(request.envelope));
  FillChat(asked, entropy, envelope.mutable_chat());
  RETURN_IF_ERROR(ConstrainChat(asked, model, &request, &envelope));
  request.envelope = envelope.SerializeAsString();
  return request;
}

}  // namespace shoal
