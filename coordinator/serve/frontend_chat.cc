// The calls of shoal.v1.Inference that know what a conversation is.
#include <memory>
#include <utility>

#include "absl/time/clock.h"

#include "base/status_macros.h"
#include "coordinator/serve/cache_room.h"
#include "coordinator/serve/chat_request.h"
#include "coordinator/serve/frontend.h"
#include "coordinator/serve/grpc_chat.h"
#include "coordinator/serve/http_call.h"
#include "coordinator/text/harmony_writer.h"

namespace shoal {
namespace {

v1::Started StartedOf(const ServiceContext& service, const std::string& request_id) {
  v1::Started started;
  started.set_request_id(request_id);
  started.set_model(service.model.name);
  started.set_system_fingerprint(service.fingerprint);
  return started;
}

absl::StatusOr<Request> ReadChat(const grpc::ByteBuffer& bytes, ServiceContext* service) {
  v1::ChatRequest wire;
  RETURN_IF_ERROR(ParseBytes(bytes, &wire));
  ASSIGN_OR_RETURN(const ApiRequest asked, ReadChatRequest(wire, absl::Now()));
  ASSIGN_OR_RETURN(
      Request request,
      MakeChatRequest(
          asked, wire.request_id(), service->model, absl::Now(), service->NextEntropy()));
  if (!asked.settings.max_tokens.has_value()) {
    ASSIGN_OR_RETURN(const FleetStatus fleet, service->loop->Status());
    FitToCache(fleet, &request);
  }
  return request;
}

}  // namespace

GrpcReactor* Frontend::Chat(grpc::CallbackServerContext* context, const grpc::ByteBuffer* bytes) {
  if (service_.is_draining) return RefuseCall(Draining());
  absl::StatusOr<Request> request = ReadChat(*bytes, &service_);
  if (!request.ok()) return RefuseCall(request.status());
  auto transcript = std::make_unique<ChatTranscript>(
      TokenTranscript::Args{.model = &service_.model,
                            .fingerprint = service_.fingerprint,
                            .tenant = request->tenant,
                            .request_id = request->id,
                            .prefix_hash = std::nullopt},
      MakeGrpcChatForm(StartedOf(service_, request->id), service_.model.tokenizer),
      &service_.metrics);
  return StartCall(&service_, context, "Chat", *std::move(request), std::move(transcript));
}

GrpcReactor* Frontend::AttachChat(grpc::CallbackServerContext* context,
                                  const grpc::ByteBuffer* bytes) {
  static_cast<void>(context);
  absl::StatusOr<TokenTranscript::Args> args = ReadAttach(*bytes);
  if (!args.ok()) return RefuseCall(args.status());
  auto form = MakeGrpcChatForm(StartedOf(service_, args->request_id), service_.model.tokenizer);
  return AttachTo(
      "AttachChat",
      std::make_unique<ChatTranscript>(*std::move(args), std::move(form), /*metrics=*/nullptr));
}

absl::StatusOr<v1::RenderResponse> Frontend::RenderChat(const grpc::ByteBuffer& bytes) const {
  v1::ChatRequest wire;
  RETURN_IF_ERROR(ParseBytes(bytes, &wire));
  ASSIGN_OR_RETURN(const ApiRequest asked, ReadChatRequest(wire, absl::Now()));
  RETURN_IF_ERROR(CheckModel(asked.model, service_.model));
  ASSIGN_OR_RETURN(const std::vector<TokenId> prompt,
                   RenderPrompt(asked.conversation, service_.model));
  v1::RenderResponse response;
  response.set_text(HarmonyText(prompt, *service_.model.tokenizer));
  for (const TokenId id : prompt) response.add_token_ids(static_cast<uint32_t>(id.value));
  response.set_count(static_cast<uint32_t>(prompt.size()));
  return response;
}

grpc::ServerUnaryReactor* Frontend::Render(grpc::CallbackServerContext* context,
                                           const grpc::ByteBuffer* bytes,
                                           grpc::ByteBuffer* response) {
  return Answered(context, RenderChat(*bytes), response);
}

}  // namespace shoal
