// The HTTP server against clients that no library would be: in halves, in heaps, without manners.

#include "base/serve/http_server.h"

#include <memory>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/synchronization/mutex.h"
#include "absl/synchronization/notification.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"

#include "tests/support/raw_client.h"

namespace shoal {
namespace {

using testing::HasSubstr;
using testing::StartsWith;

// Writes pieces of one size, one after the other, as long as they are taken. Deletes itself.
class Fountain final : public HttpExchange::Listener {
 public:
  struct Meter {
    absl::Mutex mutex;
    int num_written ABSL_GUARDED_BY(mutex) = 0;
    bool is_gone ABSL_GUARDED_BY(mutex) = false;
    bool is_done ABSL_GUARDED_BY(mutex) = false;
  };

  Fountain(HttpExchange* exchange, Meter* meter, size_t piece, int max_pieces)
      : exchange_(*exchange), meter_(*meter), piece_(piece, 'x'), left_(max_pieces) {
    exchange->Listen(this);
    exchange->Begin(200, {{"content-type", "text/plain"}}, ": ping\n\n");
    if (max_pieces > 0) exchange->Write(piece_);
  }

  void OnWritten(bool ok) override {
    if (!ok) return;
    {
      absl::MutexLock lock(&meter_.mutex);
      ++meter_.num_written;
    }
    if (--left_ > 0) {
      exchange_.Write(piece_);
    } else {
      exchange_.Finish("end");
    }
  }

  void OnGone() override {
    {
      absl::MutexLock lock(&meter_.mutex);
      meter_.is_gone = true;
    }
    exchange_.Abort();
  }

  void OnDone() override {
    {
      absl::MutexLock lock(&meter_.mutex);
      meter_.is_done = true;
    }
    delete this;
  }

 private:
  HttpExchange& exchange_;
  Meter& meter_;
  const std::string piece_;
  int left_;
};

// Notes that its reader is gone, and ends when the test says so.
class Thinker final : public HttpExchange::Listener {
 public:
  explicit Thinker(HttpExchange* exchange) : exchange_(*exchange) { exchange->Listen(this); }

  void OnWritten(bool /*ok*/) override {}

  void OnGone() override { gone_.Notify(); }

  void OnDone() override { done_.Notify(); }

  void End() { exchange_.Abort(); }

  bool is_gone() const { return gone_.HasBeenNotified(); }

  bool is_done() const { return done_.HasBeenNotified(); }

 private:
  HttpExchange& exchange_;
  absl::Notification gone_, done_;
};

class HttpServerTest : public testing::Test {
 protected:
  HttpServerTest() {
    options_.handler = [this](HttpRequest request, HttpExchange* exchange) {
      Handle(std::move(request), exchange);
    };
    options_.refusal = [](int status, absl::string_view why) {
      return HttpResponse{.status = status, .body = absl::StrCat("refused: ", why)};
    };
  }

  void Start() {
    auto server = HttpServer::Start(options_);
    ASSERT_TRUE(server.ok()) << server.status();
    server_ = *std::move(server);
  }

  void Handle(HttpRequest request, HttpExchange* exchange) {
    if (request.path == "/fountain") {
      new Fountain(exchange, &meter_, 4096, 1 << 20);
    } else if (request.path == "/three") {
      new Fountain(exchange, &meter_, 5, 3);
    } else if (request.path == "/silence") {
      new Fountain(exchange, &meter_, 5, 0);
    } else if (request.path == "/thought") {
      absl::MutexLock lock(&meter_.mutex);
      thinker_ = std::make_unique<Thinker>(exchange);
    } else {
      exchange->Respond({.status = 200,
                         .fields = {{"x-path", request.path}},
                         .body = absl::StrCat(request.method, " ", request.body)});
    }
  }

  template <typename IsSo>
  void WaitUntil(const IsSo& is_so) {
    const absl::Time deadline = absl::Now() + absl::Seconds(20);
    while (!is_so()) {
      ASSERT_LT(absl::Now(), deadline) << "it never came to that";
      absl::SleepFor(absl::Milliseconds(1));
    }
  }

