// The client's service, shoal.v1.Inference, and the operator's, shoal.v1.Admin: from bytes to
// events, on gRPC's threads. What the core answers goes through Delivery.
//
// The streaming calls and Tokenize take their bytes unparsed, because gRPC answers UNIMPLEMENTED,
// without a word, where a message cannot be parsed or a string is not UTF-8.
#pragma once

#include <atomic>
#include <memory>
#include <string>

#include "absl/status/statusor.h"
#include "absl/synchronization/mutex.h"
#include "absl/time/time.h"
#include "grpcpp/grpcpp.h"

#include "base/prng.h"
#include "base/serve/http_server.h"
#include "coordinator/serve/delivery.h"
#include "coordinator/serve/event_loop.h"
#include "coordinator/serve/grpc_reader.h"
#include "coordinator/serve/request.h"
#include "coordinator/serve/service_metrics.h"
#include "proto/inference.grpc.pb.h"

namespace shoal {

// What both services share. All of it outlives them.
struct ServiceContext {
  ServedModel model;
  std::string version;
  std::string fingerprint;  // Of everything that a bit of the answer depends on
  int32_t max_running = 0;
  absl::Time started;
  EventLoop* loop = nullptr;
  Delivery* delivery = nullptr;
  std::atomic<const HttpServer*> http = nullptr;  // Whose first handlers may run before it is set
  ServiceMetrics metrics;
  std::atomic<bool> is_draining = false;

  // For request ids and seeds. Thread-safe.
  uint64_t NextEntropy();

 private:
  absl::Mutex mutex_;
  Prng prng_ ABSL_GUARDED_BY(mutex_){EntropyOfThisProcess()};

  static uint64_t EntropyOfThisProcess();
};

// A unary call's end.
grpc::ServerUnaryReactor* Answered(grpc::CallbackServerContext* context,
                                   const absl::Status& status);

// With a message, if there is one, as *bytes.
template <typename T>
grpc::ServerUnaryReactor* Answered(grpc::CallbackServerContext* context,
                                   const absl::StatusOr<T>& message,
                                   grpc::ByteBuffer* bytes) {
  if (message.ok()) {
    const grpc::Slice slice(message->SerializeAsString());
    *bytes = grpc::ByteBuffer(&slice, 1);
  }
  return Answered(context, message.status());
}

// Why a server that is_draining takes no new work.
absl::Status Draining();

// Starts `request` as a stream that `reader` reads; its answer is written as `transcript` says.
// Whatever is in the way of it, the reader is told.
void StartRequest(ServiceContext* service,
                  absl::string_view method,
                  Request request,
                  std::unique_ptr<Transcript> transcript,
                  std::unique_ptr<StreamReader> reader);

// The same for a gRPC call, which may have a deadline. Returns the call's reactor.
GrpcReactor* StartCall(ServiceContext* service,
                       grpc::CallbackServerContext* context,
                       absl::string_view method,
                       Request request,
                       std::unique_ptr<Transcript> transcript);

absl::Status DetokenizeIds(const v1::DetokenizeRequest& request,
                           const ServedModel& model,
                           v1::DetokenizeResponse* response);

using StreamingCalls = v1::Inference::WithRawCallbackMethod_Generate<
    v1::Inference::WithRawCallbackMethod_Chat<v1::Inference::WithRawCallbackMethod_Attach<
        v1::Inference::WithRawCallbackMethod_AttachChat<v1::Inference::Service>>>>;
using InferenceCalls = v1::Inference::WithCallbackMethod_Cancel<
    v1::Inference::WithRawCallbackMethod_Render<v1::Inference::WithRawCallbackMethod_Tokenize<
        v1::Inference::WithCallbackMethod_Detokenize<v1::Inference::WithCallbackMethod_ListModels<
            v1::Inference::WithCallbackMethod_GetServerInfo<StreamingCalls>>>>>>;

class Frontend final : public InferenceCalls {
 public:
  explicit Frontend(ServiceContext* context) : service_(*context) {}

  grpc::ServerWriteReactor<grpc::ByteBuffer>* Generate(grpc::CallbackServerContext* context,
                                                       const grpc::ByteBuffer* bytes) override;
  grpc::ServerWriteReactor<grpc::ByteBuffer>* Attach(grpc::CallbackServerContext* context,
                                                     const grpc::ByteBuffer* bytes) override;
  // These three: coordinator/serve/frontend_chat.cc.
  grpc::ServerWriteReactor<grpc::ByteBuffer>* Chat(grpc::CallbackServerContext* context,
                                                   const grpc::ByteBuffer* bytes) override;
  grpc::ServerWriteReactor<grpc::ByteBuffer>* AttachChat(grpc::CallbackServerContext* context,
                                                         const grpc::ByteBuffer* bytes) override;
  grpc::ServerUnaryReactor* Render(grpc::CallbackServerContext* context,
                                   const grpc::ByteBuffer* bytes,
                                   grpc::ByteBuffer* response) override;
  grpc::ServerUnaryReactor* Cancel(grpc::CallbackServerContext* context,
                                   const v1::CancelRequest* request,
                                   v1::CancelResponse* response) override;
  grpc::ServerUnaryReactor* Tokenize(grpc::CallbackServerContext* context,
                                     const grpc::ByteBuffer* bytes,
                                     grpc::ByteBuffer* response) override;
  grpc::ServerUnaryReactor* Detokenize(grpc::CallbackServerContext* context,
                                       const v1::DetokenizeRequest* request,
                                       v1::DetokenizeResponse* response) override;
  grpc::ServerUnaryReactor* ListModels(grpc::CallbackServerContext* context,
                                       const v1::ListModelsRequest* request,
                                       v1::ListModelsResponse* response) override;
  grpc::ServerUnaryReactor* GetServerInfo(grpc::CallbackServerContext* context,
                                          const v1::GetServerInfoRequest* request,
                                          v1::GetServerInfoResponse* response) override;

 private:
  absl::StatusOr<TokenTranscript::Args> ReadAttach(const grpc::ByteBuffer& bytes) const;
  GrpcReactor* AttachTo(const char* method, std::unique_ptr<TokenTranscript> transcript);
  absl::StatusOr<v1::RenderResponse> RenderChat(const grpc::ByteBuffer& bytes) const;
  absl::StatusOr<v1::TokenizeResponse> TokenizeText(const grpc::ByteBuffer& bytes) const;
  void DescribeModel(v1::ModelInfo* out) const;

  ServiceContext& service_;
};

}  // namespace shoal
