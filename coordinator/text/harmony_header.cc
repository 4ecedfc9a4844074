#include "coordinator/text/harmony_header.h"

#include <algorithm>
#include <iterator>
#include <utility>

#include "absl/strings/ascii.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/strings/strip.h"

#include "coordinator/text/pretokenizer.h"
#include "coordinator/text/utf8.h"

namespace shoal {
namespace {

using Words = std::vector<std::string>;

constexpr absl::string_view kBodyBytes = "{[\"\n";
constexpr absl::string_view kTo = "to=";

// The characters that Unicode calls white space, and the four ASCII separators.
bool IsBlank(uint32_t c) {
  return (c >= 0x09 && c <= 0x0D) || (c >= 0x1C && c <= 0x20) || c == 0x85 || c == 0xA0 ||
         c == 0x1680 || (c >= 0x2000 && c <= 0x200A) || c == 0x2028 || c == 0x2029 || c == 0x202F ||
         c == 0x205F || c == 0x3000;
}

// REQUIRES: `text` is valid UTF-8.
Words WordsOf(absl::string_view text) {
  Words words;
  bool is_in_word = false;
  for (size_t at = 0; at < text.size();) {
    const Utf8Sequence character = ReadUtf8(text, at);
    const bool is_blank = IsBlank(character.code_point);
    if (!is_blank) {
      if (!is_in_word) words.emplace_back();
      absl::StrAppend(&words.back(), text.substr(at, character.size));
    }
    is_in_word = !is_blank;
    at += character.size;
  }
  return words;
}

// Letters and digits, perhaps with '_', '-' and '/' among them: "json", "text/plain".
bool IsPlainWord(absl::string_view word) {
  bool is_plain = false;
  for (size_t at = 0; at < word.size();) {
    const Utf8Sequence character = ReadUtf8(word, at);
    at += character.size;
    const uint32_t c = character.code_point;
    if (c == '_' || c == '-' || c == '/') continue;
    if (!IsLetterOrNumber(c)) return false;
    is_plain = true;
  }
  return is_plain;
}

std::string TakeFirst(Words* words) {
  std::string first = std::move(words->front());
  words->erase(words->begin());
  return first;
}

class Interpreter {
 public:
  Interpreter(const HeaderText& text, const FunctionNames& functions)
      : text_(text),
        functions_(functions),
        role_words_(WordsOf(WellFormedUtf8(text.role))),
        channel_words_(WordsOf(WellFormedUtf8(text.channel.value_or("")))) {}

  HeaderMeaning Run() && {
    if (text_.known_role) {
      ReadKnownRole(*text_.known_role);
    } else {
      ReadRole();
    }
    if (text_.channel) ReadChannel();
    ReadWords();
    if (text_.constrain) ReadConstrain();
    MessageHeader& header = out_.header;
    header.recipient = Recipient();
    if (header.recipient && absl::StartsWith(*header.recipient, kFunctionsPrefix) &&
        header.channel == kFinalChannel) {
      header.channel = std::string(kCommentaryChannel);
      Note(Repair::kCallOnFinal);
    }
    return std::move(out_);
  }

 private:
  void Note(Repair repair) { out_.repairs.push_back(repair); }

  void ReadKnownRole(Role role) {
    out_.header.role = role;
    if (role_words_.empty()) return;
    if (role_words_.front() == RoleName(role)) {
      TakeFirst(&role_words_);
    } else if (role == Role::kAssistant && IsHarmonyChannel(role_words_.front()) &&
               !text_.channel) {
      out_.header.channel = TakeFirst(&role_words_);
      Note(Repair::kMissingChannelMarker);
    }
  }

