#include "cli/client.h"

#include <chrono>
#include <cstdint>
#include <optional>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "grpcpp/grpcpp.h"

namespace shoal {
namespace {

// A message with the logits of a chunk is larger than gRPC's default of 4 MiB.
constexpr int kMaxMessageBytes = 64 << 20;
constexpr absl::Duration kReattachPause = absl::Milliseconds(100);

absl::Status FromGrpc(const grpc::Status& status) {
  return absl::Status(static_cast<absl::StatusCode>(status.error_code()), status.error_message());
}

void SetDeadline(absl::Time deadline, grpc::ClientContext* context) {
  if (deadline != absl::InfiniteFuture()) context->set_deadline(absl::ToChronoTime(deadline));
}

// Reads one stream to its end. Counts finished choices and, of choice 0, the tokens seen.
struct StreamReader {
  const Client::OnEvent& on_event;
  uint32_t next_index = 0;
  std::optional<uint64_t> prefix_hash;
  uint32_t finished = 0;
  bool is_cancelled = false;

  absl::Status Read(grpc::ClientContext* context,
                    std::unique_ptr<grpc::ClientReader<v1::GenerateEvent>> reader) {
    v1::GenerateEvent event;
    while (reader->Read(&event)) {
      if (event.has_chunk() && event.choice() == 0) {
        next_index =
            event.chunk().first_index() + static_cast<uint32_t>(event.chunk().token_ids_size());
        prefix_hash = event.chunk().prefix_hash();
      }
      if (event.has_finished()) ++finished;
      if (!is_cancelled && !on_event(event)) {
        is_cancelled = true;
        context->TryCancel();
      }
    }
    return FromGrpc(reader->Finish());
  }
};

}  // namespace

Client::Client(const std::string& address) {
  grpc::ChannelArguments arguments;
  arguments.SetMaxReceiveMessageSize(kMaxMessageBytes);
  auto channel = grpc::CreateCustomChannel(address, grpc::InsecureChannelCredentials(), arguments);
  inference_ = v1::Inference::NewStub(channel);
  admin_ = v1::Admin::NewStub(channel);
}

absl::Status Client::Generate(const v1::GenerateRequest& request,
                              absl::Time deadline,
                              const OnEvent& on_event) const {
  StreamReader stream{.on_event = on_event};
  absl::Status status;
  {
    grpc::ClientContext context;
    SetDeadline(deadline, &context);
    status = stream.Read(&context, inference_->Generate(&context, request));
  }
  const bool may_attach = !request.request_id().empty() && request.sampling().n() <= 1;
  while (absl::IsUnavailable(status) && may_attach && stream.finished == 0 &&
         !stream.is_cancelled && absl::Now() + kReattachPause < deadline) {
    absl::SleepFor(kReattachPause);
    v1::AttachRequest attach;
    attach.set_request_id(request.request_id());
    attach.set_choice(0);
    attach.set_next_index(stream.next_index);
    if (stream.prefix_hash.has_value()) attach.set_prefix_hash(*stream.prefix_hash);
    grpc::ClientContext context;
    SetDeadline(deadline, &context);
    status = stream.Read(&context, inference_->Attach(&context, attach));
  }
  return status;
}

absl::Status Client::Chat(const v1::ChatRequest& request,
                          absl::Time deadline,
                          const OnChatEvent& on_event) const {
  grpc::ClientContext context;
  SetDeadline(deadline, &context);
  const auto reader = inference_->Chat(&context, request);
  v1::ChatEvent event;
  bool is_cancelled = false;
  while (reader->Read(&event)) {
    if (is_cancelled || on_event(event)) continue;
    is_cancelled = true;
    context.TryCancel();
  }
  return FromGrpc(reader->Finish());
}

absl::StatusOr<v1::StatusResponse> Client::Status(absl::Time deadline) const {
  grpc::ClientContext context;
  SetDeadline(deadline, &context);
  v1::StatusResponse response;
  if (const grpc::Status status = admin_->Status(&context, {}, &response); !status.ok()) {
    return FromGrpc(status);
  }
  return response;
}

absl::Status Client::Logits(const std::vector<TokenId>& tokens,
                            absl::Time deadline,
                            const OnLogits& on_logits) const {
  v1::LogitsRequest request;
  for (const TokenId token : tokens) request.add_token_ids(static_cast<uint32_t>(token.value));
  grpc::ClientContext context;
  SetDeadline(deadline, &context);
  const auto reader = admin_->Logits(&context, request);
  v1::LogitsResponse part;
  absl::Status failure;
  while (reader->Read(&part)) {
    if (!failure.ok()) continue;
    failure = on_logits(part);
    if (!failure.ok()) context.TryCancel();
  }
  const absl::Status status = FromGrpc(reader->Finish());
  return failure.ok() ? status : failure;
}

}  // namespace shoal
