#include "cli/status.h"

#include <cstdio>
#include <string>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/time/clock.h"
#include "cli/client.h"
#include "cli/options.h"
#include "google/protobuf/util/json_util.h"

namespace shoal {
namespace {

constexpr absl::Duration kPatience = absl::Seconds(5);
// Of `shoal status` alone.
constexpr int kExitDegraded = 1;
constexpr int kExitDown = 3;

void PrintWorker(const v1::WorkerState& worker) {
  std::string work = absl::StrFormat("%d sequences, blocks %d/%d full %d/%d window",
                                     worker.sequences(),
                                     worker.full_blocks_used(),
                                     worker.full_blocks(),
                                     worker.window_blocks_used(),
                                     worker.window_blocks());
  if (worker.load_done_bytes() < worker.load_total_bytes()) {
    work = absl::StrFormat("%.2f of %.2f GB loaded",
                           static_cast<double>(worker.load_done_bytes()) / 1e9,
                           static_cast<double>(worker.load_total_bytes()) / 1e9);
  }
  const std::string rank = worker.rank() < 0 ? "-" : absl::StrCat(worker.rank());
  std::printf("  worker %-4u rank %-3s %-10s %-12s %s (%s)\n",
              worker.worker(),
              rank.c_str(),
              worker.phase().c_str(),
              worker.host().c_str(),
              work.c_str(),
              worker.process().c_str());
}

void Print(const v1::StatusResponse& status) {
  std::printf("term %lu, %s; %d waiting, %d running, %d retained\n",
              static_cast<unsigned long>(status.term()),
              status.is_ready() ? "ready" : "not ready",
              status.waiting(),
              status.running(),
              status.retained());
  std::printf(
      "since the start: %ld requests accepted, %ld refused, %ld finished; %ld tokens in (%ld from "
      "the cache), %ld out; %ld preemptions, %ld epochs\n",
      static_cast<long>(status.accepted()),
      static_cast<long>(status.refused()),
      static_cast<long>(status.finished()),
      static_cast<long>(status.prompt_tokens()),
      static_cast<long>(status.cached_tokens()),
      static_cast<long>(status.output_tokens()),
      static_cast<long>(status.preemptions()),
      static_cast<long>(status.epochs()));
  for (const v1::CellState& cell : status.cells()) {
    std::printf("cell %u: %s, epoch %lu, step %lu, every expert on at least %d rank%s\n",
                cell.cell(),
                cell.state().c_str(),
                static_cast<unsigned long>(cell.epoch()),
                static_cast<unsigned long>(cell.step()),
                cell.min_replicas(),
                cell.min_replicas() == 1 ? "" : "s");
    for (const v1::WorkerState& worker : cell.workers()) PrintWorker(worker);
  }
  if (status.spare_workers_size() > 0) std::printf("without a cell:\n");
  for (const v1::WorkerState& worker : status.spare_workers()) PrintWorker(worker);
}

}  // namespace

int RunStatus(int argc, char** argv) {
  CLI::App app("The fleet on one screen. Exit code 0: healthy; 1: degraded; 3: down.",
               "shoal status");
  std::string server = "127.0.0.1:8470";
  bool json = false;
  app.add_option("--server", server, "HOST:PORT or unix:/path")->capture_default_str();
  app.add_flag("--json", json, "everything, as one JSON object");
  app.footer("Example:\n  shoal status --server 127.0.0.1:8470");
  if (const int code = ParseOrExitCode(app, argc, argv); code >= 0) return code;
  const absl::StatusOr<v1::StatusResponse> status = Client(server).Status(absl::Now() + kPatience);
  if (!status.ok()) {
    Fail(status.status());
    return kExitDown;
  }
  if (json) {
    std::string text;
    google::protobuf::util::JsonPrintOptions print;
    print.always_print_primitive_fields = true;
    print.preserve_proto_field_names = true;
    if (!google::protobuf::util::MessageToJsonString(*status, &text, print).ok())
      return kExitFailed;
    std::printf("%s\n", text.c_str());
  } else {
    Print(*status);
  }
  return status->is_ready() ? kExitOk : kExitDegraded;
}

}  // namespace shoal
