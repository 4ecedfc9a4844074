#include "coordinator/serve/server.h"

#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include <optional>
#include <utility>
#include <variant>

#include "absl/status/status.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/strip.h"
#include "absl/synchronization/mutex.h"
#include "absl/synchronization/notification.h"
#include "absl/time/clock.h"
#include "google/protobuf/stubs/logging.h"
#include "grpcpp/ext/proto_server_reflection_plugin.h"
#include "grpcpp/grpcpp.h"
#include "grpcpp/health_check_service_interface.h"

#include "base/check.h"
#include "base/prng.h"
#include "base/serve/log.h"
#include "base/serve/seal.h"
#include "base/status_macros.h"
#include "coordinator/serve/admin.h"
#include "coordinator/serve/event_loop.h"
#include "coordinator/serve/frontend.h"
#include "coordinator/serve/gateway.h"
#include "coordinator/serve/mask_pool.h"
#include "coordinator/serve/worker_link.h"
#include "coordinator/text/never_sampled.h"
#include "coordinator/text/token_index.h"

namespace shoal {
namespace {

constexpr char kInferenceService[] = "shoal.v1.Inference";
constexpr int kMaxReceiveBytes = 16 << 20;
constexpr int kMaxSendBytes = 64 << 20;
// A mask takes microseconds: two threads keep up with thousands of tokens per second.
constexpr int kMaskThreads = 2;
// Calls are cancelled by then; what is left is their last callbacks.
constexpr absl::Duration kLastWords = absl::Seconds(10);

struct Listener {
  std::unique_ptr<grpc::Server> server;
  int port = 0;
};

// gRPC removes the path before it binds, so a second server would take a first one's socket away
// without a word.
absl::Status CheckUnixSocketIsFree(const std::string& address) {
  absl::string_view path = address;
  if (!absl::ConsumePrefix(&path, "unix:")) return absl::OkStatus();
  sockaddr_un name{};
  name.sun_family = AF_UNIX;
  if (path.empty() || path.size() >= sizeof(name.sun_path)) {
    return absl::InvalidArgumentError(absl::StrCat(
        "a UNIX socket's path must have 1 to ", sizeof(name.sun_path) - 1, " bytes: `", path, "`"));
  }
  path.copy(name.sun_path, path.size());
  const int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
  if (fd < 0) return absl::ResourceExhaustedError("no file descriptor is left for a socket");
  const bool is_taken = connect(fd, reinterpret_cast<const sockaddr*>(&name), sizeof(name)) == 0;
  close(fd);
  if (!is_taken) return absl::OkStatus();
  return absl::UnavailableError(
      absl::StrCat("address in use: another process listens on ", address));
}

bool IsOfThisHost(absl::string_view address) {
  for (const absl::string_view prefix : {"unix:", "127.", "localhost:", "[::1]:"}) {
    if (absl::StartsWith(address, prefix)) return true;
  }
  return false;
}

enum class Peers : uint8_t { kClients, kWorkers, kBoth };

void SetTransport(Peers peers, grpc::ServerBuilder* builder) {
  // Else a second server on the port would silently share its connections.
  builder->AddChannelArgument(GRPC_ARG_ALLOW_REUSEPORT, 0);
  builder->AddChannelArgument(GRPC_ARG_SERVER_HANDSHAKE_TIMEOUT_MS, 5'000);
  builder->AddChannelArgument(GRPC_ARG_KEEPALIVE_PERMIT_WITHOUT_CALLS, 1);
  builder->AddChannelArgument(GRPC_ARG_HTTP2_MIN_RECV_PING_INTERVAL_WITHOUT_DATA_MS,
                              peers == Peers::kClients ? 10'000 : 500);
  builder->AddChannelArgument(GRPC_ARG_MAX_METADATA_SIZE, 16'384);
  builder->SetMaxReceiveMessageSize(kMaxReceiveBytes);
  builder->SetMaxSendMessageSize(kMaxSendBytes);
  if (peers == Peers::kWorkers) {
    // A frozen worker is noticed within two seconds.
    builder->AddChannelArgument(GRPC_ARG_KEEPALIVE_TIME_MS, 1'000);
    builder->AddChannelArgument(GRPC_ARG_KEEPALIVE_TIMEOUT_MS, 1'000);
    builder->AddChannelArgument(GRPC_ARG_HTTP2_MAX_PINGS_WITHOUT_DATA, 0);
  } else {
    builder->AddChannelArgument(GRPC_ARG_KEEPALIVE_TIME_MS, 10'000);
    builder->AddChannelArgument(GRPC_ARG_KEEPALIVE_TIMEOUT_MS, 5'000);
  }
}

absl::StatusOr<Listener> Listen(const std::string& address,
                                Peers peers,
                                const std::vector<grpc::Service*>& services) {
  RETURN_IF_ERROR(CheckUnixSocketIsFree(address));
  grpc::ServerBuilder builder;
  SetTransport(peers, &builder);
  Listener listener;
  builder.AddListeningPort(address, grpc::InsecureServerCredentials(), &listener.port);
  for (grpc::Service* service : services) builder.RegisterService(service);
  listener.server = builder.BuildAndStart();
  if (listener.server == nullptr || listener.port == 0) {
    return absl::UnavailableError(absl::StrCat(
        "cannot listen on ",
        address,
        ": the address is in use or not of this host; choose another, or port 0 for any"));
  }
  if (absl::StartsWith(address, "unix:")) listener.port = 0;
  if (!IsOfThisHost(address)) {
    Log(LogLevel::kWarning,
        "listen.plain_text",
        {{"address", address},
         {"why",
          "whoever reaches this port may use it, and whoever sees its traffic may read it: keep it "
          "on a network that is trusted as a whole"}});
  }
  return listener;
}

// Nobody may guess the keys of epochs.
CoordinatorOptions WithSeed(CoordinatorOptions options, uint64_t entropy) {
  options.seed = entropy;
  return options;
}

// Answers are bits of these.
std::string Fingerprint(const CoordinatorServerOptions& options) {
  return absl::StrFormat("shoal-%s-%016x",
                         options.version,
                         Fnv1a64(options.model_name) ^ static_cast<uint64_t>(options.config.vocab));
}

}  // namespace

class CoordinatorServer::Impl {
 public:
  explicit Impl(const CoordinatorServerOptions& options)
      : token_index_(MakeIndex(options)),
        loop_(WithSeed(options.coordinator, context_.NextEntropy())),
        delivery_(&loop_, &context_.metrics, options.delivery),
        frontend_(&context_),
        admin_(&context_),
        links_(&loop_),
        masks_(token_index_.get(), kMaskThreads, [this](MaskReady mask) {
          loop_.Post(std::move(mask));
        }) {
    context_.model = {.name = options.model_name,
                      .config = options.config,
                      .tokenizer = options.tokenizer,
                      .token_index = token_index_.get()};
    if (options.tokenizer != nullptr) {
      absl::StatusOr<HarmonyTokens> harmony = HarmonyTokens::Find(options.tokenizer);
      if (harmony.ok()) context_.model.harmony = &harmony_.emplace(*std::move(harmony));
      context_.model.never =
          NeverSampled(*options.tokenizer, options.config.vocab, options.config.eos_token_ids);
    }
    context_.version = options.version;
    context_.fingerprint = Fingerprint(options);
    context_.max_running = options.coordinator.max_running;
    context_.started = absl::Now();
    context_.loop = &loop_;
    context_.delivery = &delivery_;
  }

  ~Impl() { Shutdown(absl::Now()); }

  absl::Status Start(const CoordinatorServerOptions& options) {
    const bool share = options.worker_listen.empty();
    std::vector<grpc::Service*> services = {&frontend_, &admin_};
    if (share) services.push_back(&links_);
    ASSIGN_OR_RETURN(clients_,
                     Listen(options.listen, share ? Peers::kBoth : Peers::kClients, services));
    clients_.server->GetHealthCheckService()->SetServingStatus(kInferenceService, false);
    if (!share) {
      ASSIGN_OR_RETURN(workers_, Listen(options.worker_listen, Peers::kWorkers, {&links_}));
    }
    loop_.Start([this](Action action) { Do(std::move(action)); },
                [this](const FleetStatus& status) { Observe(status); });
    return options.http_listen.empty() ? absl::OkStatus() : StartHttp(options);
  }

  // Last, because whoever comes in finds everything running.
  absl::Status StartHttp(const CoordinatorServerOptions& options) {
    if (!options.api_keys.empty()) {
      ASSIGN_OR_RETURN(api_keys_, ApiKeys::Load(options.api_keys));
    }
    gateway_.emplace(&context_, api_keys_.get());
    HttpServerOptions http{.listen = options.http_listen, .limits = options.http};
    http.handler = [this](HttpRequest request, HttpExchange* exchange) {
      gateway_->Handle(std::move(request), exchange);
    };
    http.refusal = [this](int status, absl::string_view why) {
      return gateway_->Refusal(status, why);
    };
    ASSIGN_OR_RETURN(http_, HttpServer::Start(std::move(http)));
    context_.http = http_.get();
    return absl::OkStatus();
  }

  int port() const { return clients_.port; }

  int http_port() const { return http_ == nullptr ? 0 : http_->port(); }

  int worker_port() const { return workers_.server == nullptr ? clients_.port : workers_.port; }

  void Shutdown(absl::Time deadline) {
    absl::MutexLock lock(&shutdown_mutex_);
    if (has_shut_down_.HasBeenNotified()) return;
    context_.is_draining = true;
    if (clients_.server != nullptr) {
      clients_.server->GetHealthCheckService()->SetServingStatus(kInferenceService, false);
      delivery_.WaitUntilIdle(deadline);
      clients_.server->Shutdown(absl::ToChronoTime(absl::Now()));
    }
    if (http_ != nullptr) http_->Shutdown();
    if (workers_.server != nullptr) workers_.server->Shutdown(absl::ToChronoTime(absl::Now()));
    CHECK(delivery_.WaitUntilIdle(absl::Now() + kLastWords));
    CHECK(links_.WaitUntilIdle(absl::Now() + kLastWords));
    masks_.Stop();
    loop_.Stop();
    has_shut_down_.Notify();
  }

  void Wait() { has_shut_down_.WaitForNotification(); }

  absl::StatusOr<FleetStatus> Status() { return loop_.Status(); }

  Delivery::Counters delivery_counters() const { return delivery_.counters(); }

 private:
  static std::unique_ptr<TokenIndex> MakeIndex(const CoordinatorServerOptions& options) {
    if (options.tokenizer == nullptr) return nullptr;
    return std::make_unique<TokenIndex>(*options.tokenizer, options.config.vocab);
  }

  // On the loop's thread.
  void Do(Action action) {
    if (auto* send = std::get_if<SendToWorker>(&action)) {
      if (auto* keep = std::get_if<KeepRecord>(&send->message)) Seal(keep);
      links_.Send(std::move(*send));
    } else if (auto* close = std::get_if<CloseLink>(&action)) {
      links_.Close(*close);
    } else if (auto* ask = std::get_if<AskMask>(&action)) {
      masks_.Ask(std::move(*ask));
    } else if (auto* note = std::get_if<Note>(&action)) {
      Log(LogLevel::kInfo, "fleet", {{"note", note->text}});
    } else {
      const StreamId stream = StreamOf(action);
      delivery_.Deliver(stream, std::move(action));
    }
  }

  // The core's envelopes are open; what leaves this process is not.
  void Seal(KeepRecord* keep) const {
    if (keep->index > 0) return;
    keep->envelope = sealer_.Seal(keep->envelope, absl::StrCat("sequence ", keep->sequence.value));
  }

  static StreamId StreamOf(const Action& action) {
    return std::visit(
        [](const auto& a) {
          if constexpr (requires { a.stream; }) {
            return a.stream;
          } else {
            return StreamId{};
          }
        },
        action);
  }

  // On the loop's thread, after every tick.
  void Observe(const FleetStatus& status) {
    const bool is_serving = status.is_ready && !context_.is_draining;
    if (is_serving == was_serving_) return;
    was_serving_ = is_serving;
    clients_.server->GetHealthCheckService()->SetServingStatus(kInferenceService, is_serving);
    Log(LogLevel::kInfo, "health", {{"serving", is_serving}});
  }

  const std::unique_ptr<TokenIndex> token_index_;  // Null without a tokenizer
  ServiceContext context_;
  // Nobody opens what it sealed after this process has ended: a later coordinator knows no record.
  const Sealer sealer_{Sealer::NewKey()};
  EventLoop loop_;
  Delivery delivery_;
  Frontend frontend_;
  AdminFrontend admin_;
  WorkerLinks links_;
  MaskPool masks_;
  std::optional<HarmonyTokens> harmony_;
  std::unique_ptr<ApiKeys> api_keys_;
  std::optional<Gateway> gateway_;
  std::unique_ptr<HttpServer> http_;
  Listener clients_;
  Listener workers_;  // Without a server where clients_ serves both

  bool was_serving_ = false;  // Owned by the loop's thread
  absl::Mutex shutdown_mutex_;
  absl::Notification has_shut_down_;
};

absl::StatusOr<std::unique_ptr<CoordinatorServer>> CoordinatorServer::Start(
    const CoordinatorServerOptions& options) {
  // These are of the process. The first two take effect on the servers built after them; the third
  // keeps a client that sends ill-formed text from writing our log: it is told with a status.
  grpc::EnableDefaultHealthCheckService(true);
  static const bool has_reflection = [] {
    grpc::reflection::InitProtoReflectionServerBuilderPlugin();
    return true;
  }();
  CHECK(has_reflection);
  google::protobuf::SetLogHandler(nullptr);
  auto impl = std::make_unique<Impl>(options);
  RETURN_IF_ERROR(impl->Start(options));
  return std::unique_ptr<CoordinatorServer>(new CoordinatorServer(std::move(impl)));
}

CoordinatorServer::CoordinatorServer(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}

CoordinatorServer::~CoordinatorServer() = default;

int CoordinatorServer::port() const {
  return impl_->port();
}

int CoordinatorServer::worker_port() const {
  return impl_->worker_port();
}

int CoordinatorServer::http_port() const {
  return impl_->http_port();
}

void CoordinatorServer::Shutdown(absl::Time deadline) {
  impl_->Shutdown(deadline);
}

void CoordinatorServer::Wait() {
  impl_->Wait();
}

FleetStatus CoordinatorServer::Status() {
  absl::StatusOr<FleetStatus> status = impl_->Status();
  return status.ok() ? *std::move(status) : FleetStatus{};
}

Delivery::Counters CoordinatorServer::delivery_counters() const {
  return impl_->delivery_counters();
}

}  // namespace shoal
