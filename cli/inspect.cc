#include "cli/inspect.h"

#include <cstdio>
#include <memory>

#include "CLI/CLI.hpp"
#include "absl/strings/str_cat.h"
#include "cli/options.h"
#include "nlohmann/json.hpp"

#include "base/status_macros.h"
#include "kernels/cpu/backend.h"
#include "model/tensors.h"
#include "worker/load/checkpoint.h"
#include "worker/load/loader.h"

namespace shoal {
namespace {

struct Sizes {
  int64_t dense_stored = 0;
  int64_t expert_stored = 0;  // One expert in all layers
  int64_t dense_parameters = 0;
  int64_t expert_parameters = 0;  // One expert in all layers
};

// Elements that are numbers of the model: an MXFP4 code byte is two, a scale none.
int64_t Parameters(const ModelTensor& tensor) {
  switch (tensor.kind) {
    case TensorKind::kGateUpCodes:
    case TensorKind::kDownCodes:
      return 2 * tensor.num_elements();
    case TensorKind::kGateUpScales:
    case TensorKind::kDownScales:
      return 0;
    default:
      return tensor.num_elements();
  }
}

Sizes Measure(const ModelConfig& config) {
  Sizes sizes;
  for (const ModelTensor& tensor : ModelTensors(config)) {
    if (ClassOf(tensor.kind) == TensorClass::kDense) {
      sizes.dense_stored += tensor.bytes();
      sizes.dense_parameters += Parameters(tensor);
    } else {
      sizes.expert_stored += tensor.bytes_per_expert();
      sizes.expert_parameters += Parameters(tensor) / config.num_experts;
    }
  }
  return sizes;
}

// Experts are balanced over the ranks to within one; the first ranks have the larger part.
int32_t ExpertsOfRank(const ModelConfig& config, const InspectArgs& args, int rank) {
  const int copies = config.num_experts * args.copies;
  return copies / args.workers + (rank < copies % args.workers ? 1 : 0);
}

std::string Grouped(int64_t number) {
  std::string digits = absl::StrCat(number);
  for (size_t at = digits.size(); at > 3; at -= 3) digits.insert(at - 3, ",");
  return digits;
}

void Print(const Inspection& i, const InspectArgs& args) {
  const ModelConfig& c = i.config;
  std::printf("%s: sound (%s)\n", i.dir.c_str(), i.layout.c_str());
  std::printf("  digest      %s\n", i.digest.c_str());
  std::printf(
      "  geometry    %d layers (%d with a window of %d), hidden %d, %d experts of %d, %d per "
      "token\n",
      c.num_layers,
      c.num_window_layers(),
      c.sliding_window,
      c.hidden,
      c.num_experts,
      c.intermediate,
      c.experts_per_token);
  std::printf("  attention   %d query and %d key/value heads of %d; context %s; vocabulary %s\n",
              c.num_heads,
              c.num_kv_heads,
              c.head_dim,
              Grouped(c.max_positions).c_str(),
              Grouped(c.vocab).c_str());
  std::printf("  parameters  %s, of which %s work on a token\n",
              Grouped(i.num_parameters).c_str(),
              Grouped(i.num_active_parameters).c_str());
  std::printf("  files       %s with %s tensors of %s bytes\n",
              Grouped(i.num_files).c_str(),
              Grouped(i.num_tensors).c_str(),
              Grouped(i.tensor_bytes).c_str());
  std::printf("  %d workers, %d %s of each expert%s:\n",
              args.workers,
              args.copies,
              args.copies == 1 ? "copy" : "copies",
              args.has_shared_dense ? ", dense weights shared" : "");
  std::printf("    %-6s %8s %18s %18s\n", "rank", "experts", "bytes read", "bytes resident");
  for (size_t rank = 0; rank < i.ranks.size(); ++rank) {
    std::printf("    %-6zu %8d %18s %18s\n",
                rank,
                i.ranks[rank].num_experts,
                Grouped(i.ranks[rank].bytes_read).c_str(),
                Grouped(i.ranks[rank].bytes_resident).c_str());
  }
  if (args.has_shared_dense) {
    std::printf("    %-6s %8s %18s %18s\n",
                "parent",
                "",
                Grouped(i.parent_bytes_read).c_str(),
                Grouped(i.parent_bytes_resident).c_str());
  }
}

}  // namespace

absl::StatusOr<Inspection> Inspect(const InspectArgs& args) {
  ASSIGN_OR_RETURN(const std::unique_ptr<Checkpoint> checkpoint, Checkpoint::Open(args.dir));
  const ModelConfig& config = checkpoint->config();
  const Sizes sizes = Measure(config);
  const CpuBackend backend(CpuBackendOptions{.num_threads = 1});  // For its packed sizes
  const int64_t dense_resident = DenseSegmentBytes(config);
  const int64_t expert_resident = ExpertResidentBytes(config, backend);

  Inspection result{.dir = checkpoint->dir(),
                    .config = config,
                    .layout = std::string(LayoutName(checkpoint->layout(), config.storage)),
                    .digest = checkpoint->digest(),
                    .num_files = std::ssize(checkpoint->files()),
                    .num_tensors = checkpoint->num_tensors(),
                    .tensor_bytes = checkpoint->tensor_bytes()};
  for (const CheckpointFile& file : checkpoint->files()) result.file_bytes += file.reader.bytes();
  result.num_parameters = sizes.dense_parameters + config.num_experts * sizes.expert_parameters;
  result.num_active_parameters = sizes.dense_parameters - int64_t{config.vocab} * config.hidden +
                                 config.experts_per_token * sizes.expert_parameters;
  for (int rank = 0; rank < args.workers; ++rank) {
    const int32_t experts = ExpertsOfRank(config, args, rank);
    result.ranks.push_back(
        {.num_experts = experts,
         .bytes_read = checkpoint->bytes_read_by_open() + experts * sizes.expert_stored,
         .bytes_resident = experts * expert_resident});
    if (!args.has_shared_dense) {
      result.ranks.back().bytes_read += sizes.dense_stored;
      result.ranks.back().bytes_resident += dense_resident;
    }
  }
  if (args.has_shared_dense) {
    result.parent_bytes_read = checkpoint->bytes_read_by_open() + sizes.dense_stored;
    result.parent_bytes_resident = dense_resident;
  }
  return result;
}

std::string InspectionToJson(const Inspection& i) {
  const ModelConfig& c = i.config;
  nlohmann::ordered_json ranks = nlohmann::ordered_json::array();
  for (size_t rank = 0; rank < i.ranks.size(); ++rank) {
    ranks.push_back({{"rank", rank},
                     {"experts", i.ranks[rank].num_experts},
                     {"bytes_read", i.ranks[rank].bytes_read},
                     {"bytes_resident", i.ranks[rank].bytes_resident}});
  }
  const nlohmann::ordered_json json = {
      {"dir", i.dir},
      {"sound", true},
      {"layout", i.layout},
      {"digest", i.digest},
      {"geometry",
       {{"num_layers", c.num_layers},
        {"num_window_layers", c.num_window_layers()},
        {"sliding_window", c.sliding_window},
        {"hidden", c.hidden},
        {"intermediate", c.intermediate},
        {"num_experts", c.num_experts},
        {"experts_per_token", c.experts_per_token},
        {"num_heads", c.num_heads},
        {"num_kv_heads", c.num_kv_heads},
        {"head_dim", c.head_dim},
        {"vocab", c.vocab},
        {"max_positions", c.max_positions},
        {"eos_token_ids", c.eos_token_ids}}},
      {"parameters", i.num_parameters},
      {"active_parameters", i.num_active_parameters},
      {"files", i.num_files},
      {"file_bytes", i.file_bytes},
      {"tensors", i.num_tensors},
      {"tensor_bytes", i.tensor_bytes},
      {"ranks", ranks},
      {"parent",
       {{"bytes_read", i.parent_bytes_read}, {"bytes_resident", i.parent_bytes_resident}}}};
  return json.dump(2, ' ', false, nlohmann::json::error_handler_t::replace);
}

int RunInspect(int argc, char** argv) {
  CLI::App app("Checks a checkpoint and says what each worker would load of it", "shoal inspect");
  InspectArgs args;
  bool as_json = false;
  app.add_option("dir", args.dir, "Folder of a gpt-oss checkpoint, in any of its layouts")
      ->required();
  app.add_option("--workers", args.workers, "Workers of the cell")
      ->check(CLI::Range(1, 4096))
      ->capture_default_str();
  app.add_option("--copies", args.copies, "Copies of every expert, at most one per worker")
      ->check(CLI::Range(1, 4096))
      ->capture_default_str();
  app.add_flag(
      "--shared-dense",
      args.has_shared_dense,
      "The workers of one host map dense weights that their parent loads, as with `shoal serve`");
  app.add_flag("--json", as_json, "One JSON object");
  if (const int code = ParseOrExitCode(app, argc, argv); code >= 0) return code;
  if (args.copies > args.workers) {
    return Fail(absl::InvalidArgumentError(absl::StrCat(
        "--copies ", args.copies, ": at most --workers = ", args.workers, " can be placed")));
  }
  const absl::StatusOr<Inspection> inspection = Inspect(args);
  if (!inspection.ok()) {
    Fail(inspection.status());
    return kExitPrecondition;  // Whatever is wrong with it, it is the checkpoint.
  }
  if (as_json) {
    std::printf("%s\n", InspectionToJson(*inspection).c_str());
  } else {
    Print(*inspection, args);
  }
  return kExitOk;
}

}  // namespace shoal
