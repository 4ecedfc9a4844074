// What a model wrote, token by token -> messages as typed events.
//
// Any tokens whatever give valid events: every Start has its End, nothing fails, and what fits no
// place is counted as a Repair. Works on ids, never on text, so that a marker which is spelled out
// in a message cannot confuse it. A value: copy it to look ahead or to go back. Its state is a
// function of the tokens so far, however they were split over calls.
//
//     between messages ──<|start|>──▶ header ──<|message|>──▶ content ──<|end|>, <|call|>…──▶
//     between
//
// with the repairs of `enum Repair` as further edges.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "base/ids.h"
#include "coordinator/text/harmony.h"
#include "coordinator/text/harmony_header.h"

namespace shoal {

class HarmonyReader {
 public:
  enum class State : uint8_t { kBetween, kHeader, kContent };

  // `tokens` and `functions`, the names that the request declared, outlive this and its copies.
  // `role`: a header has begun and its role is known, as after a prompt's <|start|>assistant;
  // nullopt: <|start|> is to come.
  HarmonyReader(const HarmonyTokens* tokens,
                const FunctionNames* functions,
                std::optional<Role> role);

  // Appends what this token gives to *events.
  void Push(TokenId id, std::vector<HarmonyEvent>* events);
  // The answer ended here without a token that ends a message: length, stop string, cancelled.
  void Finish(std::vector<HarmonyEvent>* events);

  State state() const { return state_; }

  // The header so far. REQUIRES: state() is kHeader.
  const HeaderText& header_text() const;
  // What it would mean if <|message|> came next. REQUIRES: state() is kHeader.
  MessageHeader HeaderSoFar() const;
  // Of the message whose content this is. REQUIRES: state() is kContent.
  const MessageHeader& header() const;

  // The last token ended within a character, whose text is to come. REQUIRES: state() is kContent.
  bool IsWithinCharacter() const { return !held_.empty(); }

 private:
  using Events = std::vector<HarmonyEvent>;

  void OpenHeader(std::optional<Role> role, HeaderSegment segment);
  void PushBetween(TokenId id, Events* events);
  void PushHeader(TokenId id, Events* events);
  void PushContent(TokenId id, Events* events);
  void RestartInHeader(Events* events);
  void PushHeaderText(absl::string_view text, Events* events);
  void OpenContent(MessageHeader header, Events* events);
  void OpenContent(SplitHeader split, Events* events);
  void HeaderBecomesMessage(std::optional<TokenId> stop, Events* events);
  void CloseMessage(std::optional<TokenId> stop, Events* events);

  const HarmonyTokens* tokens_;
  const FunctionNames* functions_;
  State state_ = State::kBetween;

  // Of kHeader.
  HeaderText text_;
  int32_t num_header_tokens_ = 0;  // Of text
  bool has_header_tokens_ = false;
  bool is_stray_ = false;  // Began with text where <|start|> was due

  // Of kContent.
  MessageHeader header_;
  std::string held_;  // An incomplete character: at most 3 bytes
};

}  // namespace shoal
