#include "cli/worker.h"

#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "cli/model.h"
#include "cli/options.h"

#include "base/status_macros.h"

namespace shoal {
namespace {

struct WorkerCommandOptions {
  ClusterOptions cluster;  // Of it: model, load format, isa, memory, kv tokens
  WorkerProcessOptions worker;
};

absl::Status Run(WorkerCommandOptions options) {
  ASSIGN_OR_RETURN(options.worker.dummy, DummyConfig(options.cluster));
  options.worker.model = options.cluster.model;
  options.worker.bf16_experts = Bf16ExpertsOf(options.cluster);
  options.worker.version = SHOAL_VERSION;
  return RunWorker(options.worker);
}

}  // namespace

int RunWorkerCommand(int argc, char** argv) {
  CLI::App app(
      "One worker: dials the coordinator, loads the experts it is told to hold, and computes. Ends "
      "on SIGTERM, or with "
      "exit code 3 if its id is in use, 4 if a coordinator will not have it, or 7 if NCCL or the "
      "device hangs.",
      "shoal worker");
  WorkerCommandOptions options;
  WorkerProcessOptions& worker = options.worker;
  app.add_option(
         "--coordinator", worker.coordinators, "HOST:PORT or unix:/path; may be given again")
      ->required();
  app.add_option("--id", worker.id, "this worker's identity, unique in the fleet")->required();
  app.add_option("--model",
                 options.cluster.model,
                 "checkpoint folder; with --load-format dummy also tiny, 20b or 120b")
      ->required();
  app.add_option("--load-format", options.cluster.load_format, "auto, stored or dummy; see serve")
      ->check(CLI::IsMember({"auto", "stored", "dummy"}))
      ->capture_default_str();
  app.add_option("--exchange",
                 worker.exchange,
                 "tcp:HOST:PORT (port 0: any), unix:[/path], shm:[/path] or nccl[:LIBRARY]")
      ->capture_default_str();
  app.add_option("--host", worker.host, "failure domain; default: this host's name");
  app.add_option("--backend", worker.backend, "cpu, cuda (the first GPU) or cuda:INDEX")
      ->capture_default_str();
  app.add_option("--threads", worker.threads, "that compute")
      ->check(CLI::Range(1, 512))
      ->capture_default_str();
  app.add_option("--cpus", worker.cpus, "pin the threads: one CPU for each")->delimiter(',');
  app.add_option("--isa", worker.isa, "scalar, avx2 or avx512; default: the best there is")
      ->check(CLI::IsMember({"scalar", "avx2", "avx512"}));
  app.add_option(
         "--memory",
         worker.memory_bytes,
         "for weights and K/V, of the host or of the GPU, as 16GB or 12GiB; 0: what is free")
      ->transform(CLI::AsSizeValue(false))
      ->capture_default_str();
  app.add_option(
         "--kv-tokens", worker.kv_tokens, "K/V cache in tokens; 0: what the memory leaves room for")
      ->capture_default_str();
  app.add_option(
      "--dense-fd", worker.dense_fd, "dense weights of the process that started this one");
  app.add_flag("--exit-with-parent", worker.exit_with_parent, "end when the parent does");
  app.add_flag("--quiet", worker.is_quiet, "only errors on stderr");
  app.footer(
      "Example:\n  shoal worker --coordinator 10.0.0.1:8471 --id 0 --model DIR --exchange "
      "tcp:10.0.0.11:8472");
  if (const int code = ParseOrExitCode(app, argc, argv); code >= 0) return code;
  const absl::Status status = Run(options);
  return status.ok() ? kExitOk : Fail(status);
}

std::vector<std::string> WorkerCommand(const std::string& program,
                                       const ClusterOptions& cluster,
                                       const WorkerProcessOptions& worker) {
  std::vector<std::string> command = {program,
                                      "worker",
                                      "--id",
                                      absl::StrCat(worker.id),
                                      "--model",
                                      worker.model,
                                      "--load-format",
                                      cluster.load_format,
                                      "--exchange",
                                      worker.exchange,
                                      "--backend",
                                      worker.backend,
                                      "--threads",
                                      absl::StrCat(worker.threads),
                                      "--memory",
                                      absl::StrCat(worker.memory_bytes),
                                      "--kv-tokens",
                                      absl::StrCat(worker.kv_tokens)};
  for (const std::string& coordinator : worker.coordinators) {
    command.insert(command.end(), {"--coordinator", coordinator});
  }
  if (!worker.cpus.empty())
    command.insert(command.end(), {"--cpus", absl::StrJoin(worker.cpus, ",")});
  if (!worker.isa.empty()) command.insert(command.end(), {"--isa", worker.isa});
  if (!worker.host.empty()) command.insert(command.end(), {"--host", worker.host});
  if (worker.dense_fd >= 0)
    command.insert(command.end(), {"--dense-fd", absl::StrCat(worker.dense_fd)});
  if (worker.exit_with_parent) command.push_back("--exit-with-parent");
  if (worker.is_quiet) command.push_back("--quiet");
  return command;
}

}  // namespace shoal
