// Workers as threads of this process against a coordinator that the test plays over real gRPC: what
// the link says, when it dials again, and that two workers compute what one does.
#include "worker/serve/worker_process.h"

#include <unistd.h>

#include <filesystem>
#include <memory>
#include <string>
#include <utility>
#include <variant>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "gmock/gmock.h"
#include "grpcpp/grpcpp.h"
#include "gtest/gtest.h"

#include "base/bounded_queue.h"
#include "proto/cluster.grpc.pb.h"
#include "proto/wire.h"

namespace shoal {
namespace {

constexpr absl::Duration kPatience = absl::Seconds(60);
constexpr CellId kCell{0};
constexpr Term kTerm{1};

// What a worker said, or that its stream ended (nullopt).
struct Heard {
  int stream = 0;
  std::optional<FromWorker> message;
};

// A coordinator without a mind: streams are numbered in the order of their coming.
class PlayedCoordinator final : public fleet::v1::WorkerLink::Service {
 public:
  using Stream = grpc::ServerReaderWriter<fleet::v1::ToWorker, fleet::v1::FromWorker>;

  explicit PlayedCoordinator(const std::string& address) {
    grpc::ServerBuilder builder;
    builder.AddListeningPort(address, grpc::InsecureServerCredentials());
    builder.RegisterService(this);
    builder.SetMaxReceiveMessageSize(8 << 20);
    builder.AddChannelArgument(GRPC_ARG_HTTP2_MIN_RECV_PING_INTERVAL_WITHOUT_DATA_MS, 500);
    server_ = builder.BuildAndStart();
    EXPECT_NE(server_, nullptr) << address;
  }

  ~PlayedCoordinator() override { server_->Shutdown(absl::ToChronoTime(absl::Now())); }

  grpc::Status Link(grpc::ServerContext* context, Stream* stream) override {
    int number = 0;
    {
      absl::MutexLock lock(&mutex_);
      number = static_cast<int>(contexts_.size());
      contexts_.push_back(context);
      streams_.push_back(stream);
    }
    FromWorkerReader reader;
    fleet::v1::FromWorker incoming;
    while (stream->Read(&incoming)) {
      EXPECT_LT(incoming.ByteSizeLong(), 5u << 20);
      auto message = reader.Read(incoming);
      EXPECT_TRUE(message.ok()) << message.status();
      if (!message.ok()) break;
      if (message->has_value()) {
        heard_.Push({.stream = number, .message = **std::move(message)}, absl::InfiniteFuture());
      }
    }
    {
      absl::MutexLock lock(&mutex_);
      streams_[static_cast<size_t>(number)] = nullptr;
      contexts_[static_cast<size_t>(number)] = nullptr;
    }
    heard_.Push({.stream = number, .message = std::nullopt}, absl::InfiniteFuture());
    return grpc::Status::OK;
  }

  void Tell(int stream, const ToWorker& message) {
    absl::MutexLock lock(&mutex_);
    Stream* to = streams_.at(static_cast<size_t>(stream));
    ASSERT_NE(to, nullptr);
    ASSERT_TRUE(to->Write(ToProto(message)));
  }

  void Break(int stream) {
    absl::MutexLock lock(&mutex_);
    grpc::ServerContext* context = contexts_.at(static_cast<size_t>(stream));
    if (context != nullptr) context->TryCancel();
  }

  // The next message of kind T, from any stream; what else comes is passed over.
  template <typename T>
  T Hear(int* stream = nullptr) {
    while (auto heard = heard_.Pop(absl::Now() + kPatience)) {
      if (!heard->message.has_value()) continue;
      if (auto* message = std::get_if<T>(&*heard->message)) {
        if (stream != nullptr) *stream = heard->stream;
        return std::move(*message);
      }
      if (const auto* refusal = std::get_if<Refusal>(&*heard->message)) {
        ADD_FAILURE() << "refused: " << refusal->reason;
      }
    }
    ADD_FAILURE() << "nothing was heard";
    return T{};
  }

 private:
  std::unique_ptr<grpc::Server> server_;
  BoundedQueue<Heard> heard_{1024};
  absl::Mutex mutex_;
  std::vector<grpc::ServerContext*> contexts_;
  std::vector<Stream*> streams_;
};

class WorkerProcessTest : public testing::Test {
 protected:
  WorkerProcessTest() {
    auto source = MakeSyntheticSource(ModelConfig::Tiny());
    dense_ = *DenseSegment::Load(*source, [](int64_t, int64_t) { return true; });
  }

  ~WorkerProcessTest() override { std::filesystem::remove(path_); }

  WorkerProcessOptions Options(uint32_t id) const {
    WorkerProcessOptions options;
    options.id = id;
    options.coordinators = {address()};
    options.version = "test";
    options.dummy = ModelConfig::Tiny();
    options.dense = dense_.get();
    options.exchange = "local:";
    options.hub = hub_;
    options.memory_bytes = int64_t{1} << 28;
    options.kv_tokens = 2048;
    return options;
  }

