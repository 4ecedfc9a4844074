#include "coordinator/serve/frontend.h"

#include <memory>
#include <random>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "google/protobuf/util/time_util.h"

#include "base/check.h"
#include "base/status_macros.h"
#include "coordinator/serve/answer.h"

namespace shoal {
namespace {

absl::Time DeadlineOf(const grpc::CallbackServerContext& context) {
  const auto deadline = context.deadline();
  if (deadline == std::chrono::system_clock::time_point::max()) return absl::InfiniteFuture();
  return absl::FromChrono(deadline);
}

}  // namespace

uint64_t ServiceContext::EntropyOfThisProcess() {
  std::random_device device;
  return (uint64_t{device()} << 32) | device();
}

uint64_t ServiceContext::NextEntropy() {
  absl::MutexLock lock(&mutex_);
  return prng_.Next();
}

grpc::ServerUnaryReactor* Answered(grpc::CallbackServerContext* context,
                                   const absl::Status& status) {
  grpc::ServerUnaryReactor* reactor = context->DefaultReactor();
  reactor->Finish(ToGrpc(status));
  return reactor;
}

absl::Status Draining() {
  return absl::UnavailableError("the server is stopping: ask another, or again when it is back");
}

void StartRequest(ServiceContext* service,
                  absl::string_view method,
                  Request request,
                  std::unique_ptr<Transcript> transcript,
                  std::unique_ptr<StreamReader> reader) {
  const StreamId stream = service->delivery->Add(
      method, Delivery::Counting::kFirstReader, std::move(transcript), std::move(reader));
  if (service->loop->TryPost(RequestArrived{.stream = stream, .request = std::move(request)})) {
    return;
  }
  service->delivery->Deliver(
      stream,
      Refuse{.stream = stream,
             .status = absl::ResourceExhaustedError(
                 "the server has more to do than it can note down: ask again in a second")});
}

GrpcReactor* StartCall(ServiceContext* service,
                       grpc::CallbackServerContext* context,
                       absl::string_view method,
                       Request request,
                       std::unique_ptr<Transcript> transcript) {
  request.deadline = DeadlineOf(*context);
  GrpcReader call = MakeGrpcReader();
  StartRequest(service, method, std::move(request), std::move(transcript), std::move(call.reader));
  return call.reactor;
}

absl::Status DetokenizeIds(const v1::DetokenizeRequest& request,
                           const ServedModel& model,
                           v1::DetokenizeResponse* response) {
  ASSIGN_OR_RETURN(const Tokenizer* tokenizer, NeedTokenizer(model, "Detokenize"));
  ASSIGN_OR_RETURN(const std::vector<TokenId> tokens,
                   ParseTokens("token_ids", request.token_ids(), model));
  Detokenizer detokenizer(tokenizer);
  for (const TokenId token : tokens) {
    const auto raw = tokenizer->Bytes(token);
    if (!raw.has_value()) {
      return absl::InvalidArgumentError(
          absl::StrCat("token_ids: the tokenizer has no token ", token.value));
    }
    response->mutable_raw()->append(raw->data(), raw->size());
    response->mutable_text()->append(detokenizer.Push(token).value());
  }
  response->mutable_text()->append(detokenizer.Flush());
  return absl::OkStatus();
}

GrpcReactor* Frontend::Generate(grpc::CallbackServerContext* context,
                                const grpc::ByteBuffer* bytes) {
  if (service_.is_draining) return RefuseCall(Draining());
  v1::GenerateRequest wire;
  if (absl::Status status = ParseBytes(*bytes, &wire); !status.ok()) return RefuseCall(status);
  absl::StatusOr<Request> request =
      ParseRequest(wire, service_.model, absl::Now(), service_.NextEntropy());
  if (!request.ok()) return RefuseCall(request.status());
  auto answer =
      std::make_unique<AnswerTranscript>(AnswerTranscript::Args{.model = &service_.model,
                                                                .fingerprint = service_.fingerprint,
                                                                .tenant = request->tenant,
                                                                .request_id = request->id,
                                                                .choice = -1,
                                                                .next_index = 0,
                                                                .prefix_hash = std::nullopt});
  return StartCall(&service_, context, "Generate", *std::move(request), std::move(answer));
}

absl::StatusOr<TokenTranscript::Args> Frontend::ReadAttach(const grpc::ByteBuffer& bytes) const {
  v1::AttachRequest wire;
  RETURN_IF_ERROR(ParseBytes(bytes, &wire));
  RETURN_IF_ERROR(CheckRequestId(wire.request_id()));
  if (wire.choice() >= kMaxChoices) {
    return absl::InvalidArgumentError(
        absl::StrCat("choice must be below ", kMaxChoices, ": ", wire.choice()));
  }
  if (wire.next_index() > static_cast<uint32_t>(service_.model.config.max_positions)) {
    return absl::InvalidArgumentError(absl::StrCat("next_index must be at most ",
                                                   service_.model.config.max_positions,
                                                   ", the context: ",
                                                   wire.next_index()));
  }
  TokenTranscript::Args args{.model = &service_.model,
                             .fingerprint = service_.fingerprint,
                             .tenant = "",
                             .request_id = wire.request_id(),
                             .choice = wire.has_choice() ? static_cast<int32_t>(wire.choice()) : -1,
                             .next_index = static_cast<int32_t>(wire.next_index()),
                             .prefix_hash = std::nullopt};
  if (wire.has_prefix_hash()) args.prefix_hash = wire.prefix_hash();
  return args;
}

GrpcReactor* Frontend::AttachTo(const char* method, std::unique_ptr<TokenTranscript> transcript) {
  // From the first token on: text and hash are functions of all of them.
  ClientAttached event{.stream = {},
                       .tenant = "",
                       .request_id = transcript->request_id(),
                       .choice = transcript->choice(),
                       .next_index = 0};
  GrpcReader call = MakeGrpcReader();
  event.stream = service_.delivery->Add(
      method, Delivery::Counting::kLaterReader, std::move(transcript), std::move(call.reader));
  service_.loop->Post(std::move(event));
  return call.reactor;
}

GrpcReactor* Frontend::Attach(grpc::CallbackServerContext* context, const grpc::ByteBuffer* bytes) {
  static_cast<void>(context);
  absl::StatusOr<TokenTranscript::Args> args = ReadAttach(*bytes);
  if (!args.ok()) return RefuseCall(args.status());
  return AttachTo("Attach", std::make_unique<AnswerTranscript>(*std::move(args)));
}

grpc::ServerUnaryReactor* Frontend::Cancel(grpc::CallbackServerContext* context,
                                           const v1::CancelRequest* request,
                                           v1::CancelResponse* response) {
  static_cast<void>(response);
  const absl::Status status = CheckRequestId(request->request_id());
  if (status.ok()) {
    service_.loop->Post(CancelAsked{.tenant = "", .request_id = request->request_id()});
  }
  return Answered(context, status);
}

absl::StatusOr<v1::TokenizeResponse> Frontend::TokenizeText(const grpc::ByteBuffer& bytes) const {
  v1::TokenizeRequest request;
  RETURN_IF_ERROR(ParseBytes(bytes, &request));
  ASSIGN_OR_RETURN(const std::vector<TokenId> tokens,
                   EncodeText(request.text(), request.parse_special(), service_.model));
  v1::TokenizeResponse response;
  for (const TokenId token : tokens) {
    response.add_token_ids(static_cast<uint32_t>(token.value));
    if (!request.with_pieces()) continue;
    const auto piece = service_.model.tokenizer->Bytes(token);
    CHECK(piece.has_value());
    response.add_pieces(piece->data(), piece->size());
  }
  response.set_count(static_cast<uint32_t>(tokens.size()));
  response.set_max_context(static_cast<uint32_t>(service_.model.config.max_positions));
  return response;
}

grpc::ServerUnaryReactor* Frontend::Tokenize(grpc::CallbackServerContext* context,
                                             const grpc::ByteBuffer* bytes,
                                             grpc::ByteBuffer* response) {
  return Answered(context, TokenizeText(*bytes), response);
}

grpc::ServerUnaryReactor* Frontend::Detokenize(grpc::CallbackServerContext* context,
                                               const v1::DetokenizeRequest* request,
                                               v1::DetokenizeResponse* response) {
  return Answered(context, DetokenizeIds(*request, service_.model, response));
}

void Frontend::DescribeModel(v1::ModelInfo* out) const {
  const ModelConfig& config = service_.model.config;
  out->set_id(service_.model.name);
  *out->mutable_created() = google::protobuf::util::TimeUtil::MicrosecondsToTimestamp(
      absl::ToUnixMicros(service_.started));
  out->set_owned_by("shoal");
  out->set_max_context(static_cast<uint32_t>(config.max_positions));
  out->set_vocab_size(static_cast<uint32_t>(config.vocab));
  out->set_quantisation(config.storage == ExpertStorage::kMxfp4 ? "mxfp4" : "bf16");
  out->add_features("generate");
  if (service_.model.tokenizer != nullptr) out->add_features("text");
}

grpc::ServerUnaryReactor* Frontend::ListModels(grpc::CallbackServerContext* context,
                                               const v1::ListModelsRequest* request,
                                               v1::ListModelsResponse* response) {
  static_cast<void>(request);
  DescribeModel(response->add_models());
  return Answered(context, absl::OkStatus());
}

grpc::ServerUnaryReactor* Frontend::GetServerInfo(grpc::CallbackServerContext* context,
                                                  const v1::GetServerInfoRequest* request,
                                                  v1::GetServerInfoResponse* response) {
  static_cast<void>(request);
  const absl::StatusOr<FleetStatus> fleet = service_.loop->Status();
  if (!fleet.ok()) return Answered(context, fleet.status());
  response->set_version(service_.version);
  *response->mutable_uptime() = google::protobuf::util::TimeUtil::MicrosecondsToDuration(
      absl::ToInt64Microseconds(absl::Now() - service_.started));
  response->set_state(service_.is_draining ? v1::GetServerInfoResponse::DRAINING
                      : fleet->is_ready    ? v1::GetServerInfoResponse::READY
                                           : v1::GetServerInfoResponse::LOADING);
  response->set_running(static_cast<uint32_t>(fleet->running));
  response->set_waiting(static_cast<uint32_t>(fleet->waiting));
  response->set_max_running(static_cast<uint32_t>(service_.max_running));
  int64_t used = 0;
  int64_t total = 0;
  for (const CellStatus& cell : fleet->cells) {
    for (const WorkerStatus& worker : cell.workers) {
      used += worker.full_blocks_used;
      total += worker.full_blocks;
    }
  }
  if (total > 0) {
    response->set_kv_usage(static_cast<float>(used) / static_cast<float>(total));
  }
  return Answered(context, absl::OkStatus());
}

}  // namespace shoal
