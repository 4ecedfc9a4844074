#include "coordinator/serve/grpc_chat.h"

#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "google/protobuf/util/time_util.h"
#include "nlohmann/json.hpp"

#include "base/status_macros.h"
#include "coordinator/api/chat_completions.h"
#include "coordinator/api/errors.h"
#include "coordinator/serve/answer.h"
#include "coordinator/serve/chat_request.h"
#include "coordinator/text/json_text.h"

namespace shoal {
namespace {

using nlohmann::ordered_json;

// ---- What is asked

const char* RoleWord(v1::Role role) {
  switch (role) {
    case v1::ROLE_SYSTEM:
      return "system";
    case v1::ROLE_DEVELOPER:
      return "developer";
    case v1::ROLE_USER:
      return "user";
    case v1::ROLE_ASSISTANT:
      return "assistant";
    case v1::ROLE_TOOL:
      return "tool";
    default:
      return "unspecified";  // Refused by name where roles are judged
  }
}

ordered_json MessageJson(const v1::Message& message) {
  ordered_json json = {{"role", RoleWord(message.role())}, {"content", message.text()}};
  if (!message.reasoning().empty()) json["reasoning"] = message.reasoning();
  if (!message.tool_call_id().empty()) json["tool_call_id"] = message.tool_call_id();
  if (message.tool_calls().empty()) return json;
  if (message.text().empty()) json["content"] = nullptr;
  for (const v1::ToolCall& call : message.tool_calls()) {
    json["tool_calls"].push_back(
        {{"id", call.id()},
         {"type", "function"},
         {"function", {{"name", call.name()}, {"arguments", call.arguments_json()}}}});
  }
  return json;
}

absl::StatusOr<ordered_json> SchemaJson(const std::string& text, absl::string_view field) {
  absl::StatusOr<ordered_json> json = ParseJson(text);
  if (json.ok()) return json;
  return BadField(field, absl::StrCat(field, ": ", json.status().message()));
}

absl::StatusOr<ordered_json> ToolJson(const v1::FunctionTool& tool, int index) {
  ordered_json function = {{"name", tool.name()}};
  if (!tool.description().empty()) function["description"] = tool.description();
  if (!tool.parameters_json().empty()) {
    ASSIGN_OR_RETURN(
        function["parameters"],
        SchemaJson(tool.parameters_json(), absl::StrCat("tools[", index, "].parameters_json")));
  }
  if (tool.strict()) function["strict"] = true;
  return ordered_json{{"type", "function"}, {"function", std::move(function)}};
}

void AddToolChoice(const v1::ToolChoice& choice, ordered_json* out) {
  if (choice.has_function()) {
    (*out)["tool_choice"] = {{"type", "function"}, {"function", {{"name", choice.function()}}}};
    return;
  }
  constexpr const char* kWords[] = {nullptr, "auto", "none", "required"};
  const int mode = static_cast<int>(choice.mode());
  if (mode > 0 && mode < 4) (*out)["tool_choice"] = kWords[mode];
}

absl::Status AddFormat(const v1::ResponseFormat& format, ordered_json* out) {
  if (format.has_json_object()) (*out)["response_format"] = {{"type", "json_object"}};
  if (!format.has_json_schema()) return absl::OkStatus();
  const v1::JsonSchema& schema = format.json_schema();
  ordered_json named = {{"name", schema.name()}, {"strict", schema.strict()}};
  if (!schema.description().empty()) named["description"] = schema.description();
  ASSIGN_OR_RETURN(named["schema"],
                   SchemaJson(schema.schema_json(), "response_format.json_schema.schema_json"));
  (*out)["response_format"] = {{"type", "json_schema"}, {"json_schema", std::move(named)}};
  return absl::OkStatus();
}

void AddSampling(const v1::SamplingParams& sampling, ordered_json* out) {
  ordered_json& json = *out;
  if (sampling.has_temperature()) json["temperature"] = sampling.temperature();
  if (sampling.has_top_p()) json["top_p"] = sampling.top_p();
  if (sampling.has_top_k()) json["top_k"] = sampling.top_k();
  if (sampling.has_min_p()) json["min_p"] = sampling.min_p();
  if (sampling.has_frequency_penalty()) json["frequency_penalty"] = sampling.frequency_penalty();
  if (sampling.has_presence_penalty()) json["presence_penalty"] = sampling.presence_penalty();
  if (sampling.has_repetition_penalty()) {
    json["repetition_penalty"] = sampling.repetition_penalty();
  }
  if (sampling.has_seed()) json["seed"] = sampling.seed();
  if (sampling.has_n()) json["n"] = sampling.n();
  for (const auto& [id, bias] : sampling.logit_bias()) {
    json["logit_bias"][absl::StrCat(id)] = bias;
  }
}

absl::Status AddLimits(const v1::ChatRequest& wire, ordered_json* out) {
  const v1::Limits& limits = wire.limits();
  if (limits.min_tokens() > 0 || limits.ignore_eos() || limits.stop_token_ids_size() > 0) {
    return BadField("limits",
                    "limits.min_tokens, ignore_eos and stop_token_ids are for Generate: a chat "
                    "ends where the model ends it");
  }
  if (limits.has_max_tokens()) (*out)["max_completion_tokens"] = limits.max_tokens();
  for (const std::string& stop : limits.stop()) (*out)["stop"].push_back(stop);
  if (wire.output().has_logprobs()) {
    (*out)["logprobs"] = true;
    (*out)["top_logprobs"] = wire.output().logprobs();
  }
  return absl::OkStatus();
}

absl::StatusOr<ordered_json> RequestJson(const v1::ChatRequest& wire) {
  ordered_json json = {{"messages", ordered_json::array()}};
  if (!wire.model().empty()) json["model"] = wire.model();
  for (const v1::Message& message : wire.messages()) {
    json["messages"].push_back(MessageJson(message));
  }
  for (int i = 0; i < wire.tools_size(); ++i) {
    ASSIGN_OR_RETURN(ordered_json tool, ToolJson(wire.tools(i), i));
    json["tools"].push_back(std::move(tool));
  }
  AddToolChoice(wire.tool_choice(), &json);
  constexpr const char* kEfforts[] = {nullptr, "low", "medium", "high"};
  const int effort = static_cast<int>(wire.reasoning().effort());
  if (effort > 0 && effort < 4) json["reasoning_effort"] = kEfforts[effort];
  if (wire.reasoning().exclude()) json["include_reasoning"] = false;
  RETURN_IF_ERROR(AddFormat(wire.response_format(), &json));
  AddSampling(wire.sampling(), &json);
  RETURN_IF_ERROR(AddLimits(wire, &json));
  return json;
}

// ---- What is answered

v1::ItemStarted::Kind ToProto(ItemKind kind) {
  switch (kind) {
    case ItemKind::kReasoning:
      return v1::ItemStarted::REASONING;
    case ItemKind::kText:
      return v1::ItemStarted::TEXT;
    case ItemKind::kCall:
      return v1::ItemStarted::TOOL_CALL;
  }
  return v1::ItemStarted::KIND_UNSPECIFIED;
}

v1::ChatFinished::Reason ReasonOf(const ChatForm::Ending& ending) {
  if (ending.end == AnswerEnd::kLength) return v1::ChatFinished::LENGTH;
  if (ending.has_called) return v1::ChatFinished::TOOL_CALLS;
  return ending.stop.has_value() ? v1::ChatFinished::STOP_STRING : v1::ChatFinished::STOP;
}

class GrpcChatForm final : public ChatForm {
 public:
  GrpcChatForm(v1::Started started, const Tokenizer* tokenizer)
      : started_(std::move(started)), tokenizer_(tokenizer) {}

