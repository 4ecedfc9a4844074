#include "worker/serve/coordinator_link.h"

#include <algorithm>
#include <optional>
#include <utility>
#include <variant>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "grpcpp/grpcpp.h"

#include "base/bounded_queue.h"
#include "base/serve/log.h"
#include "proto/cluster.grpc.pb.h"
#include "proto/wire.h"

namespace shoal {
namespace {

constexpr absl::Duration kFirstPause = absl::Milliseconds(20);
constexpr absl::Duration kLongestPause = absl::Seconds(1);
constexpr absl::Duration kConnectTimeout = absl::Seconds(2);
// A stream that lived so long was a good one: the next attempt starts with the short pause.
constexpr absl::Duration kGoodLife = absl::Seconds(5);
// The coordinator does not read: then the stream is of no use.
constexpr absl::Duration kSendPatience = absl::Seconds(5);
constexpr size_t kMaxWaitingMessages = 256;
constexpr int kMaxReceiveBytes = 64 << 20;

std::shared_ptr<grpc::Channel> Dial(const std::string& address) {
  grpc::ChannelArguments arguments;
  // A connection of its own, tried now: pauses are ours.
  arguments.SetInt(GRPC_ARG_USE_LOCAL_SUBCHANNEL_POOL, 1);
  arguments.SetInt(GRPC_ARG_KEEPALIVE_TIME_MS, 5'000);
  arguments.SetInt(GRPC_ARG_KEEPALIVE_TIMEOUT_MS, 5'000);
  arguments.SetInt(GRPC_ARG_ENABLE_HTTP_PROXY, 0);
  arguments.SetMaxReceiveMessageSize(kMaxReceiveBytes);
  arguments.SetMaxSendMessageSize(-1);
  return grpc::CreateCustomChannel(address, grpc::InsecureChannelCredentials(), arguments);
}

absl::Status FromGrpc(const grpc::Status& status) {
  return absl::Status(static_cast<absl::StatusCode>(status.error_code()), status.error_message());
}

}  // namespace

struct CoordinatorLink::Stream {
  using Call = grpc::ClientReaderWriter<fleet::v1::FromWorker, fleet::v1::ToWorker>;

  grpc::ClientContext context;
  std::unique_ptr<Call> call;
  BoundedQueue<FromWorker> outbox{kMaxWaitingMessages};

  // Thread-safe. Reading and writing end soon.
  void End() {
    outbox.Close();
    context.TryCancel();
  }
};

CoordinatorLink::CoordinatorLink(CoordinatorLinkOptions options)
    : options_(std::move(options)), jitter_(options_.jitter_seed), thread_([this] { Run(); }) {}

CoordinatorLink::~CoordinatorLink() {
  {
    absl::MutexLock lock(&mutex_);
    is_stopping_ = true;
    if (stream_ != nullptr) stream_->End();
  }
  thread_.join();
}

void CoordinatorLink::Send(FromWorker message) {
  std::shared_ptr<Stream> stream;
  {
    absl::MutexLock lock(&mutex_);
    stream = stream_;
  }
  if (stream == nullptr || stream->outbox.closed()) return;
  if (!stream->outbox.Push(std::move(message), absl::Now() + kSendPatience)) stream->End();
}

bool CoordinatorLink::WaitForStop(absl::Duration timeout) {
  absl::MutexLock lock(&mutex_);
  mutex_.AwaitWithTimeout(absl::Condition(&is_stopping_), timeout);
  return is_stopping_;
}

void CoordinatorLink::Run() {
  absl::Duration pause = kFirstPause;
  bool was_connected = true;  // The first failure is news, the next ones are not.
  while (!WaitForStop(absl::ZeroDuration())) {
    const absl::Time start = absl::Now();
    const absl::Status why = Converse();
    const bool is_connected = why.code() != absl::StatusCode::kDeadlineExceeded;
    if (WaitForStop(absl::ZeroDuration())) return;
    if (is_connected || was_connected) {
      Log(LogLevel::kWarning,
          is_connected ? "link.ended" : "link.unreachable",
          {{"coordinator", options_.address}, {"why", why.message()}});
    }
    was_connected = is_connected;
    pause = absl::Now() - start > kGoodLife ? kFirstPause : std::min(2 * pause, kLongestPause);
    if (WaitForStop(pause * (0.5 + static_cast<double>(jitter_.Below(1024)) / 2048.0))) return;
  }
}

// One stream, from dialling to its end. kDeadlineExceeded: nobody answered.
absl::Status CoordinatorLink::Converse() {
  const auto channel = Dial(options_.address);
  if (!channel->WaitForConnected(absl::ToChronoTime(absl::Now() + kConnectTimeout))) {
    return absl::DeadlineExceededError("nobody answers");
  }
  const auto stub = fleet::v1::WorkerLink::NewStub(channel);
  const auto stream = std::make_shared<Stream>();
  stream->call = stub->Link(&stream->context);
  if (!Open(stream)) return absl::CancelledError("stopping");

  if (stream->call->Write(ToProto(FromWorker(options_.enrol())).front())) {
    Log(LogLevel::kInfo, "link.connected", {{"coordinator", options_.address}});
    std::thread reader([this, &stream] { ReadUntilEnd(stream.get()); });
    WriteUntilEnd(stream.get());
    reader.join();
  }
  stream->End();
  {
    absl::MutexLock lock(&mutex_);
    stream_ = nullptr;
  }
  return FromGrpc(stream->call->Finish());
}

// From here on Send and the destructor see the stream. False: the destructor was faster.
bool CoordinatorLink::Open(const std::shared_ptr<Stream>& stream) {
  absl::MutexLock lock(&mutex_);
  if (!is_stopping_) {
    stream_ = stream;
    return true;
  }
  stream->End();
  return false;
}

void CoordinatorLink::ReadUntilEnd(Stream* stream) {
  fleet::v1::ToWorker incoming;
  while (stream->call->Read(&incoming)) {
    absl::StatusOr<ToWorker> message = FromProto(incoming);
    if (!message.ok()) {
      Log(LogLevel::kError,
          "link.bad_message",
          {{"coordinator", options_.address}, {"why", message.status().message()}});
      break;
    }
    if (const auto* dismiss = std::get_if<Dismiss>(&*message)) {
      {
        absl::MutexLock lock(&mutex_);
        is_stopping_ = true;
      }
      options_.dismissed(dismiss->reason);
      break;
    }
    if (!options_.deliver(*std::move(message))) break;
  }
  stream->End();
}

// Beats have a clock of their own: neither a long step nor a long load delays them.
void CoordinatorLink::WriteUntilEnd(Stream* stream) {
  absl::Time next_beat = absl::Now();
  while (!stream->outbox.closed()) {
    if (absl::Now() >= next_beat) {
      stream->outbox.TryPush(options_.beat());
      next_beat = absl::Now() + kBeatInterval;
    }
    const std::optional<FromWorker> message = stream->outbox.Pop(next_beat);
    if (!message.has_value()) continue;
    for (const fleet::v1::FromWorker& part : ToProto(*message)) {
      if (!stream->call->Write(part)) return stream->End();
    }
  }
}

}  // namespace shoal
