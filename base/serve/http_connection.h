// One client's connection: requests are read, answered and read again, one after the other. For
// http_server.cc only: it brings Asio and Beast along.
//
// All reading is one loop: wait until there is something, read it, and give it to whatever the
// state makes of it. So a connection that waits holds no buffer, and a client that goes away while
// it is being answered is noticed at once.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <optional>
#include <span>
#include <string>

#include "absl/strings/string_view.h"
#include "absl/time/time.h"
#include "boost/asio/ip/tcp.hpp"
#include "boost/beast/http/parser.hpp"
#include "boost/beast/http/string_body.hpp"

#include "base/serve/http_server.h"

namespace shoal {

class HttpConnection;

// What a connection needs of its server.
class HttpConnectionOwner {
 public:
  virtual ~HttpConnectionOwner() = default;

  virtual const HttpServerOptions& options() const = 0;
  virtual std::span<char> scratch() = 0;  // For one read, shared by all connections
  virtual bool is_stopping() const = 0;
  virtual void Dispatch(HttpRequest request, HttpExchange* exchange) = 0;
  virtual void Remove(HttpConnection* connection) = 0;  // Deletes it
  virtual void CountMalformed() = 0;
  virtual void CountTimeout() = 0;
};

// Owned by the server; all its methods but those of HttpExchange belong to the server's thread.
class HttpConnection final : public HttpExchange {
 public:
  HttpConnection(HttpConnectionOwner* owner, boost::asio::ip::tcp::socket socket);

  void Start();
  // Time has passed: closes what is too slow, pings what is silent.
  void Sweep(absl::Time now);
  // At once, whatever is under way. May delete this.
  void Close();

  void Listen(Listener* listener) override;
  void Respond(HttpResponse response) override;
  void Begin(int status, HttpFields fields, std::string ping) override;
  void Write(std::string bytes) override;
  void Finish(std::string last) override;
  void Abort() override;

 private:
  enum class State : uint8_t {
    kIdle,       // Between requests
    kHead,       // A request has begun
    kBody,       // Its head is there
    kHandling,   // The exchange is open, nothing is written
    kStreaming,  // Its head is written, or waits for the first piece
    kEnding,     // Its last bytes are being written
    kLingering,  // Refused and answered: what still comes is dropped
    kClosed,
  };
  using Parser = boost::beast::http::request_parser<boost::beast::http::string_body>;
  using ErrorCode = boost::system::error_code;

  void Wait();
  void OnReadable();
  void Take(absl::string_view bytes);
  void PeerGone();
  void Parse();
  bool CheckHead();
  void Dispatch();
  void Refuse(int status, absl::string_view why);
  void RefuseMalformed(const ErrorCode& error);
  void Send(std::string bytes, bool reports);
  void StartWrite();
  void OnWritten(const ErrorCode& error, size_t num_bytes);
  void OnSent();
  void EndExchange();
  void NextRequest();
  void MaybeRemove();
  template <typename F>
  void Post(F&& f);

  HttpConnectionOwner& owner_;
  const HttpLimits& limits_;
  boost::asio::ip::tcp::socket socket_;
  State state_ = State::kIdle;
  absl::Time deadline_;  // Of the state, or of the write
  bool is_waiting_ = false;
  bool is_writing_ = false;
  bool keep_alive_ = true;
  bool lingers_ = false;
  bool is_gone_ = false;

  // Reading.
  std::string pending_;  // Read and not parsed
  std::optional<Parser> parser_;
  std::function<void(uint64_t, boost::beast::string_view, ErrorCode&)> on_chunk_;
  int num_chunks_ = 0;
  size_t num_lingered_ = 0;

  // The exchange.
  bool is_open_ = false;
  bool is_head_request_ = false;
  bool is_http_10_ = false;
  Listener* listener_ = nullptr;
  std::string ping_;
  absl::Time last_write_;

  // Writing.
  std::string out_;  // out_[written_, size) is to be written
  size_t written_ = 0;
  bool out_reports_ = false;  // Its end is for the listener
  std::string next_;          // After out_
  bool next_reports_ = false;
};

}  // namespace shoal
