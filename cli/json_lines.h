// One JSON line out for each line in: how scripts talk to subcommands that transform values.
#pragma once

#include <functional>
#include <string>

#include "absl/status/statusor.h"

namespace shoal {

// Converts standard input line by line, each answered at once, so that a script may wait for it.
// `convert` returns the answer as one line of JSON. A refused line becomes {"error": ...}; the
// others go on. Returns the exit code: kExitFailed if a line was refused.
int RunJsonLines(
    const std::function<absl::StatusOr<std::string>(const std::string& line)>& convert);

// All of standard input.
std::string ReadStandardInput();

}  // namespace shoal
