// Who may come in, by which door, and what is told there: listeners, links, health, the other
// calls.
#include <unistd.h>

#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "absl/cleanup/cleanup.h"
#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "gmock/gmock.h"
#include "grpcpp/generic/generic_stub.h"
#include "grpcpp/grpcpp.h"
#include "gtest/gtest.h"

#include "tests/coordinator/serve/service_rig.h"

namespace shoal {
namespace {

using grpc::StatusCode;
using testing::ElementsAre;
using testing::HasSubstr;
using testing_model::kReturn;

using ServiceDoorTest = ServiceTest;

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

TEST_F(ServiceDoorTest, TextThatIsNotUtf8IsAnInvalidArgument) {
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

TEST_F(ServiceDoorTest, HealthFollowsTheFleet) {
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

TEST_F(ServiceDoorTest, ReflectionListsTheServices) {
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

TEST_F(ServiceDoorTest, TokenizeAndDetokenizeAreInverse) {
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

TEST_F(ServiceDoorTest, SaysWhatItServesAndHowItIs) {
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

TEST_F(ServiceDoorTest, WithoutATokenizerIdsGoInAndOut) {
  options_.tokenizer = nullptr;
  StartWithWorker();
  v1::GenerateRequest text = Asks(0, 3);
  text.set_text("abc");

  const ClientStream refused = Generate(text);
  const ClientStream stream = Generate(Asks(4, 3));

  EXPECT_EQ(refused.status.error_code(), StatusCode::FAILED_PRECONDITION);
  EXPECT_THAT(refused.status.error_message(), HasSubstr("tokenizer.json"));
  EXPECT_EQ(stream.only().tokens, OracleTokens(4, 5, 0, 3));
  EXPECT_EQ(stream.only().text, "");
}

TEST_F(ServiceDoorTest, LogitsOfEveryPositionArrive) {
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

TEST_F(ServiceDoorTest, APortInUseIsAnErrorAndNotShared) {
  StartServer();
  CoordinatorServerOptions second = options_;
  second.listen = address_;

  const auto server = CoordinatorServer::Start(second);

  EXPECT_TRUE(absl::IsUnavailable(server.status())) << server.status();
  EXPECT_THAT(std::string(server.status().message()), HasSubstr(address_));
}

TEST_F(ServiceDoorTest, AUnixSocketInUseIsAnErrorAndNotTakenAway) {
  options_.listen = absl::StrCat("unix:", testing::TempDir(), "/shoal-", getpid(), ".sock");
  const auto first = CoordinatorServer::Start(options_);
  ASSERT_TRUE(first.ok()) << first.status();

  const auto second = CoordinatorServer::Start(options_);

  EXPECT_TRUE(absl::IsUnavailable(second.status())) << second.status();
  const auto channel = grpc::CreateChannel(options_.listen, grpc::InsecureChannelCredentials());
  EXPECT_EQ(Health(channel, ""), "\x08\x01");
}

TEST_F(ServiceDoorTest, WorkersCanHaveADoorOfTheirOwn) {
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

TEST_F(ServiceDoorTest, AWorkerThatCannotJoinIsToldWhy) {
  StartWithWorker();
  FakeWorker twin({.address = address_, .incarnation = {2}, .next = Oracle});
  FakeWorker stranger(
      {.address = address_, .worker = {2}, .incarnation = {3}, .next = Oracle, .digest = "other"});

  EXPECT_FALSE(twin.WaitForEnd().ok());
  EXPECT_THAT(std::string(stranger.WaitForEnd().message()), HasSubstr("other"));
  EXPECT_EQ(Generate(Asks(4, 3)).only().tokens, OracleTokens(4, 5, 0, 3));
}

TEST_F(ServiceDoorTest, ALinkThatDoesNotBeginWithEnrolIsRefused) {
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

TEST_F(ServiceDoorTest, ShutdownLetsStreamsEndAndRefusesNewOnes) {
  StartWithWorker();
  const auto wait_for_health = [this](const std::string& state) {
    WaitUntil([&](const FleetStatus&) { return Health(channel_, "shoal.v1.Inference") == state; });
  };
  wait_for_health("\x08\x01");
  worker_->Hold(5);
  grpc::ClientContext context;
  const EventReader reader = stub_->Generate(&context, Asks(4, 20));
  const ClientStream begun = ReadTokens(5, reader.get());
  std::thread shutdown([this] { server_->Shutdown(absl::Now() + absl::Seconds(20)); });
  const absl::Cleanup join = [&] { shutdown.join(); };

  // Not by asking for an answer: one that got in would wait behind the worker that is held.
  wait_for_health("\x08\x02");
  const ClientStream refused = Generate(Asks(4, 1));
  worker_->Hold(0x7fffffff);
  const ClientStream rest = ReadAll(reader.get(), 5);

  EXPECT_EQ(refused.status.error_code(), StatusCode::UNAVAILABLE);
  EXPECT_TRUE(rest.status.ok()) << rest.status.error_message();
  EXPECT_EQ(rest.only().tokens, OracleTokens(4, 5, 5, 20));
}

TEST_F(ServiceDoorTest, ShutdownEndsWhatPassesTheDeadline) {
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
