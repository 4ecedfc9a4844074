// The readers that came by gRPC, and what statuses and messages look like there.
#pragma once

#include <memory>

#include "absl/status/status.h"
#include "google/protobuf/message.h"
#include "grpcpp/grpcpp.h"

#include "coordinator/serve/stream_reader.h"

namespace shoal {

// The server's side of a call that answers with a stream, in bytes.
using GrpcReactor = grpc::ServerWriteReactor<grpc::ByteBuffer>;

struct GrpcReader {
  GrpcReactor* reactor;  // To return to gRPC; lives as long as `reader`
  std::unique_ptr<StreamReader> reader;
};

GrpcReader MakeGrpcReader();

// A call that ends at once.
GrpcReactor* RefuseCall(const absl::Status& status);

// INVALID_ARGUMENT for bytes that are not such a message.
absl::Status ParseBytes(const grpc::ByteBuffer& bytes, google::protobuf::Message* out);

grpc::Status ToGrpc(const absl::Status& status);

}  // namespace shoal
