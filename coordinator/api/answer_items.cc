#include "coordinator/api/answer_items.h"

#include <algorithm>
#include <utility>

#include "absl/strings/ascii.h"

namespace shoal {
namespace {

// nullopt: clients do not see it.
std::optional<ItemKind> KindOf(const MessageHeader& header) {
  if (header.role != Role::kAssistant) return std::nullopt;
  if (header.CalledFunction()) return ItemKind::kCall;
  const std::string recipient = header.recipient.value_or("all");
  const bool is_for_user = recipient == "all" || recipient == "user" || recipient == "assistant";
  if (!is_for_user || header.channel == kAnalysisChannel) return ItemKind::kReasoning;
  return ItemKind::kText;
}

}  // namespace

ItemReader::ItemReader(const HarmonyTokens* tokens,
                       const FunctionNames* functions,
                       std::vector<std::string> stop)
    : tokens_(tokens), reader_(tokens, functions, Role::kAssistant), stop_(std::move(stop)) {}

void ItemReader::Push(const ScoredToken& token, std::vector<ItemEvent>* events) {
  if (found_stop_) return;
  if (tokens_->Text(token.id)) token_ = token;
  std::vector<HarmonyEvent> heard;
  reader_.Push(token.id, &heard);
  Convert(std::move(heard), events);
  const bool is_in_item = item_ && reader_.state() == HarmonyReader::State::kContent;
  if (token_ && is_in_item) TakeToken();  // Its text is to come
  token_.reset();
}

void ItemReader::Finish(std::vector<ItemEvent>* events) {
  if (found_stop_) return;
  std::vector<HarmonyEvent> heard;
  reader_.Finish(&heard);
  Convert(std::move(heard), events);
}

void ItemReader::Convert(std::vector<HarmonyEvent> heard, std::vector<ItemEvent>* events) {
  for (const HarmonyEvent& event : heard) {
    if (found_stop_) return;
    std::visit([&](const auto& e) { On(e, events); }, event);
  }
}

void ItemReader::On(const MessageStart& start, std::vector<ItemEvent>* events) {
  const std::optional<ItemKind> kind = KindOf(start.header);
  if (!kind) {
    events->emplace_back(Repair::kHiddenMessage);
    return;
  }
  item_.emplace(*kind);
  if (*kind == ItemKind::kText && !stop_.empty()) item_->stops.emplace(stop_);
  ItemStart item;
  item.kind = *kind;
  item.is_preamble = *kind == ItemKind::kText && start.header.channel == kCommentaryChannel;
  if (*kind == ItemKind::kCall) {
    item.function = std::string(*start.header.CalledFunction());
    has_called_ = true;
  }
  events->emplace_back(std::move(item));
}

void ItemReader::On(const MessageDelta& delta, std::vector<ItemEvent>* events) {
  if (!item_) return;
  switch (item_->kind) {
    case ItemKind::kCall:
      return ReadArguments(delta.text, events);
    case ItemKind::kText:
      return ReadText(delta.text, events);
    case ItemKind::kReasoning:
      events->emplace_back(ItemDelta{delta.text, {}});
  }
}

void ItemReader::ReadArguments(absl::string_view text, std::vector<ItemEvent>* events) {
  const size_t size = item_->arguments.Advance(text);
  if (size > 0) {
    events->emplace_back(ItemDelta{std::string(text.substr(0, size)), {}});
    item_->is_empty = false;
  }
  const absl::string_view rest = text.substr(size);
  if (!item_->has_trailing_text && !absl::StripAsciiWhitespace(rest).empty()) {
    item_->has_trailing_text = true;
    events->emplace_back(Repair::kTextAfterArguments);
  }
}

void ItemReader::ReadText(const std::string& text, std::vector<ItemEvent>* events) {
  const size_t begin = item_->num_read;
  item_->num_read += text.size();
  if (token_) {
    TakeToken();
    item_->waiting.back().begin = begin;
  }
  if (!item_->stops) return ShowText(text, events);
  StopStrings::Result result = item_->stops->Push(text);
  if (result.stopped) found_stop_ = std::move(result.stop);
  if (!result.text.empty()) ShowText(std::move(result.text), events);
  if (!found_stop_) return;
  events->emplace_back(ItemEnd{});
  item_.reset();
}

// The token at hand belongs to the open item.
void ItemReader::TakeToken() {
  if (item_->kind == ItemKind::kReasoning) ++num_reasoning_tokens_;
  if (item_->kind == ItemKind::kText) {
    const bool is_incomplete =
        reader_.state() == HarmonyReader::State::kContent && reader_.IsWithinCharacter();
    const size_t end = item_->num_read + (is_incomplete ? 1 : 0);
    item_->waiting.push_back({item_->num_read, end, *std::move(token_)});
  }
  token_.reset();
}

void ItemReader::ShowText(std::string text, std::vector<ItemEvent>* events) {
  item_->num_shown += text.size();
  item_->is_empty = false;
  ItemDelta delta;
  delta.text = std::move(text);
  std::deque<Item::Waiting>& waiting = item_->waiting;
  while (!waiting.empty()) {
    // Of a token that a stop string cut in two, this was all.
    const Item::Waiting& next = waiting.front();
    const bool is_due = found_stop_ ? next.begin < item_->num_shown : next.end <= item_->num_shown;
    if (!is_due) break;
    delta.tokens.push_back(std::move(waiting.front().token));
    waiting.pop_front();
  }
  events->emplace_back(std::move(delta));
}

void ItemReader::On(const MessageEnd& end, std::vector<ItemEvent>* events) {
  if (!item_) return;
  if (item_->stops) {
    std::string rest = item_->stops->Flush();
    if (!rest.empty()) ShowText(std::move(rest), events);
  }
  const bool is_complete = end.stop.has_value();
  if (item_->kind == ItemKind::kCall) {
    if (is_complete && item_->is_empty) events->emplace_back(ItemDelta{"{}", {}});
    has_unanswered_call_ = end.stop == tokens_->end;
  }
  events->emplace_back(ItemEnd{is_complete});
  item_.reset();
}

size_t ItemReader::Json::Advance(absl::string_view text) {
  for (size_t i = 0; i < text.size(); ++i) {
    if (is_complete) return i;
    const char c = text[i];
    if (is_in_string) {
      if (is_escaped) {
        is_escaped = false;
      } else if (c == '\\') {
        is_escaped = true;
      } else if (c == '"') {
        is_in_string = false;
      }
    } else if (c == '"') {
      is_in_string = true;
    } else if (c == '{' || c == '[') {
      ++depth;
    } else if (c == '}' || c == ']') {
      is_complete = --depth == 0;
    }
  }
  return text.size();
}

}  // namespace shoal
