#include "cli/serve.h"

#include <cstdio>
#include <fstream>
#include <memory>
#include <string>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "cli/local_fleet.h"
#include "cli/options.h"
#include "cli/signals.h"

#include "base/status_macros.h"

namespace shoal {
namespace {

struct ServeOptions {
  LocalFleetOptions fleet;
  std::string address_file;
};

absl::Status Run(const ServeOptions& options) {
  const absl::Time start = absl::Now();
  ASSIGN_OR_RETURN(const std::unique_ptr<LocalFleet> fleet, LocalFleet::Start(options.fleet));
  bool is_announced = false;
  for (;;) {
    // A termination signal, a worker that gave up, or readiness to tell: whichever comes first.
    if (WaitForTermination(is_announced ? absl::Seconds(1) : absl::Milliseconds(20))) break;
    RETURN_IF_ERROR(fleet->Health());
    if (is_announced || !fleet->Status().is_ready) continue;
    is_announced = true;
    std::fprintf(
        stderr,
        "ready on %s after %s\n",
        fleet->address().c_str(),
        absl::FormatDuration(absl::Trunc(absl::Now() - start, absl::Milliseconds(1))).c_str());
    RETURN_IF_ERROR(AnnounceHttpDoor(options.fleet.http, fleet->http_port()));
    if (!options.address_file.empty()) {
      std::ofstream file(options.address_file, std::ios::trunc);
      file << fleet->address() << "\n";
      if (!file.flush()) {
        return absl::FailedPreconditionError(absl::StrCat("cannot write ", options.address_file));
      }
    }
  }
  std::fprintf(stderr, "stopping\n");
  return absl::OkStatus();
}

}  // namespace

int RunServe(int argc, char** argv) {
  CLI::App app(
      "A coordinator and its workers on this host. The dense weights are loaded once and shared; a "
      "worker "
      "that dies is started again. SIGTERM or Ctrl-C ends it.",
      "shoal serve");
  ServeOptions options;
  options.fleet.listen = "127.0.0.1:8470";
  app.add_option("--listen", options.fleet.listen, "HOST:PORT (port 0: any) or unix:/path")
      ->capture_default_str();
  app.add_option(
      "--address-file", options.address_file, "write the address there once the service is ready");
  AddHttpOptions(app, &options.fleet.http);
  AddClusterOptions(app, &options.fleet.cluster, true);
  app.footer(
      "Example:\n  shoal serve --model DIR --workers 4 --listen 127.0.0.1:8470 --http "
      "127.0.0.1:8480");
  if (const int code = ParseOrExitCode(app, argc, argv); code >= 0) return code;
  BlockTerminationSignals();
  const absl::Status status = Run(options);
  return status.ok() ? kExitOk : Fail(status);
}

}  // namespace shoal
