#include "base/serve/http_server.h"

#include <algorithm>
#include <array>
#include <atomic>
#include <optional>
#include <thread>
#include <unordered_map>
#include <utility>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/synchronization/mutex.h"
#include "absl/time/clock.h"
#include "boost/asio/executor_work_guard.hpp"
#include "boost/asio/io_context.hpp"
#include "boost/asio/ip/tcp.hpp"
#include "boost/asio/post.hpp"
#include "boost/asio/steady_timer.hpp"

#include "base/bounded_queue.h"
#include "base/check.h"
#include "base/serve/http_connection.h"
#include "base/status_macros.h"

namespace shoal {
namespace {

namespace asio = boost::asio;
using asio::ip::tcp;
using ErrorCode = boost::system::error_code;

constexpr std::chrono::milliseconds kSweepPeriod(50);
// After which accepting is tried again when the process has no file descriptor left.
constexpr std::chrono::milliseconds kAcceptPause(100);
constexpr absl::Duration kLastWords = absl::Seconds(10);
constexpr size_t kScratchBytes = 64 << 10;
constexpr int kBacklog = 4096;

absl::StatusOr<tcp::endpoint> ParseEndpoint(const std::string& address) {
  const size_t colon = address.rfind(':');
  const auto bad = [&] {
    return absl::InvalidArgumentError(absl::StrCat(
        "expected HOST:PORT with a numeric address, as in 127.0.0.1:8480 or [::1]:8480: ",
        address));
  };
  int port = 0;
  if (colon == std::string::npos || !absl::SimpleAtoi(address.substr(colon + 1), &port) ||
      port < 0 || port > 65'535) {
    return bad();
  }
  std::string host = address.substr(0, colon);
  if (host.size() > 2 && host.front() == '[' && host.back() == ']') {
    host = host.substr(1, host.size() - 2);
  }
  if (host == "localhost") host = "127.0.0.1";
  ErrorCode error;
  const asio::ip::address ip = asio::ip::make_address(host, error);
  if (error) return bad();
  return tcp::endpoint(ip, static_cast<uint16_t>(port));
}

}  // namespace

class HttpServer::Impl final : public HttpConnectionOwner {
 public:
  explicit Impl(HttpServerOptions options)
      : options_(std::move(options)),
        acceptor_(io_),
        accept_timer_(io_),
        sweep_timer_(io_),
        work_(static_cast<size_t>(options_.limits.max_connections)) {}

  ~Impl() override { Shutdown(); }

  absl::Status Start();
  void Shutdown();

  int port() const { return port_; }

  Counters counters() const {
    return {.connections = num_connections_,
            .refused = num_refused_,
            .malformed = num_malformed_,
            .timeouts = num_timeouts_};
  }

  const HttpServerOptions& options() const override { return options_; }

  std::span<char> scratch() override { return scratch_; }

  bool is_stopping() const override { return is_stopping_; }

  void Dispatch(HttpRequest request, HttpExchange* exchange) override;
  void Remove(HttpConnection* connection) override;

  void CountMalformed() override { ++num_malformed_; }

  void CountTimeout() override { ++num_timeouts_; }

 private:
  struct Work {
    HttpRequest request;
    HttpExchange* exchange;
  };

  absl::Status Listen(const tcp::endpoint& endpoint);
  void Accept();
  void OnAccepted(const ErrorCode& error, tcp::socket socket);
  void RefuseConnection(tcp::socket* socket);
  void Sweep();
  void CloseAll();
  void RunHandlers();

  const HttpServerOptions options_;
  int port_ = 0;

  // Owned by io_thread_.
  asio::io_context io_{1};
  // An exchange is ended by others, who post. With its client gone nothing else may be under way,
  // and without this the thread would end before they do.
  const asio::executor_work_guard<asio::io_context::executor_type> stays_{io_.get_executor()};
  tcp::acceptor acceptor_;
  asio::steady_timer accept_timer_;
  asio::steady_timer sweep_timer_;
  std::array<char, kScratchBytes> scratch_;
  std::unordered_map<HttpConnection*, std::unique_ptr<HttpConnection>> connections_;
  bool is_stopping_ = false;

  // Figures for others, each by itself: relaxed order would do.
  std::atomic<int64_t> num_connections_ = 0;
  std::atomic<int64_t> num_refused_ = 0;
  std::atomic<int64_t> num_malformed_ = 0;
  std::atomic<int64_t> num_timeouts_ = 0;

