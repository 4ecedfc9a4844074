// What the chat interfaces let a client demand of its answer, in our words, and the rules that
// follow from it.
#pragma once

#include <optional>
#include <string>
#include <vector>

#include "absl/status/statusor.h"

#include "coordinator/text/constraint.h"

namespace shoal {

struct AnswerDemand {
  enum class Format : uint8_t { kText, kJsonObject, kJsonSchema };
  enum class Calls : uint8_t { kAllowed, kForbidden, kRequired };

  struct Tool {
    std::string name;
    std::optional<std::string> parameters;  // JSON schema
    bool is_strict = false;                 // Arguments follow it, whatever the model would write
  };

  Format format = Format::kText;
  std::string schema;       // kJsonSchema
  std::vector<Tool> tools;  // Those in the prompt
  Calls calls = Calls::kAllowed;
  // Of `tools`, the only ones that may be called: of one, if one is named. Empty: all.
  std::vector<std::string> callable;
};

// nullopt: nothing is demanded that the model could not be left to itself for. kInvalidArgument: a
// tool that is not there. Schemas are looked at by ConstraintRules::Create.
absl::StatusOr<std::optional<ConstraintSpec>> ConstraintOf(const AnswerDemand& demand);

}  // namespace shoal
