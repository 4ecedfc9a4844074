#include "cli/synth.h"

#include <unistd.h>

#include <cstdint>
#include <cstdio>
#include <map>
#include <string>

#include "CLI/CLI.hpp"
#include "absl/strings/str_cat.h"
#include "cli/options.h"
#include "cli/synthetic_checkpoint.h"
#include "cli/synthetic_tokenizer.h"

namespace shoal {
namespace {

struct Options {
  std::string dir;
  std::string geometry = "tiny";
  std::string layout = "hf";
  int64_t shard_bytes = kReleasedShardBytes;
  bool plan_only = false;
};

ModelConfig Geometry(const std::string& name) {
  if (name == "20b") return ModelConfig::GptOss20b();
  if (name == "120b") return ModelConfig::GptOss120b();
  return ModelConfig::Tiny();
}

// The integers of a geometry that an option can replace.
struct Dimension {
  const char* option;
  int ModelConfig::*field;
  const char* help;
  int max;
};

constexpr Dimension kDimensions[] = {
    {"--layers", &ModelConfig::num_layers, "Layers, every other one with a window", 1024},
    {"--experts", &ModelConfig::num_experts, "Experts of a layer", 4096},
    {"--experts-per-token", &ModelConfig::experts_per_token, "Experts chosen per token", 4096},
    {"--hidden", &ModelConfig::hidden, "Hidden size, a multiple of 32", 131'072},
    {"--intermediate", &ModelConfig::intermediate, "Expert size, a multiple of 32", 131'072},
    {"--heads", &ModelConfig::num_heads, "Query heads", 4096},
    {"--kv-heads", &ModelConfig::num_kv_heads, "Key/value heads", 4096},
    {"--head-dim", &ModelConfig::head_dim, "Size of a head, even", 4096},
    {"--vocab",
     &ModelConfig::vocab,
     "Token ids; 512 has every byte of text, 128 only ASCII",
     1 << 24},
    {"--window", &ModelConfig::sliding_window, "Positions a window layer sees", 1 << 20},
    {"--max-positions", &ModelConfig::max_positions, "Context limit", 1 << 20},
};

ModelConfig Resolve(const Options& options, const std::map<std::string, int>& replaced) {
  ModelConfig config = Geometry(options.geometry);
  for (const Dimension& dimension : kDimensions) {
    const auto it = replaced.find(dimension.option);
    if (it != replaced.end() && it->second != 0) config.*dimension.field = it->second;
  }
  config.is_window_layer.clear();
  for (int layer = 0; layer < config.num_layers; ++layer) {
    config.is_window_layer.push_back(layer % 2 == 0);
  }
  config.eos_token_ids = SyntheticEosIds(config.vocab);
  config.storage = options.layout == "bf16" ? ExpertStorage::kBf16 : ExpertStorage::kMxfp4;
  return config;
}

void PrintSummary(const SyntheticCheckpoint& checkpoint) {
  const auto tensors = FileTensors(checkpoint.config, checkpoint.layout);
  int64_t bytes = 0;
  for (const FileTensor& tensor : tensors) bytes += tensor.bytes();
  std::printf("%s: %s, %zu tensors, %lld bytes%s\n",
              checkpoint.dir.c_str(),
              std::string(LayoutName(checkpoint.layout, checkpoint.config.storage)).c_str(),
              tensors.size(),
              static_cast<long long>(bytes),
              checkpoint.is_plan_only ? " (planned: the data is a hole of zeros)" : "");
  if (checkpoint.config.eos_token_ids.empty()) {
    std::printf("no tokenizer.json: %d ids are too few for text, 107 would do\n",
                checkpoint.config.vocab);
  }
}

}  // namespace

int RunSynth(int argc, char** argv) {
  CLI::App app("Writes a checkpoint with weights from a formula, for tests and measurements",
               "shoal synth");
  Options options;
  app.add_option("dir", options.dir, "An empty folder, or one to make")->required();
  app.add_option(
         "--geometry", options.geometry, "tiny, 20b or 120b; single numbers can be replaced")
      ->check(CLI::IsMember({"tiny", "20b", "120b"}))
      ->capture_default_str();
  app.add_option(
         "--layout", options.layout, "hf (MXFP4 as released), original (OpenAI's names), bf16")
      ->check(CLI::IsMember({"hf", "original", "bf16"}))
      ->capture_default_str();
  app.add_option(
         "--shard-bytes", options.shard_bytes, "A new file begins before so many bytes of data")
      ->check(CLI::Range(int64_t{1}, int64_t{1} << 50))
      ->capture_default_str();
  app.add_flag("--plan-only", options.plan_only, "Real headers, index and config, but no data");
  std::map<std::string, int> replaced;
  for (const Dimension& dimension : kDimensions) {
    app.add_option(dimension.option, replaced[dimension.option], dimension.help)
        ->check(CLI::Range(1, dimension.max));
  }
  if (const int code = ParseOrExitCode(app, argc, argv); code >= 0) return code;

  const SyntheticCheckpoint checkpoint{.dir = options.dir,
                                       .config = Resolve(options, replaced),
                                       .layout = options.layout == "original"
                                                     ? CheckpointLayout::kOriginal
                                                     : CheckpointLayout::kHuggingFace,
                                       .shard_bytes = options.shard_bytes,
                                       .is_plan_only = options.plan_only};
  const bool is_terminal = isatty(STDERR_FILENO) == 1;
  int64_t shown = -1;
  const absl::Status status =
      WriteSyntheticCheckpoint(checkpoint, [&](int64_t done, int64_t total) {
        const int64_t percent = done * 100 / total;
        if (!is_terminal || percent == shown) return;
        std::fprintf(
            stderr, "\rwriting %3d %%%s", static_cast<int>(percent), done == total ? "\n" : "");
        shown = percent;
      });
  if (!status.ok()) return Fail(status);
  PrintSummary(checkpoint);
  return kExitOk;
}

}  // namespace shoal
