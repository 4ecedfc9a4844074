// Opens the model that the options of a cluster name, and turns those options into what
// coordinators and workers take.
#pragma once

#include <memory>
#include <optional>
#include <string>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "cli/options.h"

#include "coordinator/serve/server.h"
#include "coordinator/text/tokenizer.h"
#include "model/config.h"
#include "worker/load/loader.h"
#include "worker/serve/worker_process.h"

namespace shoal {

// With load_format dummy: the geometry by its name, or the config.json of a folder. nullopt
// otherwise.
absl::StatusOr<std::optional<ModelConfig>> DummyConfig(const ClusterOptions& options);

Bf16Experts Bf16ExpertsOf(const ClusterOptions& options);

struct OpenedModel {
  std::string name;  // The folder's last part, or the geometry
  std::unique_ptr<WeightSource> source;
  std::unique_ptr<Tokenizer> tokenizer;  // Null: none was asked for, or the checkpoint has none
};

enum class WithTokenizer { kNo, kIfThere };

// A checkpoint without tokenizer.json serves token ids; one with a bad tokenizer.json is an error.
// Prints to stderr how long the tokenizer took to load, unless `is_quiet`.
absl::StatusOr<OpenedModel> OpenModel(const ClusterOptions& options,
                                      WithTokenizer with_tokenizer,
                                      bool is_quiet);

// What a coordinator of this cluster is started with, but for the addresses. Points into `model`.
CoordinatorServerOptions ServerOptions(const ClusterOptions& options, const OpenedModel& model);

// Where clients reach a started server: `listen` with the port it really has.
std::string AddressOf(const std::string& listen, const CoordinatorServer& server);

// What worker `index` is started with, but for the coordinator's address, dense weights and memory.
absl::StatusOr<WorkerProcessOptions> WorkerOptions(const ClusterOptions& options, int index);

// Prints "<what>: 1.20 of 3.40 GB" to stderr, at most once a second, and the rate at the end.
LoadProgress ProgressPrinter(absl::string_view what, bool is_quiet);

}  // namespace shoal