  void ReadRole() {
    MessageHeader& header = out_.header;
    header.role = Role::kAssistant;
    if (role_words_.empty()) return Note(Repair::kMissingRole);
    const std::string& first = role_words_.front();
    if (const std::optional<Role> role = ParseRole(first)) {
      header.role = *role;
      TakeFirst(&role_words_);
    } else if (absl::StartsWith(first, RoleName(Role::kAssistant))) {
      ReadGluedRole();
    } else if (absl::StartsWith(first, kTo)) {
      Note(Repair::kMissingRole);
    } else if (role_words_.size() > 1 || text_.channel) {
      header.role = Role::kTool;
      header.name = TakeFirst(&role_words_);
    } else {
      Note(Repair::kUnknownRole);
    }
  }

  // "assistantassistant", "assistantfinal"
  void ReadGluedRole() {
    const std::string word = TakeFirst(&role_words_);
    absl::string_view rest = word;
    while (absl::ConsumePrefix(&rest, RoleName(Role::kAssistant))) {
    }
    Note(Repair::kGluedRole);
    if (IsHarmonyChannel(rest)) {
      out_.header.channel = std::string(rest);
    } else if (!rest.empty()) {
      role_words_.insert(role_words_.begin(), std::string(rest));
    }
  }

  void ReadChannel() {
    if (channel_words_.empty()) return Note(Repair::kEmptyChannel);
    const std::string word = TakeFirst(&channel_words_);
    std::optional<std::string>& channel = out_.header.channel;
    channel = word;
    if (IsHarmonyChannel(word)) return;
    const auto hit = std::find_if(std::begin(kHarmonyChannels),
                                  std::end(kHarmonyChannels),
                                  [&](absl::string_view c) { return absl::StrContains(word, c); });
    if (hit != std::end(kHarmonyChannels)) {
      channel = std::string(*hit);
      const std::string rest = word.substr(word.find(*channel) + channel->size());
      if (absl::StartsWith(rest, kTo)) channel_words_.insert(channel_words_.begin(), rest);
      Note(Repair::kDirtyChannel);
    } else if (absl::StartsWith(word, kTo)) {
      channel_words_.insert(channel_words_.begin(), word);
      channel = std::string(kCommentaryChannel);
      Note(Repair::kEmptyChannel);
    } else {
      Note(Repair::kUnknownChannel);
    }
  }

  // What is left of both segments: recipient and content type.
  void ReadWords() {
    Words words = std::move(role_words_);
    std::move(channel_words_.begin(), channel_words_.end(), std::back_inserter(words));
    for (std::string& word : words) {
      if (!recipient_ && absl::StartsWith(word, kTo)) {
        recipient_ = word.substr(kTo.size());
      } else if (!recipient_ && absl::StartsWith(word, kFunctionsPrefix)) {
        recipient_ = std::move(word);
        Note(Repair::kMissingTo);
      } else if (!out_.header.content_type && IsPlainWord(word)) {
        out_.header.content_type = std::move(word);
      } else {
        out_.rest.push_back(std::move(word));
      }
    }
  }

  void ReadConstrain() {
    const Words words = WordsOf(WellFormedUtf8(*text_.constrain));
    out_.header.content_type = absl::StrCat(kConstrainPrefix, words.empty() ? "" : words.front());
    for (const std::string& word : words) {
      if (recipient_ || !absl::StartsWith(word, kTo)) continue;
      recipient_ = word.substr(kTo.size());
      Note(Repair::kRecipientAfterConstrain);
    }
    if (!recipient_ && !words.empty() && absl::StartsWith(words.front(), kFunctionsPrefix)) {
      recipient_ = words.front();
      out_.header.content_type = absl::StrCat(kConstrainPrefix, "json");
      Note(Repair::kRecipientInConstrain);
    }
  }

  std::optional<std::string> Recipient() {
    if (!recipient_ || recipient_->empty()) return std::nullopt;
    const std::string& word = *recipient_;
    if (word == "assistant" || word == "all" || word == "user") {
      // Not a call; after <|start|> the role is the model's own word, and the recipient stays.
      if (!text_.known_role || text_.known_role == Role::kTool) return word;
      return std::nullopt;
    }
    if (functions_.contains(word)) {
      Note(Repair::kMissingNamespace);
      return absl::StrCat(kFunctionsPrefix, word);
    }
    absl::string_view function = word;
    if (!absl::ConsumePrefix(&function, kFunctionsPrefix)) return word;
    while (absl::ConsumePrefix(&function, kFunctionsPrefix)) {
    }
    return absl::StrCat(kFunctionsPrefix, WithoutGluedWord(function));
  }

