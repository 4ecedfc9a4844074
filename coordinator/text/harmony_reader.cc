#include "coordinator/text/harmony_reader.h"

#include <utility>

#include "absl/strings/str_cat.h"

#include "base/check.h"
#include "coordinator/text/utf8.h"

namespace shoal {
namespace {

void NoteAll(const std::vector<Repair>& repairs, std::vector<HarmonyEvent>* events) {
  events->insert(events->end(), repairs.begin(), repairs.end());
}

}  // namespace

HarmonyReader::HarmonyReader(const HarmonyTokens* tokens,
                             const FunctionNames* functions,
                             std::optional<Role> role)
    : tokens_(tokens), functions_(functions) {
  if (role) OpenHeader(role, HeaderSegment::kRole);
}

const HeaderText& HarmonyReader::header_text() const {
  CHECK(state_ == State::kHeader);
  return text_;
}

MessageHeader HarmonyReader::HeaderSoFar() const {
  CHECK(state_ == State::kHeader);
  return InterpretHeader(text_, *functions_).header;
}

const MessageHeader& HarmonyReader::header() const {
  CHECK(state_ == State::kContent);
  return header_;
}

void HarmonyReader::Push(TokenId id, Events* events) {
  switch (state_) {
    case State::kBetween:
      return PushBetween(id, events);
    case State::kHeader:
      return PushHeader(id, events);
    case State::kContent:
      return PushContent(id, events);
  }
}

void HarmonyReader::Finish(Events* events) {
  if (state_ == State::kContent) {
    CloseMessage(std::nullopt, events);
  } else if (state_ == State::kHeader && has_header_tokens_) {
    events->push_back(Repair::kEosInHeader);
    SplitHeader split = SplitHeaderAndBody(std::move(text_), *functions_);
    // A header that was cut is no message.
    const bool is_message =
        !split.body.empty() && !IsHarmonyChannel(split.body) && !split.meaning.header.recipient;
    if (is_message) {
      OpenContent(std::move(split), events);
      CloseMessage(std::nullopt, events);
    } else {
      NoteAll(split.meaning.repairs, events);
    }
  }
  state_ = State::kBetween;
}

void HarmonyReader::OpenHeader(std::optional<Role> role, HeaderSegment segment) {
  state_ = State::kHeader;
  text_ = HeaderText{};
  text_.known_role = role;
  text_.segment = segment;
  if (segment == HeaderSegment::kChannel) text_.channel.emplace();
  num_header_tokens_ = 0;
  has_header_tokens_ = segment != HeaderSegment::kRole;
  is_stray_ = false;
}

void HarmonyReader::PushBetween(TokenId id, Events* events) {
  if (id == tokens_->start) return OpenHeader(std::nullopt, HeaderSegment::kRole);
  if (tokens_->EndsMessage(id)) return;  // Once more: says nothing new
  events->push_back(Repair::kMissingStart);
  if (id == tokens_->channel) return OpenHeader(Role::kAssistant, HeaderSegment::kChannel);
  OpenHeader(Role::kAssistant, HeaderSegment::kRole);
  is_stray_ = true;
  PushHeader(id, events);
}

void HarmonyReader::PushHeader(TokenId id, Events* events) {
  if (id == tokens_->message) {
    HeaderMeaning meaning = InterpretHeader(text_, *functions_);
    NoteAll(meaning.repairs, events);
    if (!meaning.rest.empty()) events->push_back(Repair::kExtraHeaderWords);
    return OpenContent(std::move(meaning.header), events);
  }
  if (id == tokens_->start) return RestartInHeader(events);
  if (tokens_->EndsMessage(id)) {
    if (!has_header_tokens_ || text_.HasOnlyARole()) {
      state_ = State::kBetween;  // An empty message
      return;
    }
    events->push_back(Repair::kStopInHeader);
    return HeaderBecomesMessage(id, events);
  }

  has_header_tokens_ = true;
  if (id == tokens_->channel) {
    if (text_.channel) events->push_back(Repair::kSecondChannel);
    text_.segment = HeaderSegment::kChannel;
    text_.channel.emplace();
  } else if (id == tokens_->constrain) {
    if (text_.constrain) events->push_back(Repair::kSecondConstrain);
    text_.segment = HeaderSegment::kConstrain;
    text_.constrain.emplace();
  } else if (const std::optional<absl::string_view> text = tokens_->Text(id)) {
    PushHeaderText(*text, events);
  } else {
    events->push_back(Repair::kReservedInHeader);
  }
}

void HarmonyReader::RestartInHeader(Events* events) {
  if (!has_header_tokens_ || text_.HasOnlyARole()) {
    events->push_back(Repair::kDuplicateStart);
    OpenHeader(text_.known_role, HeaderSegment::kRole);
  } else if (is_stray_ && !text_.channel) {
    events->push_back(Repair::kStrayTextDropped);
    OpenHeader(std::nullopt, HeaderSegment::kRole);
  } else {
    events->push_back(Repair::kStartInHeader);
    HeaderBecomesMessage(std::nullopt, events);
    OpenHeader(std::nullopt, HeaderSegment::kRole);
  }
}

void HarmonyReader::PushHeaderText(absl::string_view text, Events* events) {
  absl::StrAppend(&text_.current(), text);
  ++num_header_tokens_;
  if (!LooksLikeContent(text) && num_header_tokens_ <= tokens_->max_header_tokens) return;
  events->push_back(Repair::kMissingMessage);
  OpenContent(SplitHeaderAndBody(std::move(text_), *functions_), events);
}

void HarmonyReader::OpenContent(MessageHeader header, Events* events) {
  state_ = State::kContent;
  header_ = std::move(header);
  held_.clear();
  events->emplace_back(MessageStart{header_});
}

void HarmonyReader::OpenContent(SplitHeader split, Events* events) {
  NoteAll(split.meaning.repairs, events);
  OpenContent(std::move(split.meaning.header), events);
  if (!split.body.empty()) events->emplace_back(MessageDelta{std::move(split.body)});
}

void HarmonyReader::HeaderBecomesMessage(std::optional<TokenId> stop, Events* events) {
  SplitHeader split = SplitHeaderAndBody(std::move(text_), *functions_);
  if (!split.meaning.header.channel && IsHarmonyChannel(split.body)) {
    split.meaning.header.channel = std::exchange(split.body, "");
  }
  OpenContent(std::move(split), events);
  CloseMessage(stop, events);
}

void HarmonyReader::PushContent(TokenId id, Events* events) {
  if (const std::optional<absl::string_view> bytes = tokens_->Text(id)) {
    if (held_.empty() && ValidUtf8Prefix(*bytes) == bytes->size()) {  // Nearly always
      if (!bytes->empty()) events->emplace_back(MessageDelta{std::string(*bytes)});
      return;
    }
    absl::StrAppend(&held_, *bytes);
    std::string text = TakeUtf8(&held_);
    if (!text.empty()) events->emplace_back(MessageDelta{std::move(text)});
  } else if (tokens_->EndsMessage(id)) {
    CloseMessage(id, events);
  } else if (id == tokens_->start) {
    events->push_back(Repair::kMissingEnd);
    CloseMessage(std::nullopt, events);
    OpenHeader(std::nullopt, HeaderSegment::kRole);
  } else if (id == tokens_->channel) {
    events->push_back(Repair::kMissingEndStart);
    CloseMessage(std::nullopt, events);
    OpenHeader(Role::kAssistant, HeaderSegment::kChannel);
  } else {
    events->push_back(Repair::kMarkerInContent);
  }
}

void HarmonyReader::CloseMessage(std::optional<TokenId> stop, Events* events) {
  if (!held_.empty()) events->emplace_back(MessageDelta{std::string(kReplacementCharacter)});
  held_.clear();
  events->emplace_back(MessageEnd{stop});
  state_ = State::kBetween;
}

}  // namespace shoal
