// The subcommand `shoal coordinator`; see its --help.
#pragma once

namespace shoal {

// argv[0] is the subcommand's name. Returns the exit code.
int RunCoordinatorCommand(int argc, char** argv);

}  // namespace shoal
