#include "cli/logits.h"

#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "absl/time/clock.h"
#include "cli/client.h"
#include "cli/local_fleet.h"
#include "cli/npy.h"
#include "cli/options.h"
#include "cli/signals.h"

#include "base/status_macros.h"

namespace shoal {
namespace {

struct LogitsOptions {
  ClusterOptions cluster;
  std::string tokens;
  std::string out;
};

absl::Status Run(const LogitsOptions& options) {
  ASSIGN_OR_RETURN(const std::vector<TokenId> tokens, ParseTokens(options.tokens));
  ASSIGN_OR_RETURN(
      const std::unique_ptr<LocalFleet> fleet,
      LocalFleet::Start({.cluster = options.cluster, .with_tokenizer = false, .is_quiet = true}));
  RETURN_IF_ERROR(fleet->WaitReady(absl::InfiniteFuture()));
  const auto rows = static_cast<int64_t>(tokens.size());
  std::optional<NpyWriter> writer;
  RETURN_IF_ERROR(
      Client(fleet->address())
          .Logits(tokens, absl::InfiniteFuture(), [&](const v1::LogitsResponse& part) {
            if (!writer.has_value()) {
              const int64_t cols = part.values_size() / part.num_positions();
              ASSIGN_OR_RETURN(writer, NpyWriter::Create(options.out, rows, cols));
            }
            return writer->Append({part.values().data(), static_cast<size_t>(part.values_size())});
          }));
  if (!writer.has_value()) return absl::DataLossError("the fleet returned no logits");
  return writer->Close();
}

}  // namespace

int RunLogits(int argc, char** argv) {
  CLI::App app(
      "Logits of every position of a prompt, fp32 [tokens, vocabulary], computed by a real cluster "
      "on this host. Needs no tokenizer.json.",
      "shoal logits");
  LogitsOptions options;
  app.add_option("--tokens", options.tokens, "token ids: 1,2,3")->required();
  app.add_option("--out", options.out, "the NumPy file to write")->required();
  AddClusterOptions(app, &options.cluster, true);
  app.footer(
      "Example:\n  shoal logits --model DIR --tokens 1,2,3 --workers 4 --exchange tcp --out l.npy");
  if (const int code = ParseOrExitCode(app, argc, argv); code >= 0) return code;
  BlockTerminationSignals();
  const absl::Status status = Run(options);
  return status.ok() ? kExitOk : Fail(status);
}

}  // namespace shoal
