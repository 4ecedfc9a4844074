#include "coordinator/api/responses_writer.h"

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

const char* IdPrefix(ItemKind kind) {
  switch (kind) {
    case ItemKind::kReasoning:
      return "rs_";
    case ItemKind::kText:
      return "msg_";
    case ItemKind::kCall:
      break;
  }
  return "fc_";
}

ordered_json UsageTree(const ApiUsage& usage) {
  return {{"input_tokens", usage.prompt_tokens},
          {"input_tokens_details", {{"cached_tokens", usage.cached_tokens}}},
          {"output_tokens", usage.completion_tokens},
          {"output_tokens_details", {{"reasoning_tokens", usage.reasoning_tokens}}},
          {"total_tokens", usage.prompt_tokens + usage.completion_tokens}};
}

}  // namespace

// What a call of the writer needs beside its state.
struct ResponsesWriter::Sink {
  ResponsesWriter& writer;
  std::vector<ResponsesEvent>& events;

  void Send(const char* type, ordered_json payload) {
    ordered_json data = {{"type", type}, {"sequence_number", writer.num_events_++}};
    data.update(payload);
    events.push_back({type, Text(data)});
  }

  std::string ItemId(const char* prefix) const {
    return absl::StrCat(prefix, writer.args_.item_ids, writer.items_.size());
  }

  bool IsCall() const { return writer.item_.kind == ItemKind::kCall; }

  // Fields that say which item, or which part of it, an event is about.
  ordered_json Place() const {
    ordered_json place = {{"item_id", ItemId(IdPrefix(writer.item_.kind))},
                          {"output_index", writer.items_.size()}};
    if (!IsCall()) place["content_index"] = 0;
    return place;
  }

  ordered_json With(std::initializer_list<std::pair<const char*, ordered_json>> fields) const {
    ordered_json payload = Place();
    for (const auto& [key, value] : fields) payload[key] = value;
    return payload;
  }

  ordered_json Logprobs(std::span<const ScoredToken> tokens) const {
    if (writer.args_.logprobs == nullptr) return ordered_json::array();
    return LogprobList(tokens, *writer.args_.logprobs);
  }

  ordered_json Part() const {
    if (writer.item_.kind == ItemKind::kReasoning) {
      return {{"type", "reasoning_text"}, {"text", writer.text_}};
    }
    return {{"type", "output_text"},
            {"text", writer.text_},
            {"annotations", ordered_json::array()},
            {"logprobs", Logprobs(writer.tokens_)}};
  }

  // `content`: its parts so far.
  ordered_json Item(const char* status, ordered_json content) const {
    const std::string id = ItemId(IdPrefix(writer.item_.kind));
    switch (writer.item_.kind) {
      case ItemKind::kReasoning:
        return {{"type", "reasoning"},
                {"id", id},
                {"summary", ordered_json::array()},
                {"content", std::move(content)},
                {"status", status}};
      case ItemKind::kText:
        return {{"type", "message"},
                {"id", id},
                {"role", "assistant"},
                {"content", std::move(content)},
                {"status", status},
                {"phase", writer.item_.is_preamble ? "commentary" : "final_answer"}};
      case ItemKind::kCall:
        break;
    }
    return {{"type", "function_call"},
            {"id", id},
            {"call_id", ItemId("call_")},
            {"name", writer.item_.function},
            {"arguments", writer.text_},
            {"status", status}};
  }

  ordered_json Response(const char* status) const {
    ordered_json output = ordered_json::array();
    for (const std::string& item : writer.items_) output.push_back(ordered_json::parse(item));
    ordered_json response = {{"id", writer.args_.id},
                             {"object", "response"},
                             {"created_at", writer.args_.created_at},
                             {"status", status},
                             {"error", nullptr},
                             {"incomplete_details", nullptr},
                             {"model", writer.args_.model},
                             {"output", std::move(output)},
                             {"usage", nullptr}};
    response.update(ordered_json::parse(writer.args_.echo));
    return response;
  }

  void operator()(const ItemStart& start) {
    writer.item_ = start;
    writer.text_.clear();
    writer.tokens_.clear();
    Send("response.output_item.added",
         {{"output_index", writer.items_.size()},
          {"item", Item("in_progress", ordered_json::array())}});
    if (!IsCall()) Send("response.content_part.added", With({{"part", Part()}}));
  }

  void operator()(const ItemDelta& delta) {
    writer.text_ += delta.text;
    switch (writer.item_.kind) {
      case ItemKind::kReasoning:
        return Send("response.reasoning_text.delta", With({{"delta", delta.text}}));
      case ItemKind::kText:
        writer.tokens_.insert(writer.tokens_.end(), delta.tokens.begin(), delta.tokens.end());
        return Send("response.output_text.delta",
                    With({{"delta", delta.text}, {"logprobs", Logprobs(delta.tokens)}}));
      case ItemKind::kCall:
        return Send("response.function_call_arguments.delta", With({{"delta", delta.text}}));
    }
  }

  void operator()(const ItemEnd& end) {
    ordered_json content = ordered_json::array();
    switch (writer.item_.kind) {
      case ItemKind::kReasoning:
        Send("response.reasoning_text.done", With({{"text", writer.text_}}));
        break;
      case ItemKind::kText:
        Send("response.output_text.done",
             With({{"text", writer.text_}, {"logprobs", Logprobs(writer.tokens_)}}));
        break;
      case ItemKind::kCall:
        Send("response.function_call_arguments.done",
             With({{"name", writer.item_.function}, {"arguments", writer.text_}}));
        break;
    }
    if (!IsCall()) {
      Send("response.content_part.done", With({{"part", Part()}}));
      content.push_back(Part());
    }
    ordered_json item = Item(end.is_complete ? "completed" : "incomplete", std::move(content));
    Send("response.output_item.done", {{"output_index", writer.items_.size()}, {"item", item}});
    writer.items_.push_back(Text(item));
  }

  void operator()(Repair) {}
};

void ResponsesWriter::Begin(std::vector<ResponsesEvent>* events) {
  Sink sink{*this, *events};
  const ordered_json response = sink.Response("in_progress");
  sink.Send("response.created", {{"response", response}});
  sink.Send("response.in_progress", {{"response", response}});
}

void ResponsesWriter::Write(std::span<const ItemEvent> items, std::vector<ResponsesEvent>* events) {
  Sink sink{*this, *events};
  for (const ItemEvent& item : items) std::visit(sink, item);
}

void ResponsesWriter::End(AnswerEnd end,
                          const ApiUsage& usage,
                          std::vector<ResponsesEvent>* events) {
  Sink sink{*this, *events};
  const bool is_whole = end != AnswerEnd::kLength;
  ordered_json response = sink.Response(is_whole ? "completed" : "incomplete");
  if (!is_whole) response["incomplete_details"] = {{"reason", "max_output_tokens"}};
  response["usage"] = UsageTree(usage);
  body_ = Text(response);
  sink.Send(is_whole ? "response.completed" : "response.incomplete",
            {{"response", std::move(response)}});
}

void ResponsesWriter::Fail(const ApiError& error, std::vector<ResponsesEvent>* events) {
  Sink sink{*this, *events};
  ordered_json response = sink.Response("failed");
  response["error"] = {{"code", error.code.value_or("server_error")}, {"message", error.message}};
  body_ = Text(response);
  sink.Send("response.failed", {{"response", std::move(response)}});
}

}  // namespace shoal
