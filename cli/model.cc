#include "cli/model.h"

#include <cstdio>
#include <filesystem>
#include <fstream>
#include <sstream>
#include <utility>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"

#include "base/status_macros.h"

namespace shoal {
namespace {

namespace fs = std::filesystem;

std::optional<std::string> ReadFile(const fs::path& path) {
  std::ifstream file(path, std::ios::binary);
  if (!file) return std::nullopt;
  std::ostringstream text;
  text << file.rdbuf();
  return text.str();
}

std::string NameOf(const std::string& model) {
  const fs::path path = fs::path(model).lexically_normal();
  const std::string name = path.filename().string();
  return name.empty() ? path.parent_path().filename().string() : name;
}

}  // namespace

absl::StatusOr<std::optional<ModelConfig>> DummyConfig(const ClusterOptions& options) {
  if (options.load_format != "dummy") return std::optional<ModelConfig>();
  if (options.model == "tiny") return ModelConfig::Tiny();
  if (options.model == "20b") return ModelConfig::GptOss20b();
  if (options.model == "120b") return ModelConfig::GptOss120b();
  const fs::path folder = options.model;
  const std::optional<std::string> text = ReadFile(folder / "config.json");
  if (!text.has_value()) {
    return absl::InvalidArgumentError(
        absl::StrCat("--load-format dummy --model ",
                     options.model,
                     ": expected tiny, 20b, 120b or a folder with config.json"));
  }
  ASSIGN_OR_RETURN(
      ModelConfig config,
      ParseModelConfig(*text, ReadFile(folder / "generation_config.json").value_or("")));
  return config;
}

Bf16Experts Bf16ExpertsOf(const ClusterOptions& options) {
  return options.load_format == "stored" ? Bf16Experts::kKeep : Bf16Experts::kPackIfExact;
}

absl::StatusOr<OpenedModel> OpenModel(const ClusterOptions& options,
                                      WithTokenizer with_tokenizer,
                                      bool is_quiet) {
  OpenedModel model;
  model.name = options.name.empty() ? NameOf(options.model) : options.name;
  ASSIGN_OR_RETURN(const std::optional<ModelConfig> dummy, DummyConfig(options));
  if (dummy.has_value()) {
    model.source = MakeSyntheticSource(*dummy);
  } else {
    ASSIGN_OR_RETURN(model.source, OpenCheckpoint(options.model, Bf16ExpertsOf(options)));
  }
  if (with_tokenizer == WithTokenizer::kNo) return model;
  const absl::Time start = absl::Now();
  const std::optional<std::string> text = ReadFile(fs::path(options.model) / "tokenizer.json");
  if (!text.has_value()) return model;
  absl::StatusOr<std::unique_ptr<Tokenizer>> tokenizer = Tokenizer::Parse(*text);
  if (!tokenizer.ok()) {
    return absl::Status(
        tokenizer.status().code(),
        absl::StrCat(options.model, "/tokenizer.json: ", tokenizer.status().message()));
  }
  model.tokenizer = *std::move(tokenizer);
  if (!is_quiet) {
    std::fprintf(stderr,
                 "tokenizer: %d ids, loaded in %ld ms\n",
                 model.tokenizer->size(),
                 static_cast<long>(absl::ToInt64Milliseconds(absl::Now() - start)));
  }
  return model;
}

CoordinatorServerOptions ServerOptions(const ClusterOptions& options, const OpenedModel& model) {
  const ModelConfig& config = model.source->config();
  CoordinatorServerOptions server;
  server.version = SHOAL_VERSION;
  server.model_name = model.name;
  server.config = config;
  server.tokenizer = model.tokenizer.get();
  CoordinatorOptions& core = server.coordinator;
  core.num_experts = config.num_experts;
  core.num_layers = config.num_layers;
  core.max_positions = config.max_positions;
  core.sliding_window = config.num_window_layers() > 0 ? config.sliding_window : 0;
  core.workers_per_cell = options.workers;
  core.min_workers = options.min_workers;
  core.expert_copies = options.copies;
  core.max_rows = options.max_rows;
  core.prefill_chunk = options.chunk;
  core.pipeline_depth = options.pipeline_depth;
  core.prefix_cache = options.prefix_cache;
  core.force_preempt_every = options.force_preempt_every;
  return server;
}

std::string AddressOf(const std::string& listen, const CoordinatorServer& server) {
  if (server.port() == 0) return listen;  // A UNIX socket
  return absl::StrCat(listen.substr(0, listen.rfind(':')), ":", server.port());
}

// A worker says where, too: on this host, anywhere. NCCL may come with the library it is in.
std::string WorkerExchange(const std::string& exchange) {
  if (exchange == "tcp") return "tcp:127.0.0.1:0";
  return absl::StrContains(exchange, ':') ? exchange : absl::StrCat(exchange, ":");
}

absl::StatusOr<WorkerProcessOptions> WorkerOptions(const ClusterOptions& options, int index) {
  WorkerProcessOptions worker;
  worker.id = static_cast<uint32_t>(index);
  worker.version = SHOAL_VERSION;
  worker.model = options.model;
  worker.bf16_experts = Bf16ExpertsOf(options);
  ASSIGN_OR_RETURN(worker.dummy, DummyConfig(options));
  worker.exchange = WorkerExchange(options.exchange);
  worker.backend = options.backend == "cuda" ? absl::StrCat("cuda:", index) : options.backend;
  worker.threads = ThreadsPerWorker(options);
  worker.cpus = CpusOfWorker(options, index);
  worker.isa = options.isa;
  worker.kv_tokens = options.kv_tokens;
  return worker;
}

LoadProgress ProgressPrinter(absl::string_view what, bool is_quiet) {
  if (is_quiet) return [](int64_t, int64_t) { return true; };
  const absl::Time start = absl::Now();
  return [what = std::string(what), start, last = start](int64_t done, int64_t total) mutable {
    const absl::Time now = absl::Now();
    if (done < total && now - last < absl::Seconds(1)) return true;
    last = now;
    const double seconds = absl::ToDoubleSeconds(now - start);
    std::fprintf(stderr,
                 "%s: %.2f of %.2f GB, %.2f GB/s\n",
                 what.c_str(),
                 static_cast<double>(done) / 1e9,
                 static_cast<double>(total) / 1e9,
                 seconds > 0 ? static_cast<double>(done) / 1e9 / seconds : 0.0);
    return true;
  };
}

}  // namespace shoal
