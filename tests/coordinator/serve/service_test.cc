// The whole service with the real core, over real gRPC, in front of a worker that knows the
// answers.
#include <unistd.h>

#include <chrono>
#include <functional>
#include <map>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "absl/cleanup/cleanup.h"
#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "absl/time/time.h"
#include "gmock/gmock.h"
#include "grpcpp/generic/generic_stub.h"
#include "grpcpp/grpcpp.h"
#include "gtest/gtest.h"

#include "base/prng.h"
#include "coordinator/serve/server.h"
#include "proto/admin.grpc.pb.h"
#include "proto/inference.grpc.pb.h"
#include "tests/coordinator/serve/fake_worker.h"
#include "tests/coordinator/serve/small_model.h"

namespace shoal {
namespace {

using grpc::StatusCode;
using testing::ElementsAre;
using testing::HasSubstr;
using testing_model::kEuroHead;
using testing_model::kEuroTail;
using testing_model::kReturn;

// What the worker answers to a prompt: letters that depend on the prompt, the seed and the place.
TokenId Oracle(const KeepRecord& record, int32_t index) {
  const uint64_t key = static_cast<uint64_t>(record.tokens[0].value) * 1'000'003 +
                       record.sampling.seed * 7919 + static_cast<uint64_t>(index);
  return TokenId{static_cast<int32_t>(Mix64(key) % 26)};
}

std::vector<uint32_t> OracleTokens(uint32_t prompt, uint64_t seed, int32_t begin, int32_t end) {
  KeepRecord record;
  record.tokens = {TokenId{static_cast<int32_t>(prompt)}};
  record.sampling.seed = seed;
  std::vector<uint32_t> out;
  for (int32_t i = begin; i < end; ++i) {
    out.push_back(static_cast<uint32_t>(Oracle(record, i).value));
  }
  return out;
}

FakeWorker::Next Script(std::vector<int32_t> tokens) {
  return [tokens = std::move(tokens)](const KeepRecord&, int32_t index) {
    return TokenId{tokens[static_cast<size_t>(index) % tokens.size()]};
  };
}

std::string TextOf(const std::vector<uint32_t>& tokens) {
  std::string text;
  for (const uint32_t token : tokens) text += static_cast<char>('a' + token);
  return text;
}

v1::GenerateRequest Asks(uint32_t prompt, uint32_t max_tokens) {
  v1::GenerateRequest request;
  request.mutable_tokens()->add_ids(prompt);
  request.mutable_sampling()->set_seed(5);
  request.mutable_limits()->set_max_tokens(max_tokens);
  return request;
}

// One choice as a client puts it together. Reading it checks that nothing is missing or repeated.
struct Choice {
  uint32_t next_index = 0;
  std::vector<uint32_t> tokens;
  std::vector<v1::TokenLogprob> logprobs;
  std::string text;  // With the tail that came with `finished`
  uint64_t prefix_hash = 0;
  bool is_finished = false;
  v1::Finished finished;
};

struct Stream {
  v1::Started started;
  int num_started = 0;
  std::map<uint32_t, Choice> choices;
  grpc::Status status;

