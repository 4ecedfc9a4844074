#include "coordinator/api/chat_writer.h"

#include <algorithm>
#include <iterator>
#include <utility>
#include <variant>

#include "absl/strings/str_cat.h"
#include "nlohmann/json.hpp"

#include "coordinator/api/logprobs.h"

namespace shoal {
namespace {

using nlohmann::ordered_json;

std::string Text(const ordered_json& value) {
  return value.dump(-1, ' ', false, ordered_json::error_handler_t::replace);
}

ordered_json UsageTree(const ApiUsage& usage) {
  return {{"prompt_tokens", usage.prompt_tokens},
          {"completion_tokens", usage.completion_tokens},
          {"total_tokens", usage.prompt_tokens + usage.completion_tokens},
          {"prompt_tokens_details", {{"cached_tokens", usage.cached_tokens}}},
          {"completion_tokens_details", {{"reasoning_tokens", usage.reasoning_tokens}}}};
}

ordered_json Envelope(const ChatAnswerArgs& args, const char* object, ordered_json choices) {
  return {{"id", args.id},
          {"object", object},
          {"created", args.created},
          {"model", args.model},
          {"system_fingerprint", args.system_fingerprint},
          {"choices", std::move(choices)}};
}

ordered_json LogprobsTree(const ChatAnswerArgs& args, std::span<const ScoredToken> tokens) {
  if (args.logprobs == nullptr) return nullptr;
  return {{"content", LogprobList(tokens, *args.logprobs)}, {"refusal", nullptr}};
}

std::string Chunk(const ChatAnswerArgs& args,
                  int32_t choice,
                  ordered_json delta,
                  ordered_json logprobs,
                  ordered_json finish_reason) {
  ordered_json chunk =
      Envelope(args,
               "chat.completion.chunk",
               ordered_json::array({{{"index", choice},
                                     {"delta", std::move(delta)},
                                     {"logprobs", std::move(logprobs)},
                                     {"finish_reason", std::move(finish_reason)}}}));
  if (args.includes_usage) chunk["usage"] = nullptr;
  return Text(chunk);
}

ordered_json CallTree(const std::string& id,
                      const std::string& name,
                      const std::string& arguments) {
  return {
      {"id", id}, {"type", "function"}, {"function", {{"name", name}, {"arguments", arguments}}}};
}

}  // namespace

std::string ChatFinishReason(AnswerEnd end, bool has_called) {
  if (end == AnswerEnd::kLength) return "length";
  return has_called ? "tool_calls" : "stop";
}

std::optional<ChatDelta> ChatDeltas::Next(const ItemEvent& event) {
  if (const auto* start = std::get_if<ItemStart>(&event)) {
    kind_ = start->kind;
    is_first_delta_ = true;
    if (kind_ != ItemKind::kCall) return std::nullopt;
    return ChatDelta{ChatDelta::Kind::kCall, start->function, num_calls_++, {}};
  }
  const auto* delta = std::get_if<ItemDelta>(&event);
  if (delta == nullptr) return std::nullopt;
  if (kind_ == ItemKind::kCall) {
    return ChatDelta{ChatDelta::Kind::kArguments, delta->text, num_calls_ - 1, {}};
  }
  const bool is_content = kind_ == ItemKind::kText;
  bool& has_text = is_content ? has_content_ : has_reasoning_;
  const char* const separator = std::exchange(is_first_delta_, false) && has_text ? "\n" : "";
  has_text = true;
  return ChatDelta{is_content ? ChatDelta::Kind::kContent : ChatDelta::Kind::kReasoning,
                   absl::StrCat(separator, delta->text),
                   0,
                   delta->tokens};
}

ChatStreamWriter::ChatStreamWriter(const ChatAnswerArgs* args, int32_t choice, std::string call_ids)
    : args_(args), choice_(choice), call_ids_(std::move(call_ids)) {}

std::string ChatStreamWriter::Begin() const {
  return Chunk(*args_, choice_, {{"role", "assistant"}, {"content", ""}}, nullptr, nullptr);
}

void ChatStreamWriter::Write(std::span<const ItemEvent> events, std::vector<std::string>* chunks) {
  for (const ItemEvent& event : events) {
    const std::optional<ChatDelta> delta = deltas_.Next(event);
    if (!delta) continue;
    ordered_json tree, logprobs;
    switch (delta->kind) {
      case ChatDelta::Kind::kContent:
        tree = {{"content", delta->text}};
        logprobs = LogprobsTree(*args_, delta->tokens);
        break;
      case ChatDelta::Kind::kReasoning:
        if (!args_->includes_reasoning) continue;
        tree = {{"reasoning", delta->text}};
        if (args_->repeats_reasoning_content) tree["reasoning_content"] = delta->text;
        break;
      case ChatDelta::Kind::kCall: {
        has_called_ = true;
        ordered_json call = CallTree(absl::StrCat(call_ids_, delta->call_index), delta->text, "");
        call["index"] = delta->call_index;
        tree["tool_calls"] = ordered_json::array({std::move(call)});
        break;
      }
      case ChatDelta::Kind::kArguments:
        tree["tool_calls"] = ordered_json::array(
            {{{"index", delta->call_index}, {"function", {{"arguments", delta->text}}}}});
        break;
    }
    chunks->push_back(Chunk(*args_, choice_, std::move(tree), std::move(logprobs), nullptr));
  }
}

std::string ChatStreamWriter::End(AnswerEnd end) const {
  return Chunk(
      *args_, choice_, ordered_json::object(), nullptr, ChatFinishReason(end, has_called_));
}

std::string ChatUsageChunk(const ChatAnswerArgs& args, const ApiUsage& usage) {
  ordered_json chunk = Envelope(args, "chat.completion.chunk", ordered_json::array());
  chunk["usage"] = UsageTree(usage);
  return Text(chunk);
}

void ChatChoice::Write(std::span<const ItemEvent> events) {
  for (const ItemEvent& event : events) {
    const auto* start = std::get_if<ItemStart>(&event);
    if (start != nullptr && start->kind == ItemKind::kText && !content_) content_ = "";
    std::optional<ChatDelta> delta = deltas_.Next(event);
    if (!delta) continue;
    switch (delta->kind) {
      case ChatDelta::Kind::kContent:
        *content_ += delta->text;
        std::move(delta->tokens.begin(), delta->tokens.end(), std::back_inserter(tokens_));
        break;
      case ChatDelta::Kind::kReasoning:
        reasoning_ += delta->text;
        break;
      case ChatDelta::Kind::kCall:
        calls_.push_back({std::move(delta->text), ""});
        break;
      case ChatDelta::Kind::kArguments:
        calls_.back().arguments += delta->text;
        break;
    }
  }
}

std::string ChatCompletionBody(const ChatAnswerArgs& args,
                               std::span<const ChatChoice> choices,
                               const ApiUsage& usage) {
  ordered_json list = ordered_json::array();
  for (const ChatChoice& choice : choices) {
    ordered_json message = {{"role", "assistant"}, {"content", nullptr}, {"refusal", nullptr}};
    if (choice.content_) message["content"] = *choice.content_;
    if (args.includes_reasoning && !choice.reasoning_.empty()) {
      message["reasoning"] = choice.reasoning_;
      if (args.repeats_reasoning_content) message["reasoning_content"] = choice.reasoning_;
    }
    for (size_t c = 0; c < choice.calls_.size(); ++c) {
      const ChatChoice::Call& call = choice.calls_[c];
      message["tool_calls"].push_back(
          CallTree(absl::StrCat(choice.call_ids_, c), call.function, call.arguments));
    }
    list.push_back({{"index", list.size()},
                    {"message", std::move(message)},
                    {"logprobs", LogprobsTree(args, choice.tokens_)},
                    {"finish_reason", ChatFinishReason(choice.end_, !choice.calls_.empty())}});
  }
  ordered_json body = Envelope(args, "chat.completion", std::move(list));
  body["usage"] = UsageTree(usage);
  return Text(body);
}

}  // namespace shoal
