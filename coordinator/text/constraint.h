// What a request demands of its answer, token by token: which channels and calls there may be, and
// JSON by a schema inside the right one. Control tokens are part of the rules, so they are never in
// the way. The rules are made once for a request; a Constraint is a value, a function of the rules
// and of the output so far, and nothing else: whoever has the tokens can make it again.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/statusor.h"

#include "base/ids.h"
#include "coordinator/text/grammar.h"
#include "coordinator/text/header_trie.h"
#include "coordinator/text/json_graph.h"
#include "coordinator/text/token_index.h"
#include "coordinator/text/token_set.h"

namespace shoal {

struct ConstraintSpec {
  struct Function {
    std::string name;
    std::string parameters;  // JSON schema of the arguments; empty: any text

    friend bool operator==(const Function&, const Function&) = default;
  };

  // The whole output is one JSON document. Otherwise it is harmony: messages on channels.
  bool is_plain = false;
  std::string answer_schema;        // Of the final answer, or of the whole output; empty: any text
  std::vector<Function> functions;  // That may be called
  bool must_call = false;           // No final answer, and not much thinking, before a call

  friend bool operator==(const ConstraintSpec&, const ConstraintSpec&) = default;
};

class ConstraintRules {
 public:
  // With must_call: so many messages of thinking, then a call.
  static constexpr int32_t kMaxThoughtsBeforeCall = 2;

  // `ends`: the tokens that may end a plain output. `index` outlives this. kInvalidArgument: a
  // schema, or nothing is allowed; kFailedPrecondition: the tokenizer lacks what harmony needs.
  static absl::StatusOr<std::unique_ptr<ConstraintRules>> Create(const ConstraintSpec& spec,
                                                                 const std::vector<TokenId>& ends,
                                                                 const TokenIndex* index);

  ConstraintRules(const ConstraintRules&) = delete;
  ConstraintRules& operator=(const ConstraintRules&) = delete;

 private:
  friend class Constraint;

  // What a message's content may be, and what ends it.
  struct Content {
    enum class Kind : uint8_t { kThought, kPreamble, kAnswer, kCall };
    Kind kind = Kind::kThought;
    std::optional<JsonGraph> graph;  // Of its JSON; none: any text
    std::vector<TokenId> ends;
  };

  explicit ConstraintRules(const TokenIndex* index) : index_(*index) {}

  absl::Status AddPlain(const ConstraintSpec& spec, const std::vector<TokenId>& ends);
  absl::Status AddHarmony(const ConstraintSpec& spec);
  absl::Status AddCalls(const ConstraintSpec& spec, const std::vector<HeaderTrie::Node>& roots);
  int32_t AddContent(Content::Kind kind, std::optional<JsonGraph> graph, Marker end);

  const TokenIndex& index_;
  std::optional<Markers> markers_;  // None: plain
  std::vector<Content> contents_;
  HeaderTrie headers_;
  HeaderTrie::Node first_ = 0;   // Where the first header begins, after <|start|>assistant
  HeaderTrie::Node next_ = 0;    // Between two messages
  HeaderTrie::Node forced_ = 0;  // Between two messages, when a call is due
  bool must_call_ = false;
};

class Constraint {
 public:
  // `rules` outlive every copy.
  explicit Constraint(const ConstraintRules* rules);

  // False, and no change, if the rules do not allow the token here.
  bool Advance(TokenId token);

  // The tokens that Advance() would take. After the end: those that end an output.
  TokenSet Allowed() const;

  bool has_ended() const { return place_ == Place::kEnd; }

 private:
  enum class Place : uint8_t { kHeader, kContent, kEnd };

  void Enter(int32_t content);
  bool Leave(TokenId token);

  const ConstraintRules* rules_;
  Place place_ = Place::kHeader;
  HeaderTrie::Node header_ = 0;
  int32_t content_ = 0;
  std::optional<GrammarState> document_;  // In content with a schema
  int32_t num_thoughts_ = 0;
};

}  // namespace shoal
