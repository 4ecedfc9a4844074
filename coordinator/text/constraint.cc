#include "coordinator/text/constraint.h"

#include <algorithm>
#include <utility>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"

#include "base/status_macros.h"
#include "coordinator/text/grammar_mask.h"
#include "coordinator/text/json_schema.h"

namespace shoal {
namespace {

using Parts = std::vector<HeaderTrie::Part>;

}  // namespace

absl::StatusOr<std::unique_ptr<ConstraintRules>> ConstraintRules::Create(
    const ConstraintSpec& spec, const std::vector<TokenId>& ends, const TokenIndex* index) {
  std::unique_ptr<ConstraintRules> rules(new ConstraintRules(index));
  RETURN_IF_ERROR(spec.is_plain ? rules->AddPlain(spec, ends) : rules->AddHarmony(spec));
  return rules;
}

absl::Status ConstraintRules::AddPlain(const ConstraintSpec& spec,
                                       const std::vector<TokenId>& ends) {
  ASSIGN_OR_RETURN(JsonGraph graph, CompileJsonSchema(spec.answer_schema));
  Content content{.kind = Content::Kind::kAnswer, .graph = std::move(graph), .ends = {}};
  for (const TokenId end : ends) {
    if (end.value < index_.num_ids()) content.ends.push_back(end);
  }
  if (content.ends.empty()) {
    return absl::InvalidArgumentError(
        "structured output needs a token that ends it: give one in limits.stop_token_ids");
  }
  contents_.push_back(std::move(content));
  return absl::OkStatus();
}

int32_t ConstraintRules::AddContent(Content::Kind kind,
                                    std::optional<JsonGraph> graph,
                                    Marker end) {
  contents_.push_back({.kind = kind, .graph = std::move(graph), .ends = {markers_->id(end)}});
  return static_cast<int32_t>(contents_.size() - 1);
}

absl::Status ConstraintRules::AddHarmony(const ConstraintSpec& spec) {
  RETURN_IF_ERROR(RequireHarmonySpecials(index_.tokenizer()));
  markers_.emplace(index_.tokenizer());
  must_call_ = spec.must_call;
  if (must_call_ && spec.functions.empty()) {
    return absl::InvalidArgumentError("a call is required, and there is no function to call");
  }
  first_ = headers_.AddRoot();
  const HeaderTrie::Node only_calls = headers_.AddRoot();
  next_ = headers_.AddRoot();
  forced_ = headers_.AddRoot();
  headers_.AddWay(next_, Marker::kStart, "assistant", first_);
  headers_.AddWay(forced_, Marker::kStart, "assistant", only_calls);

  headers_.Add(first_,
               {{"", Marker::kChannel}, {"analysis", Marker::kMessage}},
               AddContent(Content::Kind::kThought, std::nullopt, Marker::kEnd));
  if (!must_call_) {
    std::optional<JsonGraph> graph;
    if (!spec.answer_schema.empty()) {
      ASSIGN_OR_RETURN(graph, CompileJsonSchema(spec.answer_schema));
    }
    const int32_t answer = AddContent(Content::Kind::kAnswer, std::move(graph), Marker::kReturn);
    headers_.Add(first_, {{"", Marker::kChannel}, {"final", Marker::kMessage}}, answer);
    if (!spec.answer_schema.empty()) {
      const Parts typed = {
          {"", Marker::kChannel}, {"final ", Marker::kConstrain}, {"json", Marker::kMessage}};
      headers_.Add(first_, typed, answer);
    }
    if (!spec.functions.empty()) {
      headers_.Add(first_,
                   {{"", Marker::kChannel}, {"commentary", Marker::kMessage}},
                   AddContent(Content::Kind::kPreamble, std::nullopt, Marker::kEnd));
    }
  }
  return AddCalls(spec, {first_, only_calls});
}

// The recipient stands before the channel (as the library writes it) or after it (as models mostly
// do); the content type may be left out.
absl::Status ConstraintRules::AddCalls(const ConstraintSpec& spec,
                                       const std::vector<HeaderTrie::Node>& roots) {
  for (const ConstraintSpec::Function& function : spec.functions) {
    std::optional<JsonGraph> graph;
    if (!function.parameters.empty()) {
      absl::StatusOr<JsonGraph> compiled = CompileJsonSchema(function.parameters);
      if (!compiled.ok()) {
        return absl::InvalidArgumentError(
            absl::StrCat("function `", function.name, "`: ", compiled.status().message()));
      }
      graph = *std::move(compiled);
    }
    const int32_t content = AddContent(Content::Kind::kCall, std::move(graph), Marker::kCall);
    const std::string recipient = absl::StrCat(" to=functions.", function.name);
    const std::string after = absl::StrCat("commentary", recipient);
    const std::string after_spaced = absl::StrCat(after, " ");
    for (const HeaderTrie::Node root : roots) {
      headers_.Add(root, {{"", Marker::kChannel}, {after, Marker::kMessage}}, content);
      headers_.Add(
          root, {{recipient, Marker::kChannel}, {"commentary", Marker::kMessage}}, content);
      const HeaderTrie::Part type = {"json", Marker::kMessage};
      for (const absl::string_view text :
           {absl::string_view(after), absl::string_view(after_spaced)}) {
        headers_.Add(root, {{"", Marker::kChannel}, {text, Marker::kConstrain}, type}, content);
      }
      for (const absl::string_view text : {"commentary", "commentary "}) {
        headers_.Add(
            root, {{recipient, Marker::kChannel}, {text, Marker::kConstrain}, type}, content);
      }
    }
  }
  return absl::OkStatus();
}

Constraint::Constraint(const ConstraintRules* rules) : rules_(rules) {
  if (rules->markers_.has_value()) {
    header_ = rules->first_;
  } else {
    Enter(0);
  }
}

void Constraint::Enter(int32_t content) {
  place_ = Place::kContent;
  content_ = content;
  document_.reset();
  const ConstraintRules::Content& entered = rules_->contents_[static_cast<size_t>(content)];
  if (entered.graph.has_value()) document_.emplace(&*entered.graph);
}

bool Constraint::Advance(TokenId token) {
  if (place_ == Place::kEnd) return false;
  const bool is_ordinary = rules_->index_.ordinary().Has(token);
  if (place_ == Place::kContent) {
    if (!is_ordinary) return Leave(token);
    return !document_.has_value() || document_->Advance(*rules_->index_.tokenizer().Bytes(token));
  }
  const std::optional<Marker> marker = rules_->markers_->Find(token);
  if (!is_ordinary && !marker.has_value()) return false;
  const std::optional<HeaderTrie::Node> next =
      marker.has_value() ? rules_->headers_.Step(header_, *marker)
                         : rules_->headers_.Step(header_, *rules_->index_.tokenizer().Bytes(token));
  if (!next.has_value()) return false;
  header_ = *next;
  if (rules_->headers_.content(header_) >= 0) Enter(rules_->headers_.content(header_));
  return true;
}

// The content ends with `token`, if that may end it here.
bool Constraint::Leave(TokenId token) {
  using Kind = ConstraintRules::Content::Kind;
  const ConstraintRules::Content& content = rules_->contents_[static_cast<size_t>(content_)];
  const bool may_end = !document_.has_value() || document_->IsComplete();
  const bool is_end =
      std::find(content.ends.begin(), content.ends.end(), token) != content.ends.end();
  if (!may_end || !is_end) return false;
  document_.reset();
  if (content.kind == Kind::kAnswer || content.kind == Kind::kCall) {
    place_ = Place::kEnd;
    return true;
  }
  ++num_thoughts_;
  const bool is_call_due =
      rules_->must_call_ && num_thoughts_ >= ConstraintRules::kMaxThoughtsBeforeCall;
  place_ = Place::kHeader;
  header_ = is_call_due ? rules_->forced_ : rules_->next_;
  return true;
}

TokenSet Constraint::Allowed() const {
  TokenSet allowed(rules_->index_.num_ids());
  if (place_ == Place::kHeader) {
    rules_->headers_.AddAllowedTokens(header_, *rules_->markers_, rules_->index_, &allowed);
    return allowed;
  }
  const ConstraintRules::Content& content = rules_->contents_[static_cast<size_t>(content_)];
  if (place_ == Place::kContent) {
    if (document_.has_value()) {
      AddAllowedTokens(*document_, rules_->index_, &allowed);
    } else {
      allowed.AddAll(rules_->index_.ordinary());
    }
  }
  if (place_ == Place::kEnd || !document_.has_value() || document_->IsComplete()) {
    for (const TokenId end : content.ends) allowed.Add(end);
  }
  return allowed;
}

}  // namespace shoal