  std::string address() const { return absl::StrCat("unix:", path_); }

  // All experts on every worker; then one cell of them all. Returns streams by rank.
  static std::vector<int> FormCell(PlayedCoordinator* coordinator, int num_workers) {
    std::vector<int> streams(static_cast<size_t>(num_workers));
    Configure configure{.term = kTerm,
                        .cell = kCell,
                        .epoch = Epoch{1},
                        .next_step = StepId{1},
                        .max_rows = 64,
                        .num_full_blocks = 64,
                        .num_window_blocks = 64,
                        .deadline_ms = 30'000};
    configure.members.resize(streams.size());
    for (int i = 0; i < num_workers; ++i) {
      int stream = 0;
      const Enrol enrol = coordinator->Hear<Enrol>(&stream);
      streams[enrol.worker.value] = stream;
      configure.members[enrol.worker.value] = {.worker = enrol.worker,
                                               .incarnation = enrol.incarnation,
                                               .exchange_endpoint = enrol.exchange_endpoint,
                                               .host = enrol.host};
    }
    for (int e = 0; e < 8; ++e) configure.placement.push_back({Rank{e % num_workers}});
    for (int r = 0; r < num_workers; ++r) {
      LoadExperts load{.term = kTerm, .cell = kCell, .placement_version = 1};
      for (int e = r; e < 8; e += num_workers) load.experts.push_back(ExpertId{e});
      coordinator->Tell(streams[static_cast<size_t>(r)], load);
    }
    for (int r = 0; r < num_workers; ++r) {
      EXPECT_TRUE(coordinator->Hear<ExpertsLoaded>().status.ok());
    }
    for (int r = 0; r < num_workers; ++r) {
      configure.rank = Rank{r};
      coordinator->Tell(streams[static_cast<size_t>(r)], configure);
    }
    for (int r = 0; r < num_workers; ++r) {
      const Ready ready = coordinator->Hear<Ready>();
      EXPECT_TRUE(ready.status.ok()) << ready.status;
    }
    return streams;
  }

  // One step with all twelve tokens of the golden prompt on rank 0; its result.
  static StepResult RunPrompt(PlayedCoordinator* coordinator, const std::vector<int>& streams) {
    KeepRecord record{.term = kTerm, .sequence = SequenceId{1}, .prompt_length = 12};
    for (const int id : {101, 16, 47, 28, 18, 71, 18, 49, 87, 101, 71, 77}) {
      record.tokens.push_back(TokenId{id});
    }
    record.sampling.temperature = 0.0f;
    coordinator->Tell(streams[0], record);
    StepPlan plan{
        .term = kTerm, .cell = kCell, .epoch = Epoch{1}, .step = StepId{1}, .deadline_ms = 30'000};
    for (size_t r = streams.size(); r-- > 0;) {
      if (r == 0) {
        plan.entries.push_back({.sequence = SequenceId{1},
                                .first_position = 0,
                                .num_positions = 12,
                                .first_block = 0,
                                .full_blocks = {BlockId{0}},
                                .window_blocks = {BlockId{0}},
                                .wants_sample = true,
                                .wants_logits = true});
      }
      coordinator->Tell(streams[r], plan);
    }
    StepResult mine;
    for (size_t r = 0; r < streams.size(); ++r) {
      StepResult result = coordinator->Hear<StepResult>();
      EXPECT_TRUE(result.status.ok()) << result.status;
      if (!result.tokens.empty()) mine = std::move(result);
    }
    return mine;
  }

  const std::string path_ = (std::filesystem::temp_directory_path() /
                             absl::StrCat("shoal_worker_process_test_", getpid()))
                                .string();
  const std::shared_ptr<LocalHub> hub_ = std::make_shared<LocalHub>();
  std::unique_ptr<DenseSegment> dense_;
};

TEST_F(WorkerProcessTest, EnrolsFirstAndBeatsAfterwards) {
  PlayedCoordinator coordinator(address());
  const auto worker = WorkerProcess::StartInThread(Options(3));
  const Enrol enrol = coordinator.Hear<Enrol>();
  EXPECT_EQ(enrol.worker, WorkerId{3});
  EXPECT_NE(enrol.incarnation, Incarnation{0});
  EXPECT_EQ(enrol.numerics.version, "test");
  EXPECT_EQ(enrol.dense_bytes, 0);  // Shared
  EXPECT_EQ(enrol.memory_bytes, int64_t{1} << 28);
  const absl::Time first = absl::Now();
  EXPECT_EQ(coordinator.Hear<Beat>().phase, "enrolled");
  coordinator.Hear<Beat>();
  EXPECT_LT(absl::Now() - first, absl::Seconds(20));
  EXPECT_TRUE(worker->Health().ok());
}

TEST_F(WorkerProcessTest, TheSameIncarnationEnrolsAgainAfterABrokenLink) {
  PlayedCoordinator coordinator(address());
  const auto worker = WorkerProcess::StartInThread(Options(3));
  int stream = 0;
  const Enrol first = coordinator.Hear<Enrol>(&stream);
  coordinator.Tell(stream, Welcome{.term = Term{7}});
  coordinator.Break(stream);
  const Enrol second = coordinator.Hear<Enrol>(&stream);
  EXPECT_EQ(second.incarnation, first.incarnation);
  EXPECT_EQ(stream, 1);
}

TEST_F(WorkerProcessTest, WaitsForACoordinatorThatIsNotThereYet) {
  const auto worker = WorkerProcess::StartInThread(Options(3));
  {
    PlayedCoordinator coordinator(address());
    EXPECT_EQ(coordinator.Hear<Enrol>().worker, WorkerId{3});
  }
  PlayedCoordinator successor(address());
  EXPECT_EQ(successor.Hear<Enrol>().worker, WorkerId{3});
}

TEST_F(WorkerProcessTest, ADismissalEndsItWithItsReason) {
  PlayedCoordinator coordinator(address());
  const auto worker = WorkerProcess::StartInThread(Options(3));
  int stream = 0;
  coordinator.Hear<Enrol>(&stream);
  coordinator.Tell(
      stream, Dismiss{.term = kTerm, .reason = absl::FailedPreconditionError("other checkpoint")});
  EXPECT_TRUE(worker->AwaitEnd(absl::Now() + kPatience));
  EXPECT_EQ(worker->Health().message(), "other checkpoint");
  EXPECT_EQ(worker->Health().code(), absl::StatusCode::kFailedPrecondition);
}

TEST_F(WorkerProcessTest, WhatKeepsItFromStartingIsToldAtOnce) {
  const auto health = [](WorkerProcessOptions options) {
    const auto worker = WorkerProcess::StartInThread(std::move(options));
    EXPECT_TRUE(worker->AwaitEnd(absl::Now() + kPatience));
    return worker->Health();
  };
  WorkerProcessOptions options = Options(1);
  options.dummy.reset();
  options.model = "/nowhere/at/all";
  EXPECT_THAT(std::string(health(options).message()), testing::HasSubstr("/nowhere/at/all"));
  options = Options(1);
  options.isa = "mmx";
  EXPECT_THAT(std::string(health(options).message()), testing::HasSubstr("mmx"));
  options = Options(1);
  options.exchange = "pigeon:1";
  EXPECT_THAT(std::string(health(options).message()), testing::HasSubstr("pigeon"));
  options = Options(1);
  options.coordinators.clear();
  EXPECT_EQ(health(options).code(), absl::StatusCode::kInvalidArgument);
  options = Options(1);
  options.cpus = {0, 1};
  EXPECT_EQ(health(options).code(), absl::StatusCode::kInvalidArgument);
}

TEST_F(WorkerProcessTest, ThreeWorkersComputeWhatOneDoes) {
  std::vector<StepResult> results;
  for (const int num_workers : {1, 3}) {
    PlayedCoordinator coordinator(address());
    std::vector<std::unique_ptr<WorkerProcess>> workers;
    for (int i = 0; i < num_workers; ++i) {
      workers.push_back(WorkerProcess::StartInThread(Options(static_cast<uint32_t>(i))));
    }
    const std::vector<int> streams = FormCell(&coordinator, num_workers);
    results.push_back(RunPrompt(&coordinator, streams));
  }
  ASSERT_EQ(results[0].tokens.size(), 1u);
  EXPECT_EQ(results[0].tokens[0].token, TokenId{92});  // Spec 8.6
  EXPECT_EQ(results[0].tokens, results[1].tokens);
  ASSERT_EQ(results[0].logits.size(), 1u);
  EXPECT_EQ(results[0].logits, results[1].logits);
}

// 12 rows of 100,000 logits are 4.8 MB: more than a message may have.
TEST_F(WorkerProcessTest, ManyLogitsArriveWhole) {
  ModelConfig config = ModelConfig::Tiny();
  config.vocab = 100'000;
  const auto source = MakeSyntheticSource(config);
  const auto dense = *DenseSegment::Load(*source, [](int64_t, int64_t) { return true; });
  WorkerProcessOptions options = Options(0);
  options.dummy = config;
  options.dense = dense.get();
  PlayedCoordinator coordinator(address());
  const auto worker = WorkerProcess::StartInThread(std::move(options));
  const StepResult result = RunPrompt(&coordinator, FormCell(&coordinator, 1));
  ASSERT_EQ(result.logits.size(), 1u);
  EXPECT_EQ(result.logits[0].num_positions, 12);
  EXPECT_EQ(result.logits[0].values.size(), 1'200'000u);
  EXPECT_NEAR(result.logits[0].values[11 * 100'000], 2.0, 0.3);  // The same first 128 rows
}

}  // namespace
}  // namespace shoal
