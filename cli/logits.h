// The subcommand `shoal logits`; see its --help.
#pragma once

namespace shoal {

// argv[0] is the subcommand's name. Returns the exit code.
int RunLogits(int argc, char** argv);

}  // namespace shoal
