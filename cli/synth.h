// `shoal synth`: writes a synthetic checkpoint.
#pragma once

namespace shoal {

// argv[0] is the subcommand's name. Returns the exit code: 0, 2 (usage), or by cli/options.h.
int RunSynth(int argc, char** argv);

}  // namespace shoal
