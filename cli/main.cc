// Picks the subcommand.

#include <malloc.h>

#include <cstdio>
#include <cstring>

#include "cli/bench.h"
#include "cli/chat.h"
#include "cli/coordinator.h"
#include "cli/doctor.h"
#include "cli/generate.h"
#include "cli/harmony.h"
#include "cli/inspect.h"
#include "cli/logits.h"
#include "cli/options.h"
#include "cli/serve.h"
#include "cli/status.h"
#include "cli/synth.h"
#include "cli/tokenize.h"
#include "cli/worker.h"

namespace shoal {
namespace {

struct Command {
  const char* name;
  int (*run)(int argc, char** argv);
  const char* summary;
};

constexpr Command kCommands[] = {
    {"serve", RunServe, "coordinator and workers on this host"},
    {"coordinator", RunCoordinatorCommand, "the coordinator alone; workers dial it"},
    {"worker", RunWorkerCommand, "one worker"},
    {"chat", RunChat, "a conversation in the terminal"},
    {"generate", RunGenerate, "one answer, from a server or a cluster started for it"},
    {"status", RunStatus, "the fleet on one screen"},
    {"doctor", RunDoctor, "this host's network, NCCL and GPUs, and what is wrong with them"},
    {"inspect", RunInspect, "look at a checkpoint: geometry, soundness, bytes per rank"},
    {"synth", RunSynth, "write a synthetic checkpoint in the release's format"},
    {"logits", RunLogits, "logits of a prompt as a NumPy file"},
    {"tokenize", RunTokenize, "text to token ids"},
    {"detokenize", RunDetokenize, "token ids to text"},
    {"harmony", RunHarmony, "what the model reads and writes: prompts, messages, tool types"},
    {"bench", RunBench, "decode, prefill and batch figures beside their ceilings"},
};

void PrintUsage(std::FILE* out) {
  std::fprintf(out,
               "shoal %s: serves gpt-oss models from a fleet of machines\n\n"
               "usage: shoal COMMAND [OPTIONS]      shoal COMMAND --help\n\n",
               SHOAL_VERSION);
  for (const Command& command : kCommands) {
    std::fprintf(out, "  %-12s %s\n", command.name, command.summary);
  }
  std::fprintf(out,
               "\nfirst steps:\n  shoal synth /tmp/model --geometry tiny --vocab 512\n"
               "  shoal generate --model /tmp/model --workers 4 --prompt Hello --max-tokens 32\n");
}

// Every arena of the allocator keeps what its busiest moment needed, and gRPC's threads, which come
// and go, would spread over eight a core: a coordinator then grows for hours under a steady load.
constexpr int kMaxArenas = 2;

int Main(int argc, char** argv) {
  mallopt(M_ARENA_MAX, kMaxArenas);
  if (argc < 2) {
    PrintUsage(stderr);
    return kExitUsage;
  }
  if (std::strcmp(argv[1], "--help") == 0 || std::strcmp(argv[1], "-h") == 0 ||
      std::strcmp(argv[1], "help") == 0) {
    PrintUsage(stdout);
    return kExitOk;
  }
  if (std::strcmp(argv[1], "--version") == 0) {
    std::printf("shoal %s\n", SHOAL_VERSION);
    return kExitOk;
  }
  for (const Command& command : kCommands) {
    if (std::strcmp(argv[1], command.name) == 0) return command.run(argc - 1, argv + 1);
  }
  std::fprintf(stderr, "shoal: there is no command \"%s\"\n\n", argv[1]);
  PrintUsage(stderr);
  return kExitUsage;
}

}  // namespace
}  // namespace shoal

int main(int argc, char** argv) {
  return shoal::Main(argc, argv);
}