  BoundedQueue<Work> work_;  // An exchange for each connection at most, so it is never full
  std::vector<std::thread> handlers_;
  std::thread io_thread_;
  absl::Mutex shutdown_mutex_;
  bool has_shut_down_ ABSL_GUARDED_BY(shutdown_mutex_) = false;
  absl::Mutex empty_mutex_;
  bool is_empty_ ABSL_GUARDED_BY(empty_mutex_) = false;  // While stopping: no connection is left
};

absl::Status HttpServer::Impl::Listen(const tcp::endpoint& endpoint) {
  ErrorCode error;
  acceptor_.open(endpoint.protocol(), error);
  if (!error) acceptor_.set_option(tcp::acceptor::reuse_address(true), error);
  // Accepted sockets inherit it.
  if (!error) {
    acceptor_.set_option(asio::socket_base::send_buffer_size(options_.limits.send_buffer_bytes),
                         error);
  }
  if (!error) acceptor_.bind(endpoint, error);
  if (!error) acceptor_.listen(kBacklog, error);
  if (!error) port_ = acceptor_.local_endpoint(error).port();
  if (!error) return absl::OkStatus();
  return absl::UnavailableError(
      absl::StrCat("cannot listen on ",
                   options_.listen,
                   " for HTTP: ",
                   error.message(),
                   "; choose another address, or port 0 for any free one"));
}

absl::Status HttpServer::Impl::Start() {
  ASSIGN_OR_RETURN(const tcp::endpoint endpoint, ParseEndpoint(options_.listen));
  RETURN_IF_ERROR(Listen(endpoint));
  Accept();
  Sweep();
  for (int i = 0; i < options_.num_handler_threads; ++i) {
    handlers_.emplace_back([this] { RunHandlers(); });
  }
  io_thread_ = std::thread([this] { io_.run(); });
  return absl::OkStatus();
}

void HttpServer::Impl::Accept() {
  acceptor_.async_accept(
      [this](const ErrorCode& error, tcp::socket socket) { OnAccepted(error, std::move(socket)); });
}

void HttpServer::Impl::OnAccepted(const ErrorCode& error, tcp::socket socket) {
  if (is_stopping_) return;
  if (error) {
    // Out of file descriptors, mostly: others are waiting to be closed.
    accept_timer_.expires_after(kAcceptPause);
    accept_timer_.async_wait([this](const ErrorCode& cancelled) {
      if (!cancelled && !is_stopping_) Accept();
    });
    return;
  }
  if (std::ssize(connections_) >= options_.limits.max_connections) {
    RefuseConnection(&socket);
  } else {
    auto connection = std::make_unique<HttpConnection>(this, std::move(socket));
    HttpConnection* const started = connection.get();
    connections_.emplace(started, std::move(connection));
    num_connections_ = std::ssize(connections_);
    started->Start();
  }
  Accept();
}

void HttpServer::Impl::RefuseConnection(tcp::socket* socket) {
  ++num_refused_;
  const HttpResponse response =
      options_.refusal(503, "the server has as many connections as it may have: ask again");
  const std::string bytes = FormatHttpHead({.status = response.status,
                                            .fields = &response.fields,
                                            .length = response.body.size(),
                                            .keep_alive = false}) +
                            response.body;
  ErrorCode ignored;
  socket->non_blocking(true, ignored);
  socket->write_some(asio::buffer(bytes), ignored);
  socket->close(ignored);
}

void HttpServer::Impl::Sweep() {
  std::vector<HttpConnection*> all;
  all.reserve(connections_.size());
  for (const auto& [connection, owned] : connections_) all.push_back(connection);
  const absl::Time now = absl::Now();
  for (HttpConnection* const connection : all) connection->Sweep(now);
  sweep_timer_.expires_after(kSweepPeriod);
  sweep_timer_.async_wait([this](const ErrorCode& cancelled) {
    if (!cancelled && !is_stopping_) Sweep();
  });
}

void HttpServer::Impl::Remove(HttpConnection* connection) {
  CHECK(connections_.erase(connection) == 1);
  num_connections_ = std::ssize(connections_);
  if (!is_stopping_ || !connections_.empty()) return;
  absl::MutexLock lock(&empty_mutex_);
  is_empty_ = true;
}

void HttpServer::Impl::Dispatch(HttpRequest request, HttpExchange* exchange) {
  CHECK(work_.TryPush(Work{.request = std::move(request), .exchange = exchange}));
}

void HttpServer::Impl::RunHandlers() {
  while (true) {
    std::optional<Work> work = work_.Pop(absl::Now() + absl::Seconds(60));
    if (work.has_value()) {
      options_.handler(std::move(work->request), work->exchange);
    } else if (work_.closed()) {
      return;
    }
  }
}

void HttpServer::Impl::CloseAll() {
  is_stopping_ = true;
  ErrorCode ignored;
  acceptor_.close(ignored);
  accept_timer_.cancel();
  sweep_timer_.cancel();
  if (connections_.empty()) {
    absl::MutexLock lock(&empty_mutex_);
    is_empty_ = true;
    return;
  }
  std::vector<HttpConnection*> all;
  for (const auto& [connection, owned] : connections_) all.push_back(connection);
  for (HttpConnection* const connection : all) connection->Close();
}

void HttpServer::Impl::Shutdown() {
  absl::MutexLock lock(&shutdown_mutex_);
  if (std::exchange(has_shut_down_, true)) return;
  if (io_thread_.joinable()) {
    asio::post(io_, [this] { CloseAll(); });
    const auto is_empty = [this]() ABSL_SHARED_LOCKS_REQUIRED(empty_mutex_) { return is_empty_; };
    absl::MutexLock empty_lock(&empty_mutex_);
    CHECK(empty_mutex_.AwaitWithTimeout(absl::Condition(&is_empty), kLastWords));
  }
  work_.Close();
  for (std::thread& handler : handlers_) handler.join();
  io_.stop();
  if (io_thread_.joinable()) io_thread_.join();
}

absl::StatusOr<std::unique_ptr<HttpServer>> HttpServer::Start(HttpServerOptions options) {
  CHECK(options.handler != nullptr);
  CHECK(options.refusal != nullptr);
  CHECK_GT(options.num_handler_threads, 0);
  auto impl = std::make_unique<Impl>(std::move(options));
  RETURN_IF_ERROR(impl->Start());
  return std::unique_ptr<HttpServer>(new HttpServer(std::move(impl)));
}

HttpServer::HttpServer(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}

HttpServer::~HttpServer() = default;

int HttpServer::port() const {
  return impl_->port();
}

HttpServer::Counters HttpServer::counters() const {
  return impl_->counters();
}

void HttpServer::Shutdown() {
  impl_->Shutdown();
}

}  // namespace shoal
