// The operator's service, shoal.v1.Admin: the fleet's state, and logits through the path that every
// prompt takes.
#pragma once

#include "grpcpp/grpcpp.h"

#include "coordinator/coordinator.h"
#include "coordinator/serve/frontend.h"
#include "proto/admin.grpc.pb.h"

namespace shoal {

v1::StatusResponse ToProto(const FleetStatus& status);

using AdminCalls = v1::Admin::WithCallbackMethod_Status<
    v1::Admin::WithRawCallbackMethod_Logits<v1::Admin::Service>>;

class AdminFrontend final : public AdminCalls {
 public:
  explicit AdminFrontend(ServiceContext* context) : service_(*context) {}

  grpc::ServerUnaryReactor* Status(grpc::CallbackServerContext* context,
                                   const v1::StatusRequest* request,
                                   v1::StatusResponse* response) override;
  grpc::ServerWriteReactor<grpc::ByteBuffer>* Logits(grpc::CallbackServerContext* context,
                                                     const grpc::ByteBuffer* bytes) override;

 private:
  ServiceContext& service_;
};

}  // namespace shoal