  void Begin(const Beginning& beginning) override {
    num_items_.assign(static_cast<size_t>(beginning.num_choices), 0);
    shows_item_.assign(static_cast<size_t>(beginning.num_choices), true);
    id_seed_ = beginning.id_seed;
    has_logprobs_ = beginning.has_logprobs;
    shows_reasoning_ = beginning.shows_reasoning;
    v1::Started* const started = events_.emplace_back().mutable_started();
    *started = started_;
    started->set_prompt_tokens(static_cast<uint32_t>(beginning.prompt_tokens));
    *started->mutable_created() =
        google::protobuf::util::TimeUtil::MicrosecondsToTimestamp(beginning.created_us);
  }

  void Write(const Mark& mark, std::span<const ItemEvent> events, bool is_shown) override {
    for (const ItemEvent& event : events) {
      v1::ChatEvent out;
      if (Convert(mark.choice, event, &out) && is_shown) Add(mark, std::move(out));
    }
  }

  void End(const Mark& mark, const Ending& ending) override {
    v1::ChatEvent event;
    v1::ChatFinished* const finished = event.mutable_finished();
    finished->set_reason(ReasonOf(ending));
    finished->set_stop_string(ending.stop.value_or(""));
    SetUsage(ending.finish->usage, finished->mutable_usage());
    finished->mutable_usage()->set_completion_tokens(static_cast<uint32_t>(mark.num_tokens));
    finished->mutable_usage()->set_reasoning_tokens(static_cast<uint32_t>(ending.reasoning_tokens));
    SetTimings(ending.finish->timings, finished->mutable_timings());
    Add(mark, std::move(event));
  }