  Choice only() const {
    EXPECT_EQ(choices.size(), 1u) << status.error_message();
    return choices.empty() ? Choice() : choices.begin()->second;
  }
};

using EventReader = std::unique_ptr<grpc::ClientReader<v1::GenerateEvent>>;

void Add(const v1::GenerateEvent& event, Stream* stream, uint32_t first_index = 0) {
  if (event.has_started()) {
    EXPECT_TRUE(stream->choices.empty()) << "`started` must come first";
    ++stream->num_started;
    stream->started = event.started();
    return;
  }
  Choice& choice =
      stream->choices.try_emplace(event.choice(), Choice{.next_index = first_index}).first->second;
  EXPECT_FALSE(choice.is_finished);
  if (event.has_chunk()) {
    const v1::TokenChunk& chunk = event.chunk();
    EXPECT_EQ(chunk.first_index(), choice.next_index) << "a gap or a repeat";
    choice.next_index += static_cast<uint32_t>(chunk.token_ids_size());
    choice.tokens.insert(choice.tokens.end(), chunk.token_ids().begin(), chunk.token_ids().end());
    choice.logprobs.insert(choice.logprobs.end(), chunk.logprobs().begin(), chunk.logprobs().end());
    choice.text += chunk.text();
    choice.prefix_hash = chunk.prefix_hash();
  } else {
    choice.is_finished = true;
    choice.finished = event.finished();
    choice.text += event.finished().text();
  }
}

Stream ReadAll(grpc::ClientReader<v1::GenerateEvent>* reader, uint32_t first_index = 0) {
  Stream stream;
  v1::GenerateEvent event;
  while (reader->Read(&event)) Add(event, &stream, first_index);
  stream.status = reader->Finish();
  return stream;
}

// Until `num_tokens` of choice 0 are there.
Stream ReadTokens(uint32_t num_tokens, grpc::ClientReader<v1::GenerateEvent>* reader) {
  Stream stream;
  v1::GenerateEvent event;
  const auto has_enough = [&] {
    const auto found = stream.choices.find(0);
    return found != stream.choices.end() && found->second.next_index >= num_tokens;
  };
  while (!has_enough() && reader->Read(&event)) Add(event, &stream);
  return stream;
}

class ServiceTest : public testing::Test {
 protected:
  ServiceTest() {
    options_.config = testing_model::SmallConfig();
    options_.model_name = "small";
    options_.version = "test";
    options_.tokenizer = &tokenizer_;
    options_.coordinator.num_experts = options_.config.num_experts;
    options_.coordinator.num_layers = options_.config.num_layers;
    options_.coordinator.max_positions = options_.config.max_positions;
    options_.coordinator.sliding_window = options_.config.sliding_window;
  }

  void StartServer() {
    absl::StatusOr<std::unique_ptr<CoordinatorServer>> server = CoordinatorServer::Start(options_);
    ASSERT_TRUE(server.ok()) << server.status();
    server_ = *std::move(server);
    address_ = absl::StrCat("127.0.0.1:", server_->port());
    // A small window, so that a client that does not read is noticed after a few kilobytes.
    grpc::ChannelArguments arguments;
    arguments.SetInt(GRPC_ARG_HTTP2_STREAM_LOOKAHEAD_BYTES, 4096);
    arguments.SetInt(GRPC_ARG_HTTP2_BDP_PROBE, 0);
    channel_ = grpc::CreateCustomChannel(address_, grpc::InsecureChannelCredentials(), arguments);
    stub_ = v1::Inference::NewStub(channel_);
    admin_ = v1::Admin::NewStub(channel_);
  }

  std::unique_ptr<FakeWorker> MakeWorker(FakeWorker::Next next = Oracle) {
    return std::make_unique<FakeWorker>(FakeWorker::Options{
        .address = address_,
        .next = std::move(next),
        .vocab = options_.config.vocab,
    });
  }

  void StartWithWorker(FakeWorker::Next next = Oracle) {
    StartServer();
    worker_ = MakeWorker(std::move(next));
    WaitUntil([](const FleetStatus& status) { return status.is_ready; });
  }

  // Asks the server until it says so; each question is answered by the loop, so this is no sleep.
  void WaitUntil(const std::function<bool(const FleetStatus&)>& is_so) {
    const absl::Time deadline = absl::Now() + absl::Seconds(20);
    while (!is_so(server_->Status())) ASSERT_LT(absl::Now(), deadline) << "it never came to that";
  }

  void WaitUntilAllIsFree() {
    WaitUntil([](const FleetStatus& status) {
      if (status.running != 0 || status.waiting != 0) return false;
      for (const CellStatus& cell : status.cells) {
        for (const WorkerStatus& worker : cell.workers) {
          if (worker.full_blocks_used != 0 || worker.window_blocks_used != 0) return false;
        }
      }
      return true;
    });
  }

  Stream Generate(const v1::GenerateRequest& request) {
    grpc::ClientContext context;
    context.set_deadline(std::chrono::system_clock::now() + std::chrono::seconds(60));
    return ReadAll(stub_->Generate(&context, request).get());
  }

  Stream Attach(const v1::AttachRequest& request) {
    grpc::ClientContext context;
    context.set_deadline(std::chrono::system_clock::now() + std::chrono::seconds(60));
    return ReadAll(stub_->Attach(&context, request).get(), request.next_index());
  }

