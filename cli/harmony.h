// `shoal harmony`: the harmony engine and the OpenAI mapping from the shell. "What prompt does my
// request make?"
#pragma once

namespace shoal {

// argv[0] is the subcommand's name. Returns the exit code (cli/options.h): kExitFailed if a line of
// --jsonl was refused.
int RunHarmony(int argc, char** argv);

}  // namespace shoal
