// Connections to a rank that are not, or only pretend to be, those of its peers.
#include <sys/socket.h>
#include <unistd.h>

#include <array>
#include <atomic>
#include <latch>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "absl/strings/match.h"
#include "absl/time/clock.h"
#include "gtest/gtest.h"

#include "tests/worker/exchange_cell.h"
#include "worker/exchange/handshake.h"
#include "worker/exchange/listener.h"
#include "worker/exchange/suspects.h"
#include "worker/exchange/transport.h"

namespace shoal {
namespace {

absl::Time Soon() {
  return absl::Now() + absl::Seconds(30);
}

// A blocking connection that says whatever it is told to say.
class Stranger {
 public:
  explicit Stranger(const std::string& endpoint) {
    const SocketAddress address = *ResolveAddress(endpoint);
    fd_ = Descriptor(socket(address.storage.ss_family, SOCK_STREAM | SOCK_CLOEXEC, 0));
    const timeval patience{.tv_sec = 0, .tv_usec = 200'000};
    setsockopt(fd_.get(), SOL_SOCKET, SO_RCVTIMEO, &patience, sizeof(patience));
    is_connected_ = connect(fd_.get(), address.get(), address.size) == 0;
  }

  bool is_connected() const { return is_connected_; }

  template <typename Message>
  void Say(const Message& message, size_t size = sizeof(Message)) {
    const ssize_t sent = send(fd_.get(), &message, size, MSG_NOSIGNAL);
    is_connected_ &= sent == static_cast<ssize_t>(size);
  }

  // False if the connection ended or was silent instead.
  template <typename Message>
  bool Hear(Message* message) {
    return recv(fd_.get(), message, sizeof(*message), MSG_WAITALL) ==
           static_cast<ssize_t>(sizeof(*message));
  }

  void Leave() { fd_.Close(); }

 private:
  Descriptor fd_;
  bool is_connected_ = false;
};

// One honest factory, rank 0; the test plays rank 1.
class ExchangeStrangerTest : public testing::TestWithParam<const char*> {
 protected:
  ExchangeStrangerTest() : factory_(*MakeExchangeFactory(GetParam(), {})) {
    endpoints_ = {factory_->endpoint(), "unix:/nobody/dials/this"};
  }

  Membership MembershipOf(int32_t rank, uint64_t epoch) const {
    return MakeMembership(endpoints_, epoch, rank, traffic_.replicas);
  }

  // Rank 0's Create and, if that succeeds, one step.
  absl::Status RunHonest(absl::Time deadline) {
    auto exchange = factory_->Create(MembershipOf(0, 5), shape_.limits(), deadline);
    if (!exchange.ok()) return exchange.status();
    return RunStep(shape_, traffic_, 0, exchange->get(), deadline);
  }

  // As rank 1. False if rank 0 hung up.
  bool ShakeHands(Stranger* stranger, const Membership& self) {
    const Hello hello = MakeHello(self, Rank{0});
    stranger->Say(hello);
    Answer answer;
    if (!stranger->Hear(&answer)) return false;
    stranger->Say(MakeProof(hello, answer, self.key));
    return true;
  }

  static FrameHeader Frame(ExchangeOp op, uint64_t seq) {
    return {.op = op, .epoch = 5, .seq = seq, .src = 1, .dst = 0};
  }

