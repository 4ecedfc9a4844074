// What the words between <|start|> and <|message|> mean, however a model put them. Pure functions.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "coordinator/text/harmony.h"

namespace shoal {

enum class HeaderSegment : uint8_t { kRole, kChannel, kConstrain };

// A header so far, as it came: raw bytes, cut at <|channel|> and <|constrain|>.
struct HeaderText {
  std::optional<Role> known_role;                // The prompt's last tokens said it
  HeaderSegment segment = HeaderSegment::kRole;  // The one that grows
  std::string role;
  std::optional<std::string> channel;    // nullopt: no <|channel|> yet
  std::optional<std::string> constrain;  // nullopt: no <|constrain|> yet

  std::string& current();
  // Nothing that a message would lose by ignoring it: no marker, and no text but "assistant".
  bool HasOnlyARole() const;

  friend bool operator==(const HeaderText&, const HeaderText&) = default;
};

struct HeaderMeaning {
  MessageHeader header;
  std::vector<std::string> rest;  // Words that mean nothing
  std::vector<Repair> repairs;
};

HeaderMeaning InterpretHeader(const HeaderText& text, const FunctionNames& functions);

// The growing segment holds what a header never does, so <|message|> was forgotten.
bool LooksLikeContent(absl::string_view segment);

// A header that holds the beginning of the content, too. `body`: what is no header.
struct SplitHeader {
  HeaderMeaning meaning;
  std::string body;
};

SplitHeader SplitHeaderAndBody(HeaderText text, const FunctionNames& functions);

}  // namespace shoal