  testing_model::AlphabetTokenizer tokenizer_;
  CoordinatorServerOptions options_;
  std::unique_ptr<CoordinatorServer> server_;
  std::string address_;
  std::shared_ptr<grpc::Channel> channel_;
  std::unique_ptr<v1::Inference::Stub> stub_;
  std::unique_ptr<v1::Admin::Stub> admin_;
  std::unique_ptr<FakeWorker> worker_;  // Ends before the server
};

TEST_F(ServiceTest, StreamsTokensTextAndUsage) {
  StartWithWorker();
  const Stream stream = Generate(Asks(3, 50));

  ASSERT_TRUE(stream.status.ok()) << stream.status.error_message();
  EXPECT_EQ(stream.num_started, 1);
  EXPECT_EQ(stream.started.model(), "small");
  EXPECT_EQ(stream.started.prompt_tokens(), 1u);
  const Choice choice = stream.only();
  EXPECT_EQ(choice.tokens, OracleTokens(3, 5, 0, 50));
  EXPECT_EQ(choice.text, TextOf(choice.tokens));
  EXPECT_EQ(choice.finished.reason(), v1::Finished::LENGTH);
  EXPECT_EQ(choice.finished.usage().prompt_tokens(), 1u);
  EXPECT_EQ(choice.finished.usage().completion_tokens(), 50u);
  EXPECT_GT(choice.finished.timings().first_token_us(), 0u);
  WaitUntilAllIsFree();
}

TEST_F(ServiceTest, TextPromptsAreTokenisedAndTextIsNotSplitInsideACharacter) {
  StartWithWorker(Script({0, kEuroHead, kEuroTail, 1, kEuroHead}));
  v1::GenerateRequest request = Asks(0, 5);
  request.set_text("abc");

  const Stream stream = Generate(request);

  EXPECT_EQ(stream.started.prompt_tokens(), 3u);
  EXPECT_EQ(stream.only().text,
            "a\xe2\x82\xac"
            "b\xef\xbf\xbd");
}

TEST_F(ServiceTest, AStopTokenEndsTheAnswerAndIsNotText) {
  StartWithWorker(Script({7, 8, kReturn}));

  const Stream stream = Generate(Asks(0, 20));

  const Choice choice = stream.only();
  EXPECT_THAT(choice.tokens, ElementsAre(7, 8, kReturn));
  EXPECT_EQ(choice.text, "hi");
  EXPECT_EQ(choice.finished.reason(), v1::Finished::STOP);
  EXPECT_EQ(choice.finished.stop_token_id(), static_cast<uint32_t>(kReturn));
}

TEST_F(ServiceTest, IgnoreEosGoesOnPastTheEndButNotPastTheClientsOwnStop) {
  StartWithWorker(Script({7, kReturn, 8, 9}));
  v1::GenerateRequest request = Asks(0, 20);
  request.mutable_limits()->set_ignore_eos(true);
  request.mutable_limits()->add_stop_token_ids(9);

  const Stream stream = Generate(request);

  EXPECT_THAT(stream.only().tokens, ElementsAre(7, kReturn, 8, 9));
  EXPECT_EQ(stream.only().text, "h<|return|>i");
}

TEST_F(ServiceTest, AStopStringAcrossTokensCutsTheTextAndFreesTheSequence) {
  StartWithWorker(Script({0, 1, 2, 3, 4, 5}));
  v1::GenerateRequest request = Asks(0, 60'000);
  request.mutable_limits()->add_stop("bcx");
  request.mutable_limits()->add_stop("cde");

  const Stream stream = Generate(request);

  const Choice choice = stream.only();
  EXPECT_TRUE(stream.status.ok());
  EXPECT_EQ(choice.text, "ab");
  EXPECT_THAT(choice.tokens, ElementsAre(0, 1, 2, 3, 4));
  EXPECT_EQ(choice.finished.reason(), v1::Finished::STOP_STRING);
  EXPECT_EQ(choice.finished.stop_string(), "cde");
  EXPECT_EQ(choice.finished.usage().completion_tokens(), 5u);
  WaitUntilAllIsFree();
}

TEST_F(ServiceTest, LogprobsCarryBytesAndAlternatives) {
  StartWithWorker(Script({kEuroHead, kEuroTail}));
  v1::GenerateRequest request = Asks(0, 2);
  request.mutable_output()->set_logprobs(3);

  const Stream stream = Generate(request);

  ASSERT_EQ(stream.only().logprobs.size(), 2u);
  const v1::TokenLogprob first = stream.only().logprobs[0];
  EXPECT_EQ(first.token_id(), static_cast<uint32_t>(kEuroHead));
  EXPECT_EQ(first.raw(), "\xe2\x82");
  EXPECT_FLOAT_EQ(first.logprob(), -0.5f);
  ASSERT_EQ(first.top_size(), 3);
  EXPECT_EQ(first.top(2).raw(), "c");
  EXPECT_FLOAT_EQ(first.top(2).logprob(), -2.5f);
}

TEST_F(ServiceTest, EveryChoiceHasItsOwnTokens) {
  StartWithWorker();
  v1::GenerateRequest request = Asks(3, 30);
  request.mutable_sampling()->set_n(4);

  const Stream stream = Generate(request);

  ASSERT_TRUE(stream.status.ok()) << stream.status.error_message();
  ASSERT_EQ(stream.choices.size(), 4u);
  EXPECT_EQ(stream.choices.at(0).tokens, OracleTokens(3, 5, 0, 30));
  for (const auto& [index, choice] : stream.choices) {
    EXPECT_TRUE(choice.is_finished);
    EXPECT_EQ(choice.tokens.size(), 30u);
    EXPECT_EQ(choice.text, TextOf(choice.tokens));
    if (index > 0) {
      EXPECT_NE(choice.tokens, stream.choices.at(0).tokens);
    }
  }
}

TEST_F(ServiceTest, CancelEndsTheStreamAndFreesItsBlocks) {
  StartWithWorker();
  worker_->Hold(10);
  v1::GenerateRequest request = Asks(1, 60'000);
  request.set_request_id("r-1");
  grpc::ClientContext context;
  const EventReader reader = stub_->Generate(&context, request);
  const Stream begun = ReadTokens(10, reader.get());

  grpc::ClientContext cancel_context;
  v1::CancelRequest cancel;
  cancel.set_request_id("r-1");
  v1::CancelResponse response;
  ASSERT_TRUE(stub_->Cancel(&cancel_context, cancel, &response).ok());
  const Stream rest = ReadAll(reader.get(), 10);
  worker_->Hold(0x7fffffff);

  EXPECT_EQ(begun.choices.at(0).tokens, OracleTokens(1, 5, 0, 10));
  EXPECT_EQ(rest.status.error_code(), StatusCode::CANCELLED);
  EXPECT_EQ(rest.only().finished.reason(), v1::Finished::CANCELLED);
  EXPECT_EQ(rest.only().finished.usage().completion_tokens(), 10u);
  WaitUntilAllIsFree();
}

TEST_F(ServiceTest, AClientThatVanishesFreesItsBlocks) {
  StartWithWorker();
  grpc::ClientContext context;
  const EventReader reader = stub_->Generate(&context, Asks(1, 60'000));
  ReadTokens(5, reader.get());

  context.TryCancel();

  EXPECT_EQ(reader->Finish().error_code(), StatusCode::CANCELLED);
  WaitUntilAllIsFree();
}

TEST_F(ServiceTest, ADeadlineEndsTheRequestInsideTheFleetToo) {
  StartWithWorker();
  worker_->Hold(3);
  grpc::ClientContext context;
  context.set_deadline(std::chrono::system_clock::now() + std::chrono::milliseconds(200));
  const EventReader reader = stub_->Generate(&context, Asks(1, 60'000));

  const Stream stream = ReadAll(reader.get());
  worker_->Hold(0x7fffffff);

  EXPECT_EQ(stream.status.error_code(), StatusCode::DEADLINE_EXCEEDED);
  WaitUntilAllIsFree();
}

TEST_F(ServiceTest, AttachContinuesWithoutGapOrRepeat) {
  StartWithWorker();
  v1::GenerateRequest request = Asks(2, 400);
  request.set_request_id("again");
  Stream begun;
  {
    grpc::ClientContext context;
    const EventReader reader = stub_->Generate(&context, request);
    begun = ReadTokens(7, reader.get());
    context.TryCancel();
    reader->Finish();
  }
  const Choice& head = begun.choices.at(0);

  v1::AttachRequest attach;
  attach.set_request_id("again");
  attach.set_next_index(head.next_index);
  attach.set_prefix_hash(head.prefix_hash);
  const Stream rest = Attach(attach);
  attach.set_prefix_hash(head.prefix_hash + 1);
  const Stream spliced = Attach(attach);
  attach.set_request_id("another");
  const Stream unknown = Attach(attach);

  ASSERT_TRUE(rest.status.ok()) << rest.status.error_message();
  std::vector<uint32_t> all = head.tokens;
  const Choice tail = rest.only();
  all.insert(all.end(), tail.tokens.begin(), tail.tokens.end());
  EXPECT_EQ(all, OracleTokens(2, 5, 0, 400));
  EXPECT_EQ(head.text + rest.only().text, TextOf(all));
  EXPECT_EQ(rest.only().finished.usage().completion_tokens(), 400u);
  EXPECT_EQ(spliced.status.error_code(), StatusCode::DATA_LOSS);
  EXPECT_TRUE(spliced.choices.empty());
  EXPECT_EQ(unknown.status.error_code(), StatusCode::NOT_FOUND);
}

TEST_F(ServiceTest, TheSameIdIsTheSameRequestAndAnotherBodyIsRefused) {
  StartWithWorker();
  v1::GenerateRequest request = Asks(2, 40);
  request.mutable_sampling()->clear_seed();  // Drawn once, not once for each call.
  request.set_request_id("once");

  const Stream first = Generate(request);
  const Stream second = Generate(request);
  request.mutable_limits()->set_max_tokens(41);
  const Stream other = Generate(request);

  EXPECT_EQ(first.only().tokens.size(), 40u);
  EXPECT_EQ(second.only().tokens, first.only().tokens);
  EXPECT_EQ(other.status.error_code(), StatusCode::ALREADY_EXISTS);
  EXPECT_EQ(server_->Status().accepted, 1);
}

TEST_F(ServiceTest, ASlowReaderIsParkedAndGoesOnWithoutGapOrRepeat) {
  options_.delivery.max_unread_tokens = 64;
  StartWithWorker();
  v1::GenerateRequest request = Asks(2, 3000);
  request.mutable_output()->set_logprobs(20);
  request.mutable_sampling()->set_n(2);
  grpc::ClientContext context;
  const EventReader slow = stub_->Generate(&context, request);

  // Somebody else is served meanwhile.
  const Stream other = Generate(Asks(9, 3000));
  WaitUntil([this](const FleetStatus&) { return server_->delivery_counters().parked > 0; });
  const Stream stream = ReadAll(slow.get());

  EXPECT_EQ(other.only().tokens, OracleTokens(9, 5, 0, 3000));
  ASSERT_TRUE(stream.status.ok()) << stream.status.error_message();
  EXPECT_EQ(stream.num_started, 1);
  EXPECT_EQ(stream.choices.at(0).tokens, OracleTokens(2, 5, 0, 3000));
  EXPECT_EQ(stream.choices.at(1).tokens.size(), 3000u);
  EXPECT_GT(server_->delivery_counters().resumed, 0);
  WaitUntilAllIsFree();
}

TEST_F(ServiceTest, AReaderParkedForTooLongIsGivenUp) {
  options_.delivery.max_unread_tokens = 64;
  options_.delivery.max_parked = absl::Milliseconds(200);
  StartWithWorker();
  v1::GenerateRequest request = Asks(2, 60'000);
  request.mutable_output()->set_logprobs(20);
  grpc::ClientContext context;
  const EventReader slow = stub_->Generate(&context, request);

  WaitUntil([this](const FleetStatus&) { return server_->delivery_counters().parked > 0; });
  WaitUntilAllIsFree();
  const Stream stream = ReadAll(slow.get());

  EXPECT_EQ(stream.status.error_code(), StatusCode::RESOURCE_EXHAUSTED);
}

TEST_F(ServiceTest, ALostWorkerIsNotSeenInTheStream) {
  StartWithWorker();
  worker_->Hold(20);
  grpc::ClientContext context;
  const EventReader reader = stub_->Generate(&context, Asks(6, 100));
  const Stream begun = ReadTokens(20, reader.get());

  worker_.reset();
  worker_ = std::make_unique<FakeWorker>(
      FakeWorker::Options{.address = address_, .incarnation = {2}, .next = Oracle});
  const Stream rest = ReadAll(reader.get(), 20);

  ASSERT_TRUE(rest.status.ok()) << rest.status.error_message();
  EXPECT_EQ(rest.only().tokens, OracleTokens(6, 5, 20, 100));
}

TEST_F(ServiceTest, BadRequestsSayWhatWouldDo) {
  StartWithWorker();
  v1::GenerateRequest hot = Asks(1, 1);
  hot.mutable_sampling()->set_temperature(2.5f);
  v1::GenerateRequest unknown = Asks(64, 1);
  v1::GenerateRequest other_model = Asks(1, 1);
  other_model.set_model("large");

  EXPECT_EQ(Generate(hot).status.error_code(), StatusCode::INVALID_ARGUMENT);
  EXPECT_THAT(Generate(hot).status.error_message(), HasSubstr("temperature"));
  EXPECT_THAT(Generate(unknown).status.error_message(), HasSubstr("64"));
  EXPECT_EQ(Generate(other_model).status.error_code(), StatusCode::NOT_FOUND);
}

// One message out, one back, in raw bytes: for services whose classes Debian does not ship, and
// for messages that no proper client sends.
grpc::Status Call(const std::shared_ptr<grpc::Channel>& channel,
                  const std::string& method,
                  const std::string& bytes,
                  std::string* response) {
  grpc::CompletionQueue queue;
  grpc::ClientContext context;
  grpc::GenericStub stub(channel);
  const grpc::Slice slice(bytes);
  const auto call = stub.PrepareUnaryCall(&context, method, grpc::ByteBuffer(&slice, 1), &queue);
  call->StartCall();
  grpc::ByteBuffer buffer;
  grpc::Status status;
  call->Finish(&buffer, &status, nullptr);
  void* tag = nullptr;
  bool ok = false;
  queue.Next(&tag, &ok);
  std::vector<grpc::Slice> slices;
  if (status.ok()) buffer.Dump(&slices);
  for (const grpc::Slice& part : slices) {
    response->append(reinterpret_cast<const char*>(part.begin()), part.size());
  }
  return status;
}

TEST_F(ServiceTest, TextThatIsNotUtf8IsAnInvalidArgument) {
  StartWithWorker();
  std::string response;

  // Field 2, text, one byte; then field 1 of TokenizeRequest.
  const grpc::Status generate =
      Call(channel_, "/shoal.v1.Inference/Generate", "\x12\x01\xff", &response);
  const grpc::Status tokenize =
      Call(channel_, "/shoal.v1.Inference/Tokenize", "\x0a\x01\xff", &response);

  EXPECT_EQ(generate.error_code(), StatusCode::INVALID_ARGUMENT);
  EXPECT_THAT(generate.error_message(), HasSubstr("UTF-8"));
  EXPECT_EQ(tokenize.error_code(), StatusCode::INVALID_ARGUMENT);
}

std::string Health(const std::shared_ptr<grpc::Channel>& channel, const std::string& service) {
  std::string response;
  std::string request;
  if (!service.empty()) {
    request = absl::StrCat("\x0a", std::string(1, static_cast<char>(service.size())), service);
  }
  EXPECT_TRUE(Call(channel, "/grpc.health.v1.Health/Check", request, &response).ok());
  return response;
}

TEST_F(ServiceTest, HealthFollowsTheFleet) {
  const std::string serving("\x08\x01");
  const std::string not_serving("\x08\x02");
  StartServer();
  const auto wait_for = [this](const std::string& state) {
    WaitUntil([&](const FleetStatus&) { return Health(channel_, "shoal.v1.Inference") == state; });
  };

  EXPECT_EQ(Health(channel_, ""), serving);
  EXPECT_EQ(Health(channel_, "shoal.v1.Inference"), not_serving);
  worker_ = MakeWorker();
  wait_for(serving);
  worker_.reset();
  wait_for(not_serving);
  EXPECT_EQ(Health(channel_, ""), serving);
}

TEST_F(ServiceTest, ReflectionListsTheServices) {
  StartServer();
  std::string response;

  // ServerReflectionRequest.list_services.
  const grpc::Status status = Call(channel_,
                                   "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo",
                                   "\x3a\x01*",
                                   &response);

  ASSERT_TRUE(status.ok()) << status.error_message();
  for (const char* service : {"shoal.v1.Inference", "shoal.v1.Admin", "grpc.health.v1.Health"}) {
    EXPECT_THAT(response, HasSubstr(service));
  }
}

TEST_F(ServiceTest, TokenizeAndDetokenizeAreInverse) {
  StartServer();
  v1::TokenizeRequest request;
  request.set_text("ab<|return|>");
  request.set_parse_special(true);
  request.set_with_pieces(true);
  v1::TokenizeResponse tokens;
  grpc::ClientContext tokenize_context;
  ASSERT_TRUE(stub_->Tokenize(&tokenize_context, request, &tokens).ok());
  v1::DetokenizeRequest ids;
  *ids.mutable_token_ids() = tokens.token_ids();
  v1::DetokenizeResponse text;
  grpc::ClientContext detokenize_context;
  ASSERT_TRUE(stub_->Detokenize(&detokenize_context, ids, &text).ok());

  EXPECT_THAT(tokens.token_ids(), ElementsAre(0, 1, kReturn));
  EXPECT_THAT(tokens.pieces(), ElementsAre("a", "b", "<|return|>"));
  EXPECT_EQ(tokens.count(), 3u);
  EXPECT_EQ(text.text(), request.text());
  EXPECT_EQ(text.raw(), request.text());
}

TEST_F(ServiceTest, SaysWhatItServesAndHowItIs) {
  StartWithWorker();
  v1::ListModelsResponse models;
  grpc::ClientContext models_context;
  ASSERT_TRUE(stub_->ListModels(&models_context, {}, &models).ok());
  v1::GetServerInfoResponse info;
  grpc::ClientContext info_context;
  ASSERT_TRUE(stub_->GetServerInfo(&info_context, {}, &info).ok());
  v1::StatusResponse status;
  grpc::ClientContext status_context;
  ASSERT_TRUE(admin_->Status(&status_context, {}, &status).ok());

  ASSERT_EQ(models.models_size(), 1);
  EXPECT_EQ(models.models(0).id(), "small");
  EXPECT_EQ(models.models(0).vocab_size(), 64u);
  EXPECT_EQ(info.state(), v1::GetServerInfoResponse::READY);
  EXPECT_EQ(info.version(), "test");
  ASSERT_EQ(status.cells_size(), 1);
  ASSERT_EQ(status.cells(0).workers_size(), 1);
  EXPECT_EQ(status.cells(0).workers(0).full_blocks(), 4096);
  EXPECT_TRUE(status.is_ready());
}

TEST_F(ServiceTest, WithoutATokenizerIdsGoInAndOut) {
  options_.tokenizer = nullptr;
  StartWithWorker();
  v1::GenerateRequest text = Asks(0, 3);
  text.set_text("abc");

  const Stream refused = Generate(text);
  const Stream stream = Generate(Asks(4, 3));

  EXPECT_EQ(refused.status.error_code(), StatusCode::FAILED_PRECONDITION);
  EXPECT_THAT(refused.status.error_message(), HasSubstr("tokenizer.json"));
  EXPECT_EQ(stream.only().tokens, OracleTokens(4, 5, 0, 3));
  EXPECT_EQ(stream.only().text, "");
}

TEST_F(ServiceTest, LogitsOfEveryPositionArrive) {
  options_.coordinator.prefill_chunk = 7;
  StartWithWorker();
  v1::LogitsRequest request;
  for (uint32_t i = 0; i < 20; ++i) request.add_token_ids(i);
  grpc::ClientContext context;
  const auto reader = admin_->Logits(&context, request);
  std::vector<float> values;
  v1::LogitsResponse part;
  while (reader->Read(&part)) {
    EXPECT_EQ(part.first_position(), static_cast<int32_t>(values.size() / 64));
    values.insert(values.end(), part.values().begin(), part.values().end());
  }
  const grpc::Status status = reader->Finish();

  ASSERT_TRUE(status.ok()) << status.error_message();
  ASSERT_EQ(values.size(), 20u * 64);
  EXPECT_EQ(values[0], 0.0f);
  EXPECT_EQ(values[19 * 64 + 63], 19'063.0f);
  WaitUntilAllIsFree();
}

TEST_F(ServiceTest, APortInUseIsAnErrorAndNotShared) {
  StartServer();
  CoordinatorServerOptions second = options_;
  second.listen = address_;

  const auto server = CoordinatorServer::Start(second);

  EXPECT_TRUE(absl::IsUnavailable(server.status())) << server.status();
  EXPECT_THAT(std::string(server.status().message()), HasSubstr(address_));
}

TEST_F(ServiceTest, AUnixSocketInUseIsAnErrorAndNotTakenAway) {
  options_.listen = absl::StrCat("unix:", testing::TempDir(), "/shoal-", getpid(), ".sock");
  const auto first = CoordinatorServer::Start(options_);
  ASSERT_TRUE(first.ok()) << first.status();

  const auto second = CoordinatorServer::Start(options_);

  EXPECT_TRUE(absl::IsUnavailable(second.status())) << second.status();
  const auto channel = grpc::CreateChannel(options_.listen, grpc::InsecureChannelCredentials());
  EXPECT_EQ(Health(channel, ""), "\x08\x01");
}

TEST_F(ServiceTest, WorkersCanHaveADoorOfTheirOwn) {
  options_.worker_listen = "127.0.0.1:0";
  StartServer();
  const std::string clients = address_;
  address_ = absl::StrCat("127.0.0.1:", server_->worker_port());
  worker_ = MakeWorker();
  WaitUntil([](const FleetStatus& status) { return status.is_ready; });

  FakeWorker astray({.address = clients, .worker = {2}, .incarnation = {9}, .next = Oracle});

  EXPECT_TRUE(absl::IsUnimplemented(astray.WaitForEnd()));
  EXPECT_EQ(Generate(Asks(4, 3)).only().tokens, OracleTokens(4, 5, 0, 3));
}

TEST_F(ServiceTest, AWorkerThatCannotJoinIsToldWhy) {
  StartWithWorker();
  FakeWorker twin({.address = address_, .incarnation = {2}, .next = Oracle});
  FakeWorker stranger(
      {.address = address_, .worker = {2}, .incarnation = {3}, .next = Oracle, .digest = "other"});

  EXPECT_FALSE(twin.WaitForEnd().ok());
  EXPECT_THAT(std::string(stranger.WaitForEnd().message()), HasSubstr("other"));
  EXPECT_EQ(Generate(Asks(4, 3)).only().tokens, OracleTokens(4, 5, 0, 3));
}

TEST_F(ServiceTest, ALinkThatDoesNotBeginWithEnrolIsRefused) {
  StartServer();
  const auto stub = fleet::v1::WorkerLink::NewStub(channel_);
  grpc::ClientContext context;
  const auto stream = stub->Link(&context);
  fleet::v1::FromWorker beat;
  beat.mutable_beat();

  stream->Write(beat);
  fleet::v1::ToWorker message;
  EXPECT_FALSE(stream->Read(&message));

  const grpc::Status status = stream->Finish();
  EXPECT_EQ(status.error_code(), StatusCode::INVALID_ARGUMENT);
  EXPECT_THAT(status.error_message(), HasSubstr("enrol"));
}

TEST_F(ServiceTest, ShutdownLetsStreamsEndAndRefusesNewOnes) {
  StartWithWorker();
  const auto wait_for_health = [this](const std::string& state) {
    WaitUntil([&](const FleetStatus&) { return Health(channel_, "shoal.v1.Inference") == state; });
  };
  wait_for_health("\x08\x01");
  worker_->Hold(5);
  grpc::ClientContext context;
  const EventReader reader = stub_->Generate(&context, Asks(4, 20));
  const Stream begun = ReadTokens(5, reader.get());
  std::thread shutdown([this] { server_->Shutdown(absl::Now() + absl::Seconds(20)); });
  const absl::Cleanup join = [&] { shutdown.join(); };

  // Not by asking for an answer: one that got in would wait behind the worker that is held.
  wait_for_health("\x08\x02");
  const Stream refused = Generate(Asks(4, 1));
  worker_->Hold(0x7fffffff);
  const Stream rest = ReadAll(reader.get(), 5);

  EXPECT_EQ(refused.status.error_code(), StatusCode::UNAVAILABLE);
  EXPECT_TRUE(rest.status.ok()) << rest.status.error_message();
  EXPECT_EQ(rest.only().tokens, OracleTokens(4, 5, 5, 20));
}

TEST_F(ServiceTest, ShutdownEndsWhatPassesTheDeadline) {
  StartWithWorker();
  worker_->Hold(5);
  grpc::ClientContext context;
  const EventReader reader = stub_->Generate(&context, Asks(4, 20));
  ReadTokens(5, reader.get());

  server_->Shutdown(absl::Now() + absl::Milliseconds(50));

  EXPECT_FALSE(ReadAll(reader.get(), 5).status.ok());
}

}  // namespace
}  // namespace shoal
