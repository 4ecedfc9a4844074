// What the subcommands share: exit codes, token lists, and the options that describe a cluster.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "CLI/CLI.hpp"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"

#include "base/ids.h"

namespace shoal {

// Exit codes of every subcommand.
inline constexpr int kExitOk = 0;
inline constexpr int kExitFailed = 1;
inline constexpr int kExitUsage = 2;
inline constexpr int kExitUnavailable = 3;
inline constexpr int kExitPrecondition = 4;
inline constexpr int kExitTimeout = 5;
inline constexpr int kExitUnauthenticated = 6;

int ExitCode(const absl::Status& status);

// Prints "shoal: <message>" to stderr and returns the exit code.
int Fail(const absl::Status& status);

// "1,2,3" -> ids. Errors name the part that is not a token id.
absl::StatusOr<std::vector<TokenId>> ParseTokens(absl::string_view text);

// A cluster on this host: which model, how many workers, how they compute and exchange.
struct ClusterOptions {
  std::string model;  // Checkpoint folder; with load_format dummy it may be a geometry's name
  std::string name;   // That clients call it by; empty: the folder's last part, or the geometry
  std::string load_format = "auto";  // auto, stored, dummy
  int workers = 1;
  int copies = 1;  // Of every expert
  int min_workers = 1;
  std::string exchange = "shm";  // local, unix, tcp, shm, nccl or nccl:LIBRARY
  std::string backend = "cpu";   // cpu; cuda: worker i has GPU i; cuda:INDEX: all have this one
  int threads = 0;               // Per worker; 0: the host's cores divided among the workers
  std::string isa;               // scalar, avx2, avx512; empty: the best there is
  int64_t kv_tokens = 0;         // Per worker; 0: what its share of the memory allows
  int64_t memory = 0;            // Bytes for all workers together; 0: what the host has available
  int chunk = 512;               // Prompt tokens of one sequence per step
  int max_rows = 512;            // Rows of one worker per step
  bool prefix_cache = true;
  int force_preempt_every = 0;
  int pipeline_depth = 2;
};

// Declares the options above on `app`. `model_is_required`: not for clients of a running server.
void AddClusterOptions(CLI::App& app, ClusterOptions* options, bool model_is_required);

// Threads of one worker: as asked for, else the host's cores divided among the workers, at least 1.
int ThreadsPerWorker(const ClusterOptions& options);

// The CPUs of worker `index`, one for each thread: the host's usable CPUs dealt out in turn, so
// that workers share a CPU only when there are more threads than CPUs.
std::vector<int> CpusOfWorker(const ClusterOptions& options, int index);

// Parses; on an error or --help prints, and returns the exit code to leave with; -1: go on.
int ParseOrExitCode(CLI::App& app, int argc, char** argv);

}  // namespace shoal
