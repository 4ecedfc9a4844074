#include "coordinator/serve/request_constraint.h"

#include <algorithm>
#include <optional>
#include <vector>

#include "absl/strings/str_cat.h"

#include "base/status_macros.h"
#include "coordinator/text/answer_demand.h"

namespace shoal {
namespace {

constexpr char kAnyObject[] = R"({"type":"object"})";

void Set(const ConstraintSpec& spec, fleet::v1::Constraint* out) {
  out->set_is_plain(spec.is_plain);
  out->set_answer_schema(spec.answer_schema);
  out->set_must_call(spec.must_call);
  for (const ConstraintSpec::Function& function : spec.functions) {
    fleet::v1::Constraint::Function* added = out->add_functions();
    added->set_name(function.name);
    added->set_parameters(function.parameters);
  }
}

// Rules say when an answer ends; limits that say otherwise would leave no token to sample.
absl::Status CheckLimits(const v1::Limits& limits) {
  if (limits.min_tokens() > 0) {
    return absl::InvalidArgumentError(
        absl::StrCat("limits.min_tokens must be 0 where the answer has to be structured: ",
                     limits.min_tokens()));
  }
  if (limits.ignore_eos()) {
    return absl::InvalidArgumentError(
        "limits.ignore_eos must not be set where the answer has to be structured");
  }
  return absl::OkStatus();
}

AnswerDemand DemandOf(const ApiRequest& asked) {
  AnswerDemand demand{.schema = asked.format.schema, .callable = asked.tool_choice.allowed};
  if (asked.format.kind == OutputFormat::Kind::kJsonObject) {
    demand.format = AnswerDemand::Format::kJsonObject;
  } else if (asked.format.kind == OutputFormat::Kind::kJsonSchema) {
    demand.format = AnswerDemand::Format::kJsonSchema;
  }
  if (asked.tool_choice.mode == ToolChoice::Mode::kNone) {
    demand.calls = AnswerDemand::Calls::kForbidden;
  } else if (asked.tool_choice.mode == ToolChoice::Mode::kRequired) {
    demand.calls = AnswerDemand::Calls::kRequired;
  }
  for (const HarmonyFunction& function : asked.conversation.functions) {
    demand.tools.push_back({function.name, function.parameters, function.is_strict});
  }
  return demand;
}

}  // namespace

absl::StatusOr<ConstraintSpec> PlainConstraint(const v1::ResponseFormat& format) {
  ConstraintSpec spec{.is_plain = true};
  switch (format.format_case()) {
    case v1::ResponseFormat::kJsonObject:
      spec.answer_schema = kAnyObject;
      return spec;
    case v1::ResponseFormat::kJsonSchema:
      if (format.json_schema().schema_json().empty()) {
        return absl::InvalidArgumentError("constraint.json_schema needs a schema_json");
      }
      spec.answer_schema = format.json_schema().schema_json();
      return spec;
    case v1::ResponseFormat::kText:
    case v1::ResponseFormat::FORMAT_NOT_SET:
      break;
  }
  return absl::InvalidArgumentError(
      "constraint must be json_object or json_schema; leave it out for free text");
}

absl::Status Constrain(const ConstraintSpec& spec,
                       const ServedModel& model,
                       const v1::Limits& limits,
                       Request* request,
                       fleet::v1::Envelope* envelope) {
  RETURN_IF_ERROR(NeedTokenizer(model, "structured output").status());
  RETURN_IF_ERROR(CheckLimits(limits));
  std::vector<TokenId>& stops = request->sampling.stop_tokens;
  if (!spec.is_plain) {
    for (const absl::string_view marker : {"<|return|>", "<|call|>"}) {
      const std::optional<TokenId> id = model.tokenizer->Special(marker);
      if (id.has_value()) stops.push_back(*id);
    }
    std::sort(stops.begin(), stops.end());
    stops.erase(std::unique(stops.begin(), stops.end()), stops.end());
  }
  RETURN_IF_ERROR(ConstraintRules::Create(spec, stops, model.token_index).status());
  Set(spec, envelope->mutable_constraint());
  request->is_constrained = true;
  return absl::OkStatus();
}

absl::Status ConstrainChat(const ApiRequest& asked,
                           const ServedModel& model,
                           Request* request,
                           fleet::v1::Envelope* envelope) {
  ASSIGN_OR_RETURN(const std::optional<ConstraintSpec> spec, ConstraintOf(DemandOf(asked)));
  if (!spec.has_value()) return absl::OkStatus();
  RETURN_IF_ERROR(Constrain(*spec, model, v1::Limits(), request, envelope));
  envelope->clear_stop_tokens();
  for (const TokenId id : request->sampling.stop_tokens) envelope->add_stop_tokens(id.value);
  return absl::OkStatus();
}

ConstraintSpec SpecOf(const fleet::v1::Envelope& envelope) {
  const fleet::v1::Constraint& constraint = envelope.constraint();
  ConstraintSpec spec{.is_plain = constraint.is_plain(),
                      .answer_schema = constraint.answer_schema(),
                      .functions = {},
                      .must_call = constraint.must_call()};
  for (const auto& function : constraint.functions()) {
    spec.functions.push_back({function.name(), function.parameters()});
  }
  return spec;
}

std::vector<TokenId> EndsOf(const fleet::v1::Envelope& envelope) {
  std::vector<TokenId> ends;
  for (const int32_t id : envelope.stop_tokens()) ends.push_back(TokenId{id});
  return ends;
}

}  // namespace shoal
