// The subcommand `shoal generate`; see its --help.
#pragma once

namespace shoal {

// argv[0] is the subcommand's name. Returns the exit code.
int RunGenerate(int argc, char** argv);

}  // namespace shoal