  // "fjson" -> "f", if f was declared and fjson was not.
  absl::string_view WithoutGluedWord(absl::string_view function) {
    if (functions_.empty() || functions_.contains(function)) return function;
    for (const absl::string_view suffix : {"json", "code", "commentary", "analysis"}) {
      absl::string_view head = function;
      if (!absl::ConsumeSuffix(&head, suffix) || !functions_.contains(head)) continue;
      Note(Repair::kGluedRecipient);
      return head;
    }
    return function;
  }

  const HeaderText& text_;
  const FunctionNames& functions_;
  Words role_words_, channel_words_;      // What is not understood yet
  std::optional<std::string> recipient_;  // As it was written
  HeaderMeaning out_;
};

absl::string_view StripBlanks(absl::string_view text) {
  while (!text.empty()) {
    const Utf8Sequence first = ReadUtf8(text, 0);
    if (!IsBlank(first.code_point)) break;
    text.remove_prefix(first.size);
  }
  size_t end = 0;
  for (size_t at = 0; at < text.size();) {
    const Utf8Sequence character = ReadUtf8(text, at);
    at += character.size;
    if (!IsBlank(character.code_point)) end = at;
  }
  return text.substr(0, end);
}

// Where the body begins if nothing in `text` gives it away: behind the first word of a channel or
// constrain segment, or the role's own word; and behind every to=... there.
size_t EndOfHeaderWords(absl::string_view text, const HeaderText& header) {
  const bool is_role = header.segment == HeaderSegment::kRole;
  const absl::string_view role = RoleName(header.known_role.value_or(Role::kAssistant));
  int num_words = 0;
  for (size_t at = 0; at <= text.size();) {
    const size_t end = std::min(text.find(' ', at), text.size());
    const absl::string_view word = StripBlanks(text.substr(at, end - at));
    const bool is_header = word.empty() || absl::StartsWith(word, kTo) ||
                           (num_words == 0 && (!is_role || word == role));
    if (!is_header) return at;
    if (!word.empty()) ++num_words;
    at = end + 1;
  }
  return text.size();
}

}  // namespace

std::string& HeaderText::current() {
  switch (segment) {
    case HeaderSegment::kRole:
      return role;
    case HeaderSegment::kChannel:
      return *channel;
    case HeaderSegment::kConstrain:
      break;
  }
  return *constrain;
}

bool HeaderText::HasOnlyARole() const {
  if (channel || constrain) return false;
  const absl::string_view word = absl::StripAsciiWhitespace(role);
  return word.empty() || word == RoleName(Role::kAssistant);
}

HeaderMeaning InterpretHeader(const HeaderText& text, const FunctionNames& functions) {
  return Interpreter(text, functions).Run();
}

bool LooksLikeContent(absl::string_view segment) {
  return segment.find_first_of(kBodyBytes) != absl::string_view::npos;
}

SplitHeader SplitHeaderAndBody(HeaderText text, const FunctionNames& functions) {
  std::string& segment = text.current();
  segment = WellFormedUtf8(segment);
  size_t cut = segment.find_first_of(std::string(kBodyBytes));
  if (cut == std::string::npos) cut = EndOfHeaderWords(segment, text);
  std::string body = segment.substr(cut);
  segment.resize(cut);

  SplitHeader split;
  split.meaning = InterpretHeader(text, functions);
  const std::vector<std::string>& rest = split.meaning.rest;
  if (!rest.empty()) {
    body = absl::StrCat(absl::StrJoin(rest, " "), body.empty() ? "" : " ", body);
  }
  const size_t begin = std::min(body.find_first_not_of(' '), body.size());
  split.body = body.substr(begin, body.find_last_not_of(' ') + 1 - begin);
  return split;
}

}  // namespace shoal
