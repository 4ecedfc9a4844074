#include "coordinator/text/answer_demand.h"

#include <algorithm>
#include <utility>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"

#include "coordinator/text/json_schema.h"

namespace shoal {
namespace {

constexpr char kAnyObject[] = R"({"type":"object"})";
constexpr char kEmptyObject[] = R"({"type":"object","properties":{},"additionalProperties":false})";

// A call that is required is well formed too, as far as its schema can be followed.
std::string ArgumentsOf(const AnswerDemand::Tool& tool, AnswerDemand::Calls calls) {
  const std::string schema = tool.parameters.value_or(kEmptyObject);
  if (tool.is_strict) return schema;
  if (calls != AnswerDemand::Calls::kRequired) return "";
  return CompileJsonSchema(schema).ok() ? schema : kAnyObject;
}

bool DemandsNothing(const AnswerDemand& demand) {
  const bool has_strict = std::any_of(
      demand.tools.begin(), demand.tools.end(), [](const auto& t) { return t.is_strict; });
  const bool leaves_calls =
      demand.calls == AnswerDemand::Calls::kAllowed && !has_strict && demand.callable.empty();
  return demand.format == AnswerDemand::Format::kText && (demand.tools.empty() || leaves_calls) &&
         demand.calls != AnswerDemand::Calls::kRequired;
}

}  // namespace

absl::StatusOr<std::optional<ConstraintSpec>> ConstraintOf(const AnswerDemand& demand) {
  using Calls = AnswerDemand::Calls;
  for (const std::string& name : demand.callable) {
    const bool is_there = std::any_of(
        demand.tools.begin(), demand.tools.end(), [&](const auto& t) { return t.name == name; });
    if (is_there) continue;
    return absl::InvalidArgumentError(
        absl::StrCat("tool_choice names `", name, "`, which is not among the tools"));
  }
  if (demand.calls == Calls::kRequired && demand.tools.empty()) {
    return absl::InvalidArgumentError("tool_choice requires a call, and there are no tools");
  }
  if (DemandsNothing(demand)) return std::nullopt;

  ConstraintSpec spec;
  if (demand.format == AnswerDemand::Format::kJsonObject) spec.answer_schema = kAnyObject;
  if (demand.format == AnswerDemand::Format::kJsonSchema) spec.answer_schema = demand.schema;
  spec.must_call = demand.calls == Calls::kRequired;
  if (demand.calls == Calls::kForbidden) return spec;
  for (const AnswerDemand::Tool& tool : demand.tools) {
    const std::vector<std::string>& callable = demand.callable;
    const bool may_call = callable.empty() ||
                          std::find(callable.begin(), callable.end(), tool.name) != callable.end();
    if (may_call) spec.functions.push_back({tool.name, ArgumentsOf(tool, demand.calls)});
  }
  return spec;
}

}  // namespace shoal
