// A small HTTP/1.1 server for doors that anyone may knock at: every size, count and wait is
// bounded, and a client that is slow, silent or gone costs a few kilobytes.
//
// One thread owns the sockets and never waits for a client; a few others run the handler, which may
// take its time. An answer is given whole, or written piece by piece as its reader takes it.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <string>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/time/time.h"

#include "base/serve/http_message.h"

namespace shoal {

// One request's way back. Handed to the handler, and valid until its end was asked for: by Respond,
// Finish or Abort, of which exactly one must be called. Thread-safe; one call at a time.
class HttpExchange {
 public:
  // Called on the server's thread, which must not be held up.
  class Listener {
   public:
    virtual ~Listener() = default;
    // The piece given to Write has been taken over by the system, or never will be.
    virtual void OnWritten(bool ok) = 0;
    // The client is gone, or has stopped reading for too long. Nothing more reaches it.
    virtual void OnGone() = 0;
    // The exchange has ended and what was written is on its way. The last call.
    virtual void OnDone() = 0;
  };

  virtual ~HttpExchange() = default;

  // At most once, before the other calls. `listener` lives until OnDone.
  virtual void Listen(Listener* listener) = 0;

  virtual void Respond(HttpResponse response) = 0;

  // A body of unknown length. While nothing is written for the server's ping period, the server
  // itself writes `ping`, if it is not empty.
  virtual void Begin(int status, HttpFields fields, std::string ping) = 0;
  // REQUIRES: Begin, and OnWritten of the last piece. Not empty.
  virtual void Write(std::string bytes) = 0;
  // `last` may be empty.
  virtual void Finish(std::string last) = 0;

  // Breaks the connection off, so that nobody takes what was written for the whole.
  virtual void Abort() = 0;
};

struct HttpLimits {
  int max_connections = 16'384;
  size_t max_header_bytes = 16 << 10;
  size_t max_header_fields = 64;
  size_t max_body_bytes = 4 << 20;
  int max_chunks = 4096;  // Of a request's body
  absl::Duration header_time = absl::Seconds(15);
  absl::Duration body_time = absl::Seconds(60);
  absl::Duration idle_time = absl::Minutes(5);    // Between two requests of one connection
  absl::Duration write_time = absl::Seconds(30);  // In which a reader takes something at all
  absl::Duration ping_period = absl::Seconds(15);
  // After a refusal, what is still being sent is read and dropped, so that the client sees the
  // answer instead of a broken connection. This is how much, and for how long.
  size_t max_linger_bytes = 1 << 20;
  absl::Duration linger_time = absl::Seconds(2);
  // Of the system's memory for what a reader has not taken; the system doubles it for its own use.
  int send_buffer_bytes = 32 << 10;
};

struct HttpServerOptions {
  std::string listen = "127.0.0.1:0";  // "host:port", "[::1]:port"
  HttpLimits limits;
  int num_handler_threads = 2;
  // Runs on a handler's thread.
  std::function<void(HttpRequest request, HttpExchange* exchange)> handler;
  // What a client is told whose request never gets to the handler: malformed, too large, too slow.
  std::function<HttpResponse(int status, absl::string_view why)> refusal;
};

class HttpServer {
 public:
  // kUnavailable: the address is in use or not of this host; kInvalidArgument: it is none.
  static absl::StatusOr<std::unique_ptr<HttpServer>> Start(HttpServerOptions options);
  ~HttpServer();

  HttpServer(const HttpServer&) = delete;
  HttpServer& operator=(const HttpServer&) = delete;

  int port() const;

  struct Counters {
    int64_t connections = 0;  // Open
    int64_t refused = 0;      // Because there were too many
    int64_t malformed = 0;    // Requests that never got to the handler
    int64_t timeouts = 0;
  };

  // Thread-safe.
  Counters counters() const;

  // Breaks off every connection and returns when every exchange has ended. Thread-safe; the second
  // call waits for the first.
  void Shutdown();

 private:
  class Impl;
  explicit HttpServer(std::unique_ptr<Impl> impl);

  std::unique_ptr<Impl> impl_;
};

}  // namespace shoal
