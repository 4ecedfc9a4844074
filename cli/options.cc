#include "cli/options.h"

#include <sched.h>

#include <algorithm>
#include <cstdio>

#include "absl/strings/ascii.h"
#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"

#include "base/status_macros.h"
#include "kernels/cpu/backend.h"

namespace shoal {
namespace {

std::vector<int> UsableCpus() {
  cpu_set_t set;
  std::vector<int> cpus;
  if (sched_getaffinity(0, sizeof(set), &set) == 0) {
    for (int cpu = 0; cpu < CPU_SETSIZE; ++cpu) {
      if (CPU_ISSET(cpu, &set)) cpus.push_back(cpu);
    }
  }
  return cpus;
}

// Empty: it is one.
std::string KnowsExchange(const std::string& exchange) {
  for (const char* const kind : {"local", "unix", "tcp", "shm", "nccl"}) {
    if (exchange == kind) return "";
  }
  if (absl::StartsWith(exchange, "nccl:")) return "";
  return absl::StrCat(exchange, " is none of local, unix, tcp, shm, nccl and nccl:LIBRARY");
}

}  // namespace

int ExitCode(const absl::Status& status) {
  switch (status.code()) {
    case absl::StatusCode::kOk:
      return kExitOk;
    case absl::StatusCode::kInvalidArgument:
    case absl::StatusCode::kOutOfRange:
      return kExitUsage;
    case absl::StatusCode::kUnavailable:
    case absl::StatusCode::kResourceExhausted:
      return kExitUnavailable;
    case absl::StatusCode::kFailedPrecondition:
    case absl::StatusCode::kDataLoss:
    case absl::StatusCode::kNotFound:
    case absl::StatusCode::kUnimplemented:
      return kExitPrecondition;
    case absl::StatusCode::kDeadlineExceeded:
      return kExitTimeout;
    case absl::StatusCode::kUnauthenticated:
    case absl::StatusCode::kPermissionDenied:
      return kExitUnauthenticated;
    default:
      return kExitFailed;
  }
}

int Fail(const absl::Status& status) {
  std::fprintf(stderr, "shoal: %s\n", std::string(status.message()).c_str());
  return ExitCode(status);
}

absl::StatusOr<std::vector<TokenId>> ParseTokens(absl::string_view text) {
  std::vector<TokenId> tokens;
  for (absl::string_view part : absl::StrSplit(text, ',')) {
    part = absl::StripAsciiWhitespace(part);
    int32_t id = 0;
    if (!absl::SimpleAtoi(part, &id) || id < 0) {
      return absl::InvalidArgumentError(absl::StrCat(
          "--tokens: \"", part, "\" is not a token id; expected ids of at least 0, as in 1,2,3"));
    }
    tokens.push_back(TokenId{id});
  }
  return tokens;
}

void AddClusterOptions(CLI::App& app, ClusterOptions* options, bool model_is_required) {
  const std::string group = "Cluster";
  CLI::Option* model = app.add_option("--model",
                                      options->model,
                                      "checkpoint folder (Hugging Face MXFP4, original/ or BF16); "
                                      "with --load-format dummy also tiny, 20b or 120b");
  if (model_is_required) model->required();
  model->group(group);
  app.add_option("--model-name",
                 options->name,
                 "what clients call the model; default: the folder's last part")
      ->group(group);
  app.add_option(
         "--load-format",
         options->load_format,
         "auto: read the files, and BF16 experts that hold MXFP4 values become MXFP4 again; "
         "stored: read the files, BF16 experts stay so; dummy: weights from a formula")
      ->check(CLI::IsMember({"auto", "stored", "dummy"}))
      ->capture_default_str()
      ->group(group);
  app.add_option("--workers", options->workers, "worker processes on this host")
      ->check(CLI::Range(1, 64))
      ->capture_default_str()
      ->group(group);
  app.add_option("--copies", options->copies, "copies of every expert")
      ->check(CLI::Range(1, 8))
      ->capture_default_str()
      ->group(group);
  app.add_option("--min-workers", options->min_workers, "go on after a loss with at least so many")
      ->check(CLI::Range(1, 64))
      ->capture_default_str()
      ->group(group);
  app.add_option("--exchange",
                 options->exchange,
                 "how workers exchange rows: local (threads of one process), unix, tcp, shm, nccl "
                 "or nccl:LIBRARY")
      ->check(KnowsExchange)
      ->capture_default_str()
      ->group(group);
  app.add_option("--backend",
                 options->backend,
                 "cpu; cuda: worker i computes on GPU i; cuda:INDEX: all workers on one GPU")
      ->capture_default_str()
      ->group(group);
  app.add_option(
         "--threads", options->threads, "per worker; 0: the host's cores divided among them")
      ->check(CLI::Range(0, 512))
      ->capture_default_str()
      ->group(group);
  app.add_option(
         "--isa", options->isa, "instruction set: scalar, avx2, avx512; default: the best there is")
      ->check(CLI::IsMember({"scalar", "avx2", "avx512"}))
      ->group(group);
  app.add_option(
         "--kv-tokens", options->kv_tokens, "K/V cache per worker in tokens; 0: what memory allows")
      ->check(CLI::Range(int64_t{0}, int64_t{1} << 40))
      ->capture_default_str()
      ->group(group);
  app.add_option("--memory",
                 options->memory,
                 "bytes for all workers together, 16GB or 12GiB; 0: what is available")
      ->transform(CLI::AsSizeValue(false))
      ->capture_default_str()
      ->group(group);
  app.add_option("--chunk", options->chunk, "prompt tokens of one sequence per step")
      ->check(CLI::Range(1, 65536))
      ->capture_default_str()
      ->group(group);
  app.add_option("--max-rows", options->max_rows, "rows of one worker per step")
      ->check(CLI::Range(1, 65536))
      ->capture_default_str()
      ->group(group);
  app.add_flag("!--no-prefix-cache", options->prefix_cache, "compute every prompt anew")
      ->group(group);
  app.add_option("--force-preempt-every",
                 options->force_preempt_every,
                 "tests: preempt every so many steps")
      ->check(CLI::Range(0, 1 << 20))
      ->group(group);
  app.add_option("--pipeline-depth", options->pipeline_depth, "plans in flight")
      ->check(CLI::Range(1, 2))
      ->capture_default_str()
      ->group(group);
}

int ThreadsPerWorker(const ClusterOptions& options) {
  if (options.threads > 0) return options.threads;
  return std::max(1, static_cast<int>(UsableCpus().size()) / options.workers);
}

std::vector<int> CpusOfWorker(const ClusterOptions& options, int index) {
  const std::vector<int> usable = UsableCpus();
  const int threads = ThreadsPerWorker(options);
  std::vector<int> cpus;
  if (usable.empty() || threads > static_cast<int>(usable.size())) return cpus;
  for (int i = 0; i < threads; ++i) {
    cpus.push_back(usable[static_cast<size_t>(index * threads + i) % usable.size()]);
  }
  return cpus;
}

int ParseOrExitCode(CLI::App& app, int argc, char** argv) {
  try {
    app.parse(argc, argv);
  } catch (const CLI::ParseError& error) {
    // --help and --version are "errors" too, with code 0.
    return app.exit(error) == 0 ? kExitOk : kExitUsage;
  }
  return -1;
}

}  // namespace shoal
