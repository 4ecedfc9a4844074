// The last two steps of compiling a schema: unions made flat, heights found.
#pragma once

#include <functional>
#include <string>

#include "absl/status/status.h"

#include "coordinator/text/json_graph.h"

namespace shoal {

// Unions may hold unions before, and hold none after. kInvalidArgument: a union is among its own
// alternatives, or has too many; the root has no document, or only ones that are too deep. `name`
// gives a node's place in the schema.
absl::Status FinishJsonGraph(const std::function<std::string(JsonNode::Index)>& name,
                             JsonGraph* graph);

}  // namespace shoal
