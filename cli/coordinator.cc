#include "cli/coordinator.h"

#include <cstdio>
#include <memory>
#include <string>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "cli/http_door.h"
#include "cli/model.h"
#include "cli/options.h"
#include "cli/signals.h"

#include "base/status_macros.h"

namespace shoal {
namespace {

constexpr absl::Duration kGrace = absl::Seconds(5);

struct CoordinatorCommandOptions {
  ClusterOptions cluster;
  std::string listen = "127.0.0.1:8470";
  std::string worker_listen = "127.0.0.1:8471";
  HttpDoorOptions http;
};

absl::Status Run(const CoordinatorCommandOptions& options) {
  ASSIGN_OR_RETURN(const OpenedModel model,
                   OpenModel(options.cluster, WithTokenizer::kIfThere, /*is_quiet=*/false));
  CoordinatorServerOptions server_options = ServerOptions(options.cluster, model);
  server_options.listen = options.listen;
  server_options.worker_listen = options.worker_listen;
  SetHttpDoor(options.http, &server_options);
  ASSIGN_OR_RETURN(const std::unique_ptr<CoordinatorServer> server,
                   CoordinatorServer::Start(std::move(server_options)));
  std::fprintf(stderr,
               "listening on %s; waiting for %d workers on %s\n",
               AddressOf(options.listen, *server).c_str(),
               options.cluster.workers,
               options.worker_listen.c_str());
  RETURN_IF_ERROR(AnnounceHttpDoor(options.http, server->http_port()));
  while (!WaitForTermination(absl::Seconds(3600))) {
  }
  std::fprintf(stderr, "stopping\n");
  server->Shutdown(absl::Now() + kGrace);
  return absl::OkStatus();
}

}  // namespace

int RunCoordinatorCommand(int argc, char** argv) {
  CLI::App app(
      "The coordinator alone: serves clients, and commands the workers that dial it. Reads of the "
      "model "
      "only its config and tokenizer.",
      "shoal coordinator");
  CoordinatorCommandOptions options;
  app.add_option("--listen", options.listen, "for clients: HOST:PORT or unix:/path")
      ->capture_default_str();
  app.add_option("--worker-listen", options.worker_listen, "for workers: HOST:PORT or unix:/path")
      ->capture_default_str();
  AddHttpOptions(app, &options.http);
  AddClusterOptions(app, &options.cluster, true);
  app.footer(
      "Example:\n  shoal coordinator --model DIR --workers 4 --worker-listen 10.0.0.1:8471\n"
      "The worker port has no authentication yet: keep it on a private network.");
  if (const int code = ParseOrExitCode(app, argc, argv); code >= 0) return code;
  BlockTerminationSignals();
  const absl::Status status = Run(options);
  return status.ok() ? kExitOk : Fail(status);
}

}  // namespace shoal
