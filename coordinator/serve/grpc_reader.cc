#include "coordinator/serve/grpc_reader.h"

#include <string>
#include <utility>

#include "absl/strings/str_cat.h"
#include "grpcpp/impl/codegen/proto_utils.h"

#include "base/check.h"

namespace shoal {
namespace {

class RefusedCall final : public GrpcReactor {
 public:
  explicit RefusedCall(const absl::Status& status) { Finish(ToGrpc(status)); }

  void OnDone() override { delete this; }
};

class CallReader;

class Call final : public GrpcReactor {
 public:
  explicit Call(CallReader* reader) : reader_(*reader) {}

  void OnWriteDone(bool ok) override;
  void OnCancel() override;
  void OnDone() override;

 private:
  CallReader& reader_;
};

// gRPC's callbacks begin with Start at the latest, because it runs before the reactor is returned.
class CallReader final : public StreamReader {
 public:
  CallReader() : call_(this) {}

  void Start(Events* events) override { events_ = events; }

  void Write(std::string message) override {
    const grpc::Slice slice(message);
    buffer_ = grpc::ByteBuffer(&slice, 1);
    call_.StartWrite(&buffer_);
  }

  void Finish(const absl::Status& status) override { call_.Finish(ToGrpc(status)); }

  Events* events() { return events_; }

  GrpcReactor* call() { return &call_; }

 private:
  Call call_;
  Events* events_ = nullptr;
  grpc::ByteBuffer buffer_;  // Being written
};

void Call::OnWriteDone(bool ok) {
  reader_.events()->OnWritten(ok);
}

void Call::OnCancel() {
  reader_.events()->OnGone();
}

void Call::OnDone() {
  reader_.events()->OnDone();
}

}  // namespace

GrpcReader MakeGrpcReader() {
  auto reader = std::make_unique<CallReader>();
  GrpcReactor* const reactor = reader->call();
  return {.reactor = reactor, .reader = std::move(reader)};
}

GrpcReactor* RefuseCall(const absl::Status& status) {
  return new RefusedCall(status);
}

absl::Status ParseBytes(const grpc::ByteBuffer& bytes, google::protobuf::Message* out) {
  grpc::ByteBuffer copy(bytes);  // Shares its memory; parsing empties it.
  if (grpc::SerializationTraits<google::protobuf::Message>::Deserialize(&copy, out).ok()) {
    return absl::OkStatus();
  }
  return absl::InvalidArgumentError(absl::StrCat(
      "the request is not a ", out->GetTypeName(), ": it is cut off, or a text is not UTF-8"));
}

grpc::Status ToGrpc(const absl::Status& status) {
  return grpc::Status(static_cast<grpc::StatusCode>(status.code()), std::string(status.message()));
}

}  // namespace shoal
