// What clients read: tokens, text, ends, and streams that go on.
#include <chrono>
#include <string>
#include <vector>

#include "gmock/gmock.h"
#include "grpcpp/grpcpp.h"
#include "gtest/gtest.h"

#include "tests/coordinator/serve/service_rig.h"

namespace shoal {
namespace {

using grpc::StatusCode;
using testing::ElementsAre;
using testing::HasSubstr;
using testing_model::kEuroHead;
using testing_model::kEuroTail;
using testing_model::kReturn;

TEST_F(ServiceTest, StreamsTokensTextAndUsage) {
  StartWithWorker();
  const ClientStream stream = Generate(Asks(3, 50));

  ASSERT_TRUE(stream.status.ok()) << stream.status.error_message();
  EXPECT_EQ(stream.num_started, 1);
  EXPECT_EQ(stream.started.model(), "small");
  EXPECT_EQ(stream.started.prompt_tokens(), 1u);
  const ClientChoice choice = stream.only();
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

  const ClientStream stream = Generate(request);

  EXPECT_EQ(stream.started.prompt_tokens(), 3u);
  EXPECT_EQ(stream.only().text,
            "a\xe2\x82\xac"
            "b\xef\xbf\xbd");
}

TEST_F(ServiceTest, WorkersCannotReadTheEnvelope) {
  absl::Mutex mutex;
  std::string envelope;
  StartWithWorker([&](const KeepRecord& record, int32_t) {
    absl::MutexLock lock(&mutex);
    envelope = record.envelope;
    return TokenId{7};
  });
  v1::GenerateRequest request = Asks(0, 5);
  request.mutable_limits()->add_stop("nobody knows");

  EXPECT_TRUE(Generate(request).status.ok());

  absl::MutexLock lock(&mutex);
  EXPECT_FALSE(envelope.empty());
  EXPECT_THAT(envelope, testing::Not(HasSubstr("nobody knows")));
}

TEST_F(ServiceTest, AStopTokenEndsTheAnswerAndIsNotText) {
  StartWithWorker(Script({7, 8, kReturn}));

  const ClientStream stream = Generate(Asks(0, 20));

  const ClientChoice choice = stream.only();
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

  const ClientStream stream = Generate(request);

  EXPECT_THAT(stream.only().tokens, ElementsAre(7, kReturn, 8, 9));
  EXPECT_EQ(stream.only().text, "h<|return|>i");
}

TEST_F(ServiceTest, AStopStringAcrossTokensCutsTheTextAndFreesTheSequence) {
  StartWithWorker(Script({0, 1, 2, 3, 4, 5}));
  v1::GenerateRequest request = Asks(0, 60'000);
  request.mutable_limits()->add_stop("bcx");
  request.mutable_limits()->add_stop("cde");

  const ClientStream stream = Generate(request);

  const ClientChoice choice = stream.only();
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

  const ClientStream stream = Generate(request);

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

  const ClientStream stream = Generate(request);

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
  const ClientStream begun = ReadTokens(10, reader.get());

  grpc::ClientContext cancel_context;
  v1::CancelRequest cancel;
  cancel.set_request_id("r-1");
  v1::CancelResponse response;
  ASSERT_TRUE(stub_->Cancel(&cancel_context, cancel, &response).ok());
  const ClientStream rest = ReadAll(reader.get(), 10);
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

  const ClientStream stream = ReadAll(reader.get());
  worker_->Hold(0x7fffffff);

  EXPECT_EQ(stream.status.error_code(), StatusCode::DEADLINE_EXCEEDED);
  WaitUntilAllIsFree();
}

TEST_F(ServiceTest, AttachContinuesWithoutGapOrRepeat) {
  StartWithWorker();
  v1::GenerateRequest request = Asks(2, 400);
  request.set_request_id("again");
  ClientStream begun;
  {
    grpc::ClientContext context;
    const EventReader reader = stub_->Generate(&context, request);
    begun = ReadTokens(7, reader.get());
    context.TryCancel();
    reader->Finish();
  }
  const ClientChoice& head = begun.choices.at(0);

  v1::AttachRequest attach;
  attach.set_request_id("again");
  attach.set_next_index(head.next_index);
  attach.set_prefix_hash(head.prefix_hash);
  const ClientStream rest = Attach(attach);
  attach.set_prefix_hash(head.prefix_hash + 1);
  const ClientStream spliced = Attach(attach);
  attach.set_request_id("another");
  const ClientStream unknown = Attach(attach);

  ASSERT_TRUE(rest.status.ok()) << rest.status.error_message();
  std::vector<uint32_t> all = head.tokens;
  const ClientChoice tail = rest.only();
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

  const ClientStream first = Generate(request);
  const ClientStream second = Generate(request);
  request.mutable_limits()->set_max_tokens(41);
  const ClientStream other = Generate(request);

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
  const ClientStream other = Generate(Asks(9, 3000));
  WaitUntil([this](const FleetStatus&) { return server_->delivery_counters().parked > 0; });
  const ClientStream stream = ReadAll(slow.get());

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
  const ClientStream stream = ReadAll(slow.get());

  EXPECT_EQ(stream.status.error_code(), StatusCode::RESOURCE_EXHAUSTED);
}

TEST_F(ServiceTest, ALostWorkerIsNotSeenInTheStream) {
  StartWithWorker();
  worker_->Hold(20);
  grpc::ClientContext context;
  const EventReader reader = stub_->Generate(&context, Asks(6, 100));
  const ClientStream begun = ReadTokens(20, reader.get());

  worker_.reset();
  worker_ = std::make_unique<FakeWorker>(
      FakeWorker::Options{.address = address_, .incarnation = {2}, .next = Oracle});
  const ClientStream rest = ReadAll(reader.get(), 20);

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

}  // namespace
}  // namespace shoal