  Fountain::Meter meter_;
  std::unique_ptr<Thinker> thinker_ ABSL_GUARDED_BY(meter_.mutex);
  HttpServerOptions options_;
  std::unique_ptr<HttpServer> server_;
};

TEST_F(HttpServerTest, AnswersOneRequestAfterTheOtherOnOneConnection) {
  Start();
  RawClient client(server_->port());

  ASSERT_TRUE(client.Send("GET /a%20b?q=1 HTTP/1.1\r\nhost: x\r\n\r\n"));
  const std::string first = client.ReadResponse();
  ASSERT_TRUE(client.Send("POST /c HTTP/1.1\r\nContent-Length: 3\r\n\r\nabc"));
  const std::string second = client.ReadResponse();

  EXPECT_THAT(first, StartsWith("HTTP/1.1 200 OK\r\n"));
  EXPECT_THAT(first, HasSubstr("x-path: /a b\r\n"));
  EXPECT_THAT(first, HasSubstr("connection: keep-alive\r\n"));
  EXPECT_THAT(second, HasSubstr("\r\n\r\nPOST abc"));
}

TEST_F(HttpServerTest, AnswersRequestsThatCameTogetherInTheirOrder) {
  Start();
  RawClient client(server_->port());
  std::string requests;
  for (int i = 0; i < 50; ++i) {
    absl::StrAppend(&requests, "POST /", i, " HTTP/1.1\r\ncontent-length: 2\r\n\r\n", 10 + i);
  }

  ASSERT_TRUE(client.Send(requests));

  for (int i = 0; i < 50; ++i) {
    const std::string response = client.ReadResponse();
    EXPECT_THAT(response, HasSubstr(absl::StrCat("x-path: /", i, "\r\n")));
    EXPECT_TRUE(absl::EndsWith(response, absl::StrCat("POST ", 10 + i))) << response;
  }
}

TEST_F(HttpServerTest, ReadsARequestThatComesByteByByte) {
  Start();
  RawClient client(server_->port());

  for (const char c : std::string("PUT /x HTTP/1.1\r\ntransfer-encoding: chunked\r\n\r\n"
                                  "3\r\nabc\r\n2\r\nde\r\n0\r\n\r\n")) {
    ASSERT_TRUE(client.Send(std::string(1, c)));
  }

  EXPECT_THAT(client.ReadResponse(), HasSubstr("PUT abcde"));
}

TEST_F(HttpServerTest, StreamsInChunksAndKeepsTheConnection) {
  Start();
  RawClient client(server_->port());

  ASSERT_TRUE(client.Send("GET /three HTTP/1.1\r\n\r\n"));
  const std::string stream = client.ReadUntil("0\r\n\r\n");
  ASSERT_TRUE(client.Send("GET /after HTTP/1.1\r\n\r\n"));

  EXPECT_THAT(stream, HasSubstr("transfer-encoding: chunked\r\n"));
  EXPECT_TRUE(absl::EndsWith(
      stream, "\r\n\r\n5\r\nxxxxx\r\n5\r\nxxxxx\r\n5\r\nxxxxx\r\n3\r\nend\r\n0\r\n\r\n"))
      << stream;
  EXPECT_THAT(client.ReadResponse(), HasSubstr("x-path: /after"));
}

TEST_F(HttpServerTest, SpeaksHttp10WithoutChunks) {
  Start();
  RawClient client(server_->port());

  ASSERT_TRUE(client.Send("GET /three HTTP/1.0\r\n\r\n"));

  const std::string stream = client.ReadToEnd();
  EXPECT_THAT(stream, HasSubstr("connection: close\r\n"));
  EXPECT_TRUE(absl::EndsWith(stream, "\r\n\r\nxxxxxxxxxxxxxxxend")) << stream;
}

TEST_F(HttpServerTest, PingsAStreamThatIsSilent) {
  options_.limits.ping_period = absl::Milliseconds(100);
  Start();
  RawClient client(server_->port());

  ASSERT_TRUE(client.Send("GET /silence HTTP/1.1\r\n\r\n"));

  EXPECT_THAT(client.ReadUntil(": ping\n\n\r\n"), HasSubstr("8\r\n: ping\n\n\r\n"));
  EXPECT_THAT(client.ReadUntil(": ping\n\n\r\n"), StartsWith("8\r\n: ping\n\n\r\n"));
}

TEST_F(HttpServerTest, RefusesALargeBodyWithoutReadingIt) {
  Start();
  RawClient client(server_->port());

  ASSERT_TRUE(client.Send("POST / HTTP/1.1\r\ncontent-length: 104857600\r\n\r\n"));
  // It never sends the body, and is answered all the same.
  const std::string response = client.ReadToEnd();

  EXPECT_THAT(response, StartsWith("HTTP/1.1 413 "));
  EXPECT_THAT(response, HasSubstr("connection: close\r\n"));
  EXPECT_THAT(response, HasSubstr("at most 4194304 bytes"));
}

TEST_F(HttpServerTest, ShowsItsRefusalToAClientThatGoesOnSending) {
  Start();
  RawClient client(server_->port());

  ASSERT_TRUE(client.Send("POST / HTTP/1.1\r\ntransfer-encoding: chunked\r\n\r\n"));
  const std::string chunk = absl::StrCat("10000\r\n", std::string(65'536, 'x'), "\r\n");
  for (int i = 0; i < 1600 && client.Send(chunk); ++i) {
  }

  EXPECT_THAT(client.ReadResponse(), StartsWith("HTTP/1.1 413 "));
}

TEST_F(HttpServerTest, ContinuesOnlyWhereTheBodyIsTaken) {
  Start();
  RawClient polite(server_->port());
  RawClient large(server_->port());

  ASSERT_TRUE(polite.Send("POST /p HTTP/1.1\r\nexpect: 100-continue\r\ncontent-length: 2\r\n\r\n"));
  EXPECT_EQ(polite.ReadUntil("\r\n\r\n"), "HTTP/1.1 100 Continue\r\n\r\n");
  ASSERT_TRUE(polite.Send("ab"));
  EXPECT_THAT(polite.ReadResponse(), HasSubstr("POST ab"));
  ASSERT_TRUE(
      large.Send("POST /p HTTP/1.1\r\nexpect: 100-continue\r\ncontent-length: 99999999\r\n\r\n"));
  EXPECT_THAT(large.ReadResponse(), StartsWith("HTTP/1.1 413 "));
}

TEST_F(HttpServerTest, BoundsChunksHeadersAndFields) {
  Start();
  std::string crumbs = "POST / HTTP/1.1\r\ntransfer-encoding: chunked\r\n\r\n";
  for (int i = 0; i < 5000; ++i) crumbs += "1\r\nx\r\n";
  std::string fields = "GET / HTTP/1.1\r\n";
  for (int i = 0; i < 65; ++i) absl::StrAppend(&fields, "f", i, ": 1\r\n");

  struct Case {
    std::string bytes;
    std::string status;
  };

  const std::vector<Case> cases = {
      {crumbs, "413"},
      {fields + "\r\n", "431"},
      {absl::StrCat("GET / HTTP/1.1\r\nx: ", std::string(20'000, 'y'), "\r\n\r\n"), "431"},
      {absl::StrCat("GET /", std::string(20'000, 'y')), "431"},
  };

  for (const Case& c : cases) {
    RawClient client(server_->port());
    client.Send(c.bytes);
    EXPECT_THAT(client.ReadResponse(), StartsWith("HTTP/1.1 " + c.status));
  }
}

TEST_F(HttpServerTest, RefusesWhatIsNotHttp) {
  Start();

  struct Case {
    std::string bytes;
    std::string status;
  };

  const std::vector<Case> cases = {
      {"hello\r\n\r\n", "400"},
      {"GET / HTTP/1.1\r\nno colon\r\n\r\n", "400"},
      {"GET /%zz HTTP/1.1\r\n\r\n", "400"},
      {"GET / HTTP/2.0\r\n\r\n", "505"},
      {"POST / HTTP/1.1\r\ncontent-length: -1\r\n\r\n", "400"},
      {"POST / HTTP/1.1\r\ncontent-length: 1\r\ncontent-length: 2\r\n\r\nab", "400"},
      {"POST / HTTP/1.1\r\ncontent-length: 4\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n",
       "400"},
      {"POST / HTTP/1.1\r\ntransfer-encoding: chunked\r\n\r\nzz\r\n", "400"},
      {std::string("\x16\x03\x01\x00\xa5\x01\x00\x00", 8) + "\r\n\r\n", "400"},
      {"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", "505"},
  };

  for (const Case& c : cases) {
    RawClient client(server_->port());
    client.Send(c.bytes);
    EXPECT_THAT(client.ReadToEnd(), StartsWith("HTTP/1.1 " + c.status)) << c.bytes;
  }
  EXPECT_EQ(server_->counters().malformed, std::ssize(cases));
}

TEST_F(HttpServerTest, ClosesWhatDripsOrStalls) {
  options_.limits.header_time = absl::Milliseconds(200);
  options_.limits.body_time = absl::Milliseconds(200);
  options_.limits.idle_time = absl::Milliseconds(200);
  options_.limits.linger_time = absl::Milliseconds(100);
  Start();
  RawClient silent(server_->port());
  RawClient half_head(server_->port());
  RawClient half_body(server_->port());
  RawClient idle(server_->port());

  half_head.Send("GET / HTTP/1.1\r\nx:");
  half_body.Send("POST / HTTP/1.1\r\ncontent-length: 9\r\n\r\nabc");
  idle.Send("GET /i HTTP/1.1\r\n\r\n");

  EXPECT_EQ(silent.ReadToEnd(), "");
  EXPECT_THAT(half_head.ReadToEnd(), StartsWith("HTTP/1.1 408 "));
  EXPECT_THAT(half_body.ReadToEnd(), StartsWith("HTTP/1.1 408 "));
  EXPECT_TRUE(absl::EndsWith(idle.ReadToEnd(), "GET "));
  WaitUntil([&] { return server_->counters().connections == 0; });
}

TEST_F(HttpServerTest, HoldsBackItsWriterForAReaderThatDoesNotRead) {
  options_.limits.send_buffer_bytes = 16 << 10;
  options_.limits.write_time = absl::Milliseconds(300);
  Start();
  RawClient client(server_->port(), /*receive_buffer=*/4096);

  client.Send("GET /fountain HTTP/1.1\r\n\r\n");

  WaitUntil([&] {
    absl::MutexLock lock(&meter_.mutex);
    return meter_.is_done;
  });
  absl::MutexLock lock(&meter_.mutex);
  EXPECT_TRUE(meter_.is_gone);
  EXPECT_LT(meter_.num_written, 64) << "pieces of 4 KiB were taken over for a reader of nothing";
}

TEST_F(HttpServerTest, TellsAWriterAtOnceThatItsReaderIsGone) {
  Start();
  RawClient client(server_->port());
  client.Send("GET /silence HTTP/1.1\r\n\r\n");
  WaitUntil([&] { return server_->counters().connections == 1; });

  client.Close();

  WaitUntil([&] {
    absl::MutexLock lock(&meter_.mutex);
    return meter_.is_done;
  });
  WaitUntil([&] { return server_->counters().connections == 0; });
}

TEST_F(HttpServerTest, RefusesConnectionsBeyondItsNumber) {
  options_.limits.max_connections = 2;
  Start();
  RawClient first(server_->port());
  RawClient second(server_->port());
  WaitUntil([&] { return server_->counters().connections == 2; });
  RawClient third(server_->port());

  EXPECT_THAT(third.ReadToEnd(), StartsWith("HTTP/1.1 503 "));
  first.Close();
  WaitUntil([&] { return server_->counters().connections == 1; });
  RawClient fourth(server_->port());
  fourth.Send("GET /4 HTTP/1.1\r\n\r\n");
  EXPECT_THAT(fourth.ReadResponse(), HasSubstr("x-path: /4"));
}

TEST_F(HttpServerTest, ShutdownBreaksOffStreamsAndReturns) {
  Start();
  RawClient client(server_->port());
  client.Send("GET /fountain HTTP/1.1\r\n\r\n");
  client.ReadUntil("xxxx");

  server_->Shutdown();

  absl::MutexLock lock(&meter_.mutex);
  EXPECT_TRUE(meter_.is_done);
}

// The client has gone, so the server waits for nothing but the exchange's owner. Its thread once
// took that for the end of all work, and Shutdown waited for the connection in vain.
TEST_F(HttpServerTest, ShutdownWaitsForTheOwnerOfAnExchangeWhoseClientHasGone) {
  Start();
  HttpServerOptions twin = options_;
  twin.listen = absl::StrCat("127.0.0.1:", server_->port());
  RawClient client(server_->port());
  client.Send("GET /thought HTTP/1.1\r\n\r\n");
  const auto thinker = [&] {
    absl::MutexLock lock(&meter_.mutex);
    return thinker_.get();
  };
  WaitUntil([&] { return thinker() != nullptr; });
  client.Close();
  WaitUntil([&] { return thinker()->is_gone(); });

  std::thread shutdown([&] { server_->Shutdown(); });
  WaitUntil([&] { return HttpServer::Start(twin).ok(); });  // All connections are closed.
  thinker()->End();
  shutdown.join();

  EXPECT_TRUE(thinker()->is_done());
}

TEST_F(HttpServerTest, AnAddressThatCannotBeIsAnErrorAndNamed) {
  Start();
  HttpServerOptions twin = options_;
  twin.listen = absl::StrCat("127.0.0.1:", server_->port());
  HttpServerOptions nonsense = options_;
  nonsense.listen = "nowhere";

  const auto in_use = HttpServer::Start(twin);
  const auto no_address = HttpServer::Start(nonsense);

  EXPECT_TRUE(absl::IsUnavailable(in_use.status())) << in_use.status();
  EXPECT_THAT(std::string(in_use.status().message()), HasSubstr(twin.listen));
  EXPECT_TRUE(absl::IsInvalidArgument(no_address.status())) << no_address.status();
}

}  // namespace
}  // namespace shoal