  void Complete(const ApiUsage&) override {}

  void Fail(const absl::Status&) override {}  // The call's status says it

  void Flush(std::deque<std::string>* messages) override {
    for (const v1::ChatEvent& event : events_) messages->push_back(event.SerializeAsString());
    events_.clear();
  }

 private:
  void Add(const Mark& mark, v1::ChatEvent event) {
    event.set_choice(static_cast<uint32_t>(mark.choice));
    event.set_next_index(static_cast<uint32_t>(mark.num_tokens));
    event.set_prefix_hash(mark.prefix_hash);
    events_.push_back(std::move(event));
  }

  // False: nothing to send.
  bool Convert(int32_t choice, const ItemEvent& event, v1::ChatEvent* out) {
    uint32_t& num_items = num_items_[static_cast<size_t>(choice)];
    if (const auto* start = std::get_if<ItemStart>(&event)) {
      v1::ItemStarted* const item = out->mutable_item_started();
      item->set_index(num_items++);
      item->set_kind(ToProto(start->kind));
      item->set_tool_name(start->function);
      if (start->kind == ItemKind::kCall) {
        item->set_call_id(absl::StrCat(CallIds(id_seed_, choice), item->index()));
      }
      item->set_preamble(start->is_preamble);
      shows_item_[static_cast<size_t>(choice)] =
          shows_reasoning_ || start->kind != ItemKind::kReasoning;
    } else if (const auto* delta = std::get_if<ItemDelta>(&event)) {
      out->mutable_delta()->set_index(num_items - 1);
      out->mutable_delta()->set_text(delta->text);
      if (has_logprobs_) AddLogprobs(delta->tokens, out->mutable_delta());
    } else if (const auto* end = std::get_if<ItemEnd>(&event)) {
      out->mutable_item_done()->set_index(num_items - 1);
      out->mutable_item_done()->set_is_complete(end->is_complete);
    } else {
      return false;
    }
    return shows_item_[static_cast<size_t>(choice)];
  }

  void AddLogprobs(const std::vector<ScoredToken>& tokens, v1::Delta* out) const {
    for (const ScoredToken& token : tokens) {
      SetLogprob({.token = token.id, .logprob = token.logprob, .top = token.top},
                 tokenizer_,
                 out->add_logprobs());
    }
  }

  const v1::Started started_;
  const Tokenizer* const tokenizer_;
  std::vector<uint32_t> num_items_;  // By choice
  std::vector<bool> shows_item_;     // By choice: the open one
  uint64_t id_seed_ = 0;
  bool has_logprobs_ = false;
  bool shows_reasoning_ = true;
  std::vector<v1::ChatEvent> events_;
};

}  // namespace

absl::StatusOr<ApiRequest> ReadChatRequest(const v1::ChatRequest& wire, absl::Time now) {
  ASSIGN_OR_RETURN(const ordered_json json, RequestJson(wire));
  return ParseChatRequest(json.dump(),
                          wire.current_date().empty() ? DateOf(now) : wire.current_date());
}

std::unique_ptr<ChatForm> MakeGrpcChatForm(const v1::Started& started, const Tokenizer* tokenizer) {
  return std::make_unique<GrpcChatForm>(started, tokenizer);
}

}  // namespace shoal
