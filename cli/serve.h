// The subcommand `shoal serve`; see its --help.
#pragma once

namespace shoal {

// argv[0] is the subcommand's name. Returns the exit code.
int RunServe(int argc, char** argv);

}  // namespace shoal
