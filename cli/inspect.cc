#include "cli/inspect.h"

#include <cstdio>
#include <memory>

#include "CLI/CLI.hpp"
#include "absl/strings/str_cat.h"
#include "cli/options.h"
#include "nlohmann/json.hpp"

#include "base/status_macros.h"
#include "coordinator/cluster/placement.h"
#include "kernels/cpu/backend.h"
#include "model/budget.h"
#include "model/tensors.h"
#include "worker/load/checkpoint.h"
#include "worker/load/loader.h"

namespace shoal {
namespace {

// How many experts the coordinator gives to each rank of a fresh cell on one host.
absl::StatusOr<std::vector<int32_t>> ExpertsPerRank(const ModelConfig& config,
                                                    const InspectArgs& args) {
  const std::vector<PlacementSite> sites(
      static_cast<size_t>(args.workers),
      {.host = "", .max_experts = config.num_experts, .experts = {}});
  ASSIGN_OR_RETURN(const Placement placement,
                   PlaceExperts(sites, config.num_experts, args.copies, PlacementGoal::kBalanced));
  std::vector<int32_t> counts(sites.size());
  for (const std::vector<int32_t>& ranks : placement) {
    for (const int32_t rank : ranks) ++counts[static_cast<size_t>(rank)];
  }
  return counts;
}

std::string Grouped(int64_t number) {
  std::string digits = absl::StrCat(number);
  for (size_t at = digits.size(); at > 3; at -= 3) digits.insert(at - 3, ",");
  return digits;
}

void Print(const Inspection& i, const InspectArgs& args) {
  const ModelConfig& c = i.config;
  std::printf("%s: sound (%s, experts in memory: %s)\n",
              i.dir.c_str(),
              i.layout.c_str(),
              i.experts.c_str());
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
  ASSIGN_OR_RETURN(const std::unique_ptr<Checkpoint> checkpoint,
                   Checkpoint::Open(args.dir, args.bf16_experts));
  const ModelConfig& config = checkpoint->config();
  ModelConfig stored = config;
  stored.storage = checkpoint->stored();
  const ModelBudget budget = MeasureModel(stored);
  ASSIGN_OR_RETURN(const std::vector<int32_t> experts_per_rank, ExpertsPerRank(config, args));
  const CpuBackend backend(CpuBackendOptions{.num_threads = 1});  // For its packed sizes
  const int64_t dense_resident = DenseSegmentBytes(config);
  const int64_t expert_resident = ExpertResidentBytes(config, backend);

  Inspection result{.dir = checkpoint->dir(),
                    .config = config,
                    .layout = std::string(LayoutName(checkpoint->layout(), stored.storage)),
                    .experts = config.storage == ExpertStorage::kMxfp4 ? "MXFP4" : "BF16",
                    .digest = checkpoint->digest(),
                    .num_files = std::ssize(checkpoint->files()),
                    .num_tensors = checkpoint->num_tensors(),
                    .tensor_bytes = checkpoint->tensor_bytes()};
  for (const CheckpointFile& file : checkpoint->files()) result.file_bytes += file.reader.bytes();
  result.num_parameters = budget.parameters;
  result.num_active_parameters = budget.active_parameters;
  for (const int32_t experts : experts_per_rank) {
    result.ranks.push_back(
        {.num_experts = experts,
         .bytes_read = checkpoint->bytes_read_by_open() + experts * budget.expert_bytes,
         .bytes_resident = experts * expert_resident});
    if (!args.has_shared_dense) {
      result.ranks.back().bytes_read += budget.dense_bytes;
      result.ranks.back().bytes_resident += dense_resident;
    }
  }
  if (args.has_shared_dense) {
    result.parent_bytes_read = checkpoint->bytes_read_by_open() + budget.dense_bytes;
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
      {"experts", i.experts},
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
  std::string load_format = "auto";
  app.add_option("--load-format", load_format, "auto or stored; see serve")
      ->check(CLI::IsMember({"auto", "stored"}))
      ->capture_default_str();
  app.add_flag("--json", as_json, "One JSON object");
  if (const int code = ParseOrExitCode(app, argc, argv); code >= 0) return code;
  if (load_format == "stored") args.bf16_experts = Bf16Experts::kKeep;
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
