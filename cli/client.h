// A client of a running server, for the subcommands: thin over the generated stubs, plus what every
// good client does, continuing a named request's stream after a broken connection.
#pragma once

#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"

#include "base/ids.h"
#include "proto/admin.grpc.pb.h"
#include "proto/inference.grpc.pb.h"

namespace shoal {

// Thread-safe.
class Client {
 public:
  // "host:port" or "unix:/path". Does not connect yet.
  explicit Client(const std::string& address);

  // Return false to cancel: the call then ends with kCancelled.
  using OnEvent = std::function<bool(const v1::GenerateEvent& event)>;

  // Streams until the last choice has finished. If the connection breaks (kUnavailable) and the
  // request has an id and one choice, attaches again at the next token, until `deadline`.
  absl::Status Generate(const v1::GenerateRequest& request,
                        absl::Time deadline,
                        const OnEvent& on_event) const;

  // The same for a conversation, which is not continued by itself.
  using OnChatEvent = std::function<bool(const v1::ChatEvent& event)>;
  absl::Status Chat(const v1::ChatRequest& request,
                    absl::Time deadline,
                    const OnChatEvent& on_event) const;

  absl::StatusOr<v1::StatusResponse> Status(absl::Time deadline) const;

  // [tokens.size(), vocabulary] in parts with rising positions.
  using OnLogits = std::function<absl::Status(const v1::LogitsResponse& part)>;
  absl::Status Logits(const std::vector<TokenId>& tokens,
                      absl::Time deadline,
                      const OnLogits& on_logits) const;

 private:
  std::unique_ptr<v1::Inference::Stub> inference_;
  std::unique_ptr<v1::Admin::Stub> admin_;
};

}  // namespace shoal
