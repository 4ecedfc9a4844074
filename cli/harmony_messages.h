// Harmony messages as JSON, in the form that openai-harmony writes them.
#pragma once

#include <vector>

#include "absl/status/statusor.h"
#include "nlohmann/json.hpp"

#include "coordinator/text/harmony.h"

namespace shoal {

// From the field "messages" of an object. kInvalidArgument names the field that is wrong, for
// example messages[1].content[0].type.
absl::StatusOr<std::vector<HarmonyMessage>> ReadMessages(const nlohmann::ordered_json& row);

nlohmann::ordered_json WriteMessages(const std::vector<HarmonyMessage>& messages);

}  // namespace shoal