  const CellShape shape_{.num_ranks = 2};
  const Traffic traffic_ = RandomTraffic(shape_, {3, 3}, 21);
  const std::unique_ptr<ExchangeFactory> factory_;
  std::vector<std::string> endpoints_;
};

INSTANTIATE_TEST_SUITE_P(Transports,
                         ExchangeStrangerTest,
                         testing::Values("unix:", "tcp:127.0.0.1:0"),
                         [](const auto& transport) {
                           const std::string kind = transport.param;
                           return kind.substr(0, kind.find(':'));
                         });

TEST_P(ExchangeStrangerTest, TheTestsOwnHandshakeIsTheRealOne) {
  std::thread peer([&] {
    Stranger one(endpoints_[0]);
    EXPECT_TRUE(ShakeHands(&one, MembershipOf(1, 5)));
    one.Say(Frame(ExchangeOp::kOpen, 0));
    FrameHeader open;
    FrameHeader dispatch;
    EXPECT_TRUE(one.Hear(&open));
    EXPECT_TRUE(one.Hear(&dispatch));
    EXPECT_EQ(open.op, ExchangeOp::kOpen);
    EXPECT_EQ(dispatch.op, ExchangeOp::kDispatch);
    EXPECT_EQ(dispatch.seq, 1u);
    one.Leave();
  });
  const absl::Status status = RunHonest(Soon());
  peer.join();
  EXPECT_EQ(status.code(), absl::StatusCode::kUnavailable) << status;
  EXPECT_EQ(SuspectsOf(status), std::vector<Rank>{Rank{1}});
}

TEST_P(ExchangeStrangerTest, HalfAFrameIsAnEnd) {
  std::thread peer([&] {
    Stranger one(endpoints_[0]);
    EXPECT_TRUE(ShakeHands(&one, MembershipOf(1, 5)));
    one.Say(Frame(ExchangeOp::kOpen, 0));
    FrameHeader header = Frame(ExchangeOp::kDispatch, 1);
    header.rows = 1;
    header.bytes = 48;
    one.Say(header);
    one.Say(std::array<char, 20>{});
    one.Leave();
  });
  const absl::Status status = RunHonest(Soon());
  peer.join();
  EXPECT_EQ(status.code(), absl::StatusCode::kUnavailable) << status;
  EXPECT_EQ(SuspectsOf(status), std::vector<Rank>{Rank{1}});
}

TEST_P(ExchangeStrangerTest, FramesThatMakeNoSenseEndTheEpoch) {
  struct Case {
    const char* name;
    FrameHeader header;
    absl::StatusCode code;
  };

  std::vector<Case> cases;
  const auto add = [&cases](const char* name, absl::StatusCode code) -> FrameHeader& {
    cases.push_back({name, Frame(ExchangeOp::kDispatch, 1), code});
    return cases.back().header;
  };
  const auto precondition = absl::StatusCode::kFailedPrecondition;
  add("magic", absl::StatusCode::kUnavailable).magic = 7;
  add("source", absl::StatusCode::kUnavailable).src = 0;
  add("epoch", precondition).epoch = 6;
  add("sequence", precondition).seq = 2;
  add("a terabyte", precondition).bytes = uint64_t{1} << 40;
  add("2^64 - 1 bytes", precondition).bytes = ~uint64_t{0};
  add("rows without bytes", precondition).rows = 1;
  add("many rows without bytes", precondition).rows = 0xffffffffu;
  add("pairs without bytes", precondition).pairs = 0xffffffffu;
  for (const Case& c : cases) {
    SCOPED_TRACE(c.name);
    std::latch judged(1);
    std::thread peer([&] {
      Stranger one(endpoints_[0]);
      EXPECT_TRUE(ShakeHands(&one, MembershipOf(1, 5)));
      one.Say(Frame(ExchangeOp::kOpen, 0));
      one.Say(c.header);
      judged.wait();
    });
    const absl::Status status = RunHonest(Soon());
    judged.count_down();
    peer.join();
    EXPECT_EQ(status.code(), c.code) << status;
    EXPECT_EQ(SuspectsOf(status), std::vector<Rank>{Rank{1}});
  }
}

TEST_P(ExchangeStrangerTest, PairsAreCheckedBeforeTheyAreUsed) {
  int32_t held = 0;
  while (traffic_.replicas[static_cast<size_t>(held)].front() != Rank{0}) ++held;
  int32_t not_held = 0;
  while (traffic_.replicas[static_cast<size_t>(not_held)].front() == Rank{0}) ++not_held;

  struct Case {
    const char* name;
    RoutedPair pair;
  };

  const Case cases[] = {{"a row that was not sent", {1, held}},
                        {"a row far away", {0xffffffffu, held}},
                        {"an expert of somebody else", {0, not_held}},
                        {"no expert", {0, 99}},
                        {"a negative expert", {0, -1}}};
  for (const Case& c : cases) {
    SCOPED_TRACE(c.name);
    std::latch judged(1);
    std::thread peer([&] {
      Stranger one(endpoints_[0]);
      EXPECT_TRUE(ShakeHands(&one, MembershipOf(1, 5)));
      one.Say(Frame(ExchangeOp::kOpen, 0));
      FrameHeader header = Frame(ExchangeOp::kDispatch, 1);
      header.rows = 1;
      header.pairs = 1;
      header.bytes = 8 + 48;
      one.Say(header);
      one.Say(c.pair);
      one.Say(std::array<char, 48>{});
      judged.wait();
    });
    const absl::Status status = RunHonest(Soon());
    judged.count_down();
    peer.join();
    EXPECT_EQ(status.code(), absl::StatusCode::kFailedPrecondition) << status;
    EXPECT_EQ(SuspectsOf(status), std::vector<Rank>{Rank{1}});
  }
}

// Everybody who does not know the key is a stranger, whatever he says; a true peer that dials in
// their midst is served.
TEST_P(ExchangeStrangerTest, StrangersDisturbNobody) {
  const auto peer_factory = *MakeExchangeFactory(GetParam(), {});
  endpoints_[1] = peer_factory->endpoint();
  std::vector<std::unique_ptr<Stranger>> crowd;
  for (int i = 0; i < 60; ++i) {  // Some wait in the queue already; none hangs up.
    Stranger& stranger = *crowd.emplace_back(std::make_unique<Stranger>(endpoints_[0]));
    ASSERT_TRUE(stranger.is_connected());
    Hello hello = MakeHello(MembershipOf(1, 5), Rank{0});
    switch (i % 6) {
      case 0:  // Says nothing.
        break;
      case 1:
        stranger.Say(std::array<char, 256>{"GET / HTTP/1.1\r\n\r\n"});
        break;
      case 2:
        stranger.Say(hello, 20);
        break;
      case 3:
        hello.dst_incarnation = 5;
        stranger.Say(hello);
        break;
      case 4:
        hello.epoch = 9;  // Of no known incarnation, so it says nothing about our epoch.
        hello.src_incarnation = 77;
        stranger.Say(hello);
        break;
      case 5:
        stranger.Say(hello);  // Perfect, but the proof is missing.
        break;
    }
  }
  Membership liar = MembershipOf(1, 5);
  liar.key[0] ^= 1;
  std::atomic<bool> is_over = false;
  std::thread liars([&] {
    while (!is_over) {
      Stranger one(endpoints_[0]);
      if (one.is_connected()) ShakeHands(&one, liar);
      std::this_thread::yield();
    }
  });
  OnEachRank(2, [&](int32_t rank) {
    ExchangeFactory* factory = rank == 0 ? factory_.get() : peer_factory.get();
    auto exchange = factory->Create(MembershipOf(rank, 5), shape_.limits(), Soon());
    ASSERT_TRUE(exchange.ok()) << exchange.status();
    for (int i = 0; i < 20; ++i) {
      const absl::Status status = RunStep(shape_, traffic_, rank, exchange->get(), Soon());
      EXPECT_TRUE(status.ok()) << status;
    }
    if (rank == 1) is_over = true;
  });
  liars.join();
}

TEST(MakeExchangeFactoryTest, RefusesWhatItCannotListenOn) {
  struct Case {
    const char* address;
    absl::StatusCode code;
    const char* part;
  };

  const Case cases[] = {
      {"", absl::StatusCode::kInvalidArgument, "unix:PATH"},
      {"carrier-pigeon:", absl::StatusCode::kInvalidArgument, "carrier-pigeon"},
      {"local:", absl::StatusCode::kInvalidArgument, "threads of one process"},
      {"tcp:", absl::StatusCode::kInvalidArgument, "tcp:HOST:PORT"},
      {"tcp:localhost", absl::StatusCode::kInvalidArgument, "tcp:localhost"},
      {"tcp:localhost:http", absl::StatusCode::kInvalidArgument, "tcp:localhost:http"},
      {"tcp:localhost:99999", absl::StatusCode::kInvalidArgument, "99999"},
      {"tcp:192.0.2.1:0", absl::StatusCode::kUnavailable, "192.0.2.1"},
      {"unix:/no/such/folder/socket", absl::StatusCode::kUnavailable, "/no/such/folder/socket"},
  };
  for (const Case& c : cases) {
    const auto factory = MakeExchangeFactory(c.address, {});
    EXPECT_EQ(factory.status().code(), c.code) << c.address << ": " << factory.status();
    EXPECT_TRUE(absl::StrContains(factory.status().message(), c.part)) << factory.status();
  }
  const std::string long_path = "unix:/" + std::string(200, 'x');
  EXPECT_EQ(MakeExchangeFactory(long_path, {}).status().code(), absl::StatusCode::kInvalidArgument);
}

TEST(MakeExchangeFactoryTest, RefusesAnAddressInUseAndReplacesADeadSocket) {
  for (const char* kind : {"tcp:127.0.0.1:0", "unix:", "shm:"}) {
    SCOPED_TRACE(kind);
    const auto first = *MakeExchangeFactory(kind, {});
    const auto second = MakeExchangeFactory(first->endpoint(), {});
    EXPECT_EQ(second.status().code(), absl::StatusCode::kUnavailable);
    EXPECT_TRUE(absl::StrContains(second.status().message(), "in use")) << second.status();
  }

  const std::string path = testing::TempDir() + "/dead-socket-" + std::to_string(getpid());
  {
    const Descriptor dead(socket(AF_UNIX, SOCK_STREAM, 0));
    const SocketAddress address = *ResolveAddress("unix:" + path);
    ASSERT_EQ(bind(dead.get(), address.get(), address.size), 0);
  }
  EXPECT_EQ(access(path.c_str(), F_OK), 0);
  {
    const auto factory = MakeExchangeFactory("unix:" + path, {});
    EXPECT_TRUE(factory.ok()) << factory.status();
  }
  EXPECT_EQ(access(path.c_str(), F_OK), -1) << "the socket is removed with its factory";
}

TEST(MakeExchangeFactoryTest, AnOwnFolderIsRemovedAtTheEnd) {
  std::string folder;
  {
    const auto factory = *MakeExchangeFactory("unix:", {});
    folder = factory->endpoint().substr(5, factory->endpoint().rfind('/') - 5);
    EXPECT_EQ(access(folder.c_str(), F_OK), 0) << folder;
  }
  EXPECT_EQ(access(folder.c_str(), F_OK), -1) << folder;
}

}  // namespace
}  // namespace shoal
