// The subcommand `shoal worker`; see its --help.
#pragma once

#include <string>
#include <vector>

#include "cli/options.h"

#include "worker/serve/worker_process.h"

namespace shoal {

// argv[0] is the subcommand's name. Returns the exit code.
int RunWorkerCommand(int argc, char** argv);

// The command line that starts `worker` as a process of its own: what RunWorkerCommand parses.
std::vector<std::string> WorkerCommand(const std::string& program,
                                       const ClusterOptions& cluster,
                                       const WorkerProcessOptions& worker);

}  // namespace shoal
