#include "base/serve/http_connection.h"

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "boost/asio/buffer.hpp"
#include "boost/asio/post.hpp"
#include "boost/beast/http/error.hpp"

#include "base/check.h"

namespace shoal {
namespace {

namespace asio = boost::asio;
namespace http = boost::beast::http;

absl::string_view View(boost::beast::string_view text) {
  return absl::string_view(text.data(), text.size());
}

}  // namespace

HttpConnection::HttpConnection(HttpConnectionOwner* owner, asio::ip::tcp::socket socket)
    : owner_(*owner),
      limits_(owner->options().limits),
      socket_(std::move(socket)),
      deadline_(absl::Now() + limits_.header_time) {}

template <typename F>
void HttpConnection::Post(F&& f) {
  asio::post(socket_.get_executor(), std::forward<F>(f));
}

void HttpConnection::Start() {
  ErrorCode error;
  socket_.non_blocking(true, error);
  if (!error) socket_.set_option(asio::ip::tcp::no_delay(true), error);
  if (error) return Close();
  Wait();
}

// ---- Reading

void HttpConnection::Wait() {
  if (is_waiting_ || state_ == State::kClosed) return;
  is_waiting_ = true;
  socket_.async_wait(asio::ip::tcp::socket::wait_read, [this](const ErrorCode& error) {
    is_waiting_ = false;
    if (state_ == State::kClosed) return MaybeRemove();
    if (error) return Close();
    OnReadable();
  });
}

void HttpConnection::OnReadable() {
  const std::span<char> scratch = owner_.scratch();
  ErrorCode error;
  const size_t size = socket_.read_some(asio::buffer(scratch.data(), scratch.size()), error);
  if (error == asio::error::would_block || error == asio::error::try_again) return Wait();
  if (error == asio::error::eof) return PeerGone();
  if (error) return Close();
  Take(absl::string_view(scratch.data(), size));
}

void HttpConnection::Take(absl::string_view bytes) {
  switch (state_) {
    case State::kIdle:
      state_ = State::kHead;
      deadline_ = absl::Now() + limits_.header_time;
      [[fallthrough]];
    case State::kHead:
    case State::kBody:
      pending_.append(bytes.data(), bytes.size());
      return Parse();
    case State::kHandling:
    case State::kStreaming:
    case State::kEnding:
      // The next requests came early. Beyond a head's worth they wait in the system's memory.
      pending_.append(bytes.data(), bytes.size());
      if (pending_.size() < limits_.max_header_bytes) Wait();
      return;
    case State::kLingering:
      num_lingered_ += bytes.size();
      if (num_lingered_ > limits_.max_linger_bytes) return Close();
      return Wait();
    case State::kClosed:
      return;
  }
}

// The client has closed its side. Some only say so that the request is complete: what is answered
// at once still reaches them, a stream is not worth computing.
void HttpConnection::PeerGone() {
  if (!is_open_) {
    if (state_ != State::kEnding) Close();
    return;
  }
  keep_alive_ = false;
  is_gone_ = true;
  if (listener_ != nullptr) listener_->OnGone();
}

void HttpConnection::Parse() {
  while (!pending_.empty()) {
    if (!parser_.has_value()) {
      parser_.emplace();
      parser_->eager(true);
      parser_->header_limit(static_cast<uint32_t>(limits_.max_header_bytes));
      parser_->body_limit(limits_.max_body_bytes);
      num_chunks_ = 0;
      on_chunk_ = [this](uint64_t, boost::beast::string_view, ErrorCode& error) {
        if (++num_chunks_ > limits_.max_chunks) error = http::error::body_limit;
      };
      parser_->on_chunk_header(on_chunk_);
    }
    ErrorCode error;
    const size_t used = parser_->put(asio::buffer(pending_), error);
    pending_.erase(0, used);
    if (error && error != http::error::need_more) return RefuseMalformed(error);
    if (state_ == State::kHead && parser_->is_header_done() && !CheckHead()) return;
    if (parser_->is_done()) return Dispatch();
    if (error == http::error::need_more || used == 0) break;
  }
  Wait();
}

// The head has come. Returns false if it was the end of it.
bool HttpConnection::CheckHead() {
  state_ = State::kBody;
  deadline_ = absl::Now() + limits_.body_time;
  const auto& head = parser_->get();
  const auto num_fields = static_cast<size_t>(std::distance(head.begin(), head.end()));
  if (num_fields > limits_.max_header_fields) {
    Refuse(431,
           absl::StrCat("the request has ",
                        num_fields,
                        " header fields; at most ",
                        limits_.max_header_fields,
                        " are taken"));
    return false;
  }
  const auto expect = head.find(http::field::expect);
  if (expect != head.end() && !parser_->is_done() &&
      boost::beast::iequals(expect->value(), "100-continue")) {
    Send("HTTP/1.1 100 Continue\r\n\r\n", /*reports=*/false);
  }
  return true;
}

void HttpConnection::Dispatch() {
  auto& message = parser_->get();
  HttpRequest request;
  request.method = std::string(View(message.method_string()));
  const absl::string_view target = View(message.target());
  const size_t mark = target.find('?');
  const std::optional<std::string> path = PercentDecoded(target.substr(0, mark));
  if (!path.has_value()) {
    return Refuse(400, "the path has a '%' that two hexadecimal digits do not follow");
  }
  request.path = *path;
  if (mark != absl::string_view::npos) request.query = std::string(target.substr(mark + 1));
  for (const auto& field : message) {
    request.fields.emplace_back(View(field.name_string()), View(field.value()));
  }
  request.body = std::move(message.body());
  ErrorCode ignored;
  request.peer = socket_.remote_endpoint(ignored).address().to_string();

  keep_alive_ = parser_->keep_alive() && !owner_.is_stopping();
  is_http_10_ = message.version() < 11;
  is_head_request_ = message.method() == http::verb::head;
  parser_.reset();
  pending_.shrink_to_fit();
  state_ = State::kHandling;
  deadline_ = absl::InfiniteFuture();
  is_open_ = true;
  if (pending_.size() < limits_.max_header_bytes) Wait();
  owner_.Dispatch(std::move(request), this);
}

void HttpConnection::RefuseMalformed(const ErrorCode& error) {
  if (error == http::error::body_limit) {
    return Refuse(413,
                  absl::StrCat("the body is too large: at most ",
                               limits_.max_body_bytes,
                               " bytes, in at most ",
                               limits_.max_chunks,
                               " chunks, are taken"));
  }
  if (error == http::error::header_limit) {
    return Refuse(
        431,
        absl::StrCat(
            "the header is too large: at most ", limits_.max_header_bytes, " bytes are taken"));
  }
  if (error == http::error::bad_version) return Refuse(505, "only HTTP/1.0 and 1.1 are spoken");
  Refuse(400, absl::StrCat("the request is not HTTP: ", error.message()));
}

// An answer to what never gets to the handler. REQUIRES: no exchange is open.
void HttpConnection::Refuse(int status, absl::string_view why) {
  owner_.CountMalformed();
  parser_.reset();
  pending_.clear();
  keep_alive_ = false;
  lingers_ = true;
  state_ = State::kEnding;
  const HttpResponse response = owner_.options().refusal(status, why);
  Send(FormatHttpHead({.status = response.status,
                       .fields = &response.fields,
                       .length = response.body.size(),
                       .keep_alive = false}) +
           response.body,
       /*reports=*/false);
}

// ---- The exchange: called by anyone, done by the server's thread

void HttpConnection::Listen(Listener* listener) {
  Post([this, listener] {
    listener_ = listener;
    if (is_gone_) listener_->OnGone();
  });
}

void HttpConnection::Respond(HttpResponse response) {
  Post([this, response = std::move(response)]() mutable {
    CHECK(is_open_);
    if (state_ == State::kClosed) return EndExchange();
    CHECK(state_ == State::kHandling);
    state_ = State::kEnding;
    std::string bytes = FormatHttpHead({.status = response.status,
                                        .fields = &response.fields,
                                        .length = response.body.size(),
                                        .keep_alive = keep_alive_});
    if (!is_head_request_) bytes += response.body;
    Send(std::move(bytes), /*reports=*/false);
  });
}

void HttpConnection::Begin(int status, HttpFields fields, std::string ping) {
  Post([this, status, fields = std::move(fields), ping = std::move(ping)]() mutable {
    if (state_ == State::kClosed) return;
    CHECK(state_ == State::kHandling);
    state_ = State::kStreaming;
    if (is_http_10_) keep_alive_ = false;
    last_write_ = absl::Now();
    ping_ = std::move(ping);
    // Goes with the first piece.
    next_ +=
        FormatHttpHead({.status = status,
                        .fields = &fields,
                        .framing = is_http_10_ ? HttpFraming::kUntilClose : HttpFraming::kChunked,
                        .keep_alive = keep_alive_});
  });
}

void HttpConnection::Write(std::string bytes) {
  Post([this, bytes = std::move(bytes)]() mutable {
    if (state_ == State::kClosed) {
      if (listener_ != nullptr) listener_->OnWritten(false);
      return;
    }
    CHECK(state_ == State::kStreaming);
    Send(is_http_10_ ? std::move(bytes) : FormatHttpChunk(bytes), /*reports=*/true);
  });
}

void HttpConnection::Finish(std::string last) {
  Post([this, last = std::move(last)]() mutable {
    CHECK(is_open_);
    if (state_ == State::kClosed) return EndExchange();
    CHECK(state_ == State::kStreaming);
    state_ = State::kEnding;
    if (!is_http_10_) {
      last = absl::StrCat(last.empty() ? "" : FormatHttpChunk(last), kLastHttpChunk);
    }
    Send(std::move(last), /*reports=*/false);
  });
}

void HttpConnection::Abort() {
  Post([this] {
    CHECK(is_open_);
    if (state_ != State::kClosed) {
      state_ = State::kClosed;
      ErrorCode ignored;
      socket_.close(ignored);
    }
    EndExchange();
  });
}

// ---- Writing

void HttpConnection::Send(std::string bytes, bool reports) {
  next_ += bytes;
  next_reports_ = next_reports_ || reports;
  if (is_writing_) return;
  if (next_.empty()) return OnSent();
  StartWrite();
}

void HttpConnection::StartWrite() {
  out_ = std::exchange(next_, "");
  out_reports_ = std::exchange(next_reports_, false);
  written_ = 0;
  is_writing_ = true;
  last_write_ = absl::Now();
  deadline_ = last_write_ + limits_.write_time;
  socket_.async_write_some(asio::buffer(out_),
                           [this](const ErrorCode& e, size_t n) { OnWritten(e, n); });
}

void HttpConnection::OnWritten(const ErrorCode& error, size_t num_bytes) {
  if (error || state_ == State::kClosed) {
    is_writing_ = false;
    if ((out_reports_ || next_reports_) && listener_ != nullptr) listener_->OnWritten(false);
    if (state_ == State::kClosed) return MaybeRemove();
    return Close();
  }
  written_ += num_bytes;
  if (written_ < out_.size()) {
    // Something was taken, so the reader lives.
    deadline_ = absl::Now() + limits_.write_time;
    socket_.async_write_some(asio::buffer(out_.data() + written_, out_.size() - written_),
                             [this](const ErrorCode& e, size_t n) { OnWritten(e, n); });
    return;
  }
  is_writing_ = false;
  std::string().swap(out_);
  if (out_reports_ && listener_ != nullptr) listener_->OnWritten(true);
  if (!next_.empty()) return StartWrite();
  OnSent();
}

// All that was to be written is.
void HttpConnection::OnSent() {
  if (state_ == State::kHandling || state_ == State::kStreaming) {
    deadline_ = absl::InfiniteFuture();
  } else if (state_ == State::kBody) {
    deadline_ = absl::Now() + limits_.body_time;
  } else if (state_ == State::kEnding) {
    if (is_open_) return EndExchange();
    NextRequest();
  }
}

void HttpConnection::EndExchange() {
  is_open_ = false;
  if (Listener* const listener = std::exchange(listener_, nullptr)) listener->OnDone();
  ping_.clear();
  if (state_ == State::kClosed) return MaybeRemove();
  NextRequest();
}

void HttpConnection::NextRequest() {
  if (keep_alive_ && !owner_.is_stopping()) {
    state_ = pending_.empty() ? State::kIdle : State::kHead;
    deadline_ = absl::Now() + (pending_.empty() ? limits_.idle_time : limits_.header_time);
    return Parse();
  }
  if (!lingers_) return Close();
  ErrorCode ignored;
  socket_.shutdown(asio::ip::tcp::socket::shutdown_send, ignored);
  state_ = State::kLingering;
  deadline_ = absl::Now() + limits_.linger_time;
  Wait();
}

// ---- Time and end

void HttpConnection::Sweep(absl::Time now) {
  if (state_ == State::kStreaming && !is_writing_ && !ping_.empty() &&
      now >= last_write_ + limits_.ping_period) {
    return Send(is_http_10_ ? ping_ : FormatHttpChunk(ping_), /*reports=*/false);
  }
  if (now < deadline_ || state_ == State::kClosed) return;
  owner_.CountTimeout();
  if (!is_writing_ && (state_ == State::kHead || state_ == State::kBody)) {
    return Refuse(408,
                  absl::StrCat("the request did not arrive within ",
                               absl::FormatDuration(state_ == State::kHead ? limits_.header_time
                                                                           : limits_.body_time)));
  }
  Close();
}

void HttpConnection::Close() {
  if (state_ == State::kClosed) return;
  const bool end_was_asked_for = std::exchange(state_, State::kClosed) == State::kEnding;
  ErrorCode ignored;
  socket_.close(ignored);
  if (is_open_ && end_was_asked_for) return EndExchange();
  if (is_open_ && !std::exchange(is_gone_, true) && listener_ != nullptr) listener_->OnGone();
  MaybeRemove();
}

void HttpConnection::MaybeRemove() {
  CHECK(state_ == State::kClosed);
  if (is_waiting_ || is_writing_ || is_open_) return;
  owner_.Remove(this);
}

}  // namespace shoal
