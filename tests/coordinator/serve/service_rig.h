// The whole service with the real core, over real gRPC, in front of a worker that knows the
// answers: what the tests of its streams and of its doors share.
#pragma once

#include <chrono>
#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "absl/time/time.h"
#include "grpcpp/grpcpp.h"
#include "gtest/gtest.h"

#include "base/prng.h"
#include "coordinator/serve/server.h"
#include "proto/admin.grpc.pb.h"
#include "proto/inference.grpc.pb.h"
#include "tests/coordinator/serve/fake_worker.h"
#include "tests/coordinator/serve/small_model.h"

namespace shoal {

// What the worker answers to a prompt: letters that depend on the prompt, the seed and the place.
inline TokenId Oracle(const KeepRecord& record, int32_t index) {
  const uint64_t key = static_cast<uint64_t>(record.tokens[0].value) * 1'000'003 +
                       record.sampling.seed * 7919 + static_cast<uint64_t>(index);
  return TokenId{static_cast<int32_t>(Mix64(key) % 26)};
}

inline std::vector<uint32_t> OracleTokens(uint32_t prompt,
                                          uint64_t seed,
                                          int32_t begin,
                                          int32_t end) {
  KeepRecord record;
  record.tokens = {TokenId{static_cast<int32_t>(prompt)}};
  record.sampling.seed = seed;
  std::vector<uint32_t> out;
  for (int32_t i = begin; i < end; ++i) {
    out.push_back(static_cast<uint32_t>(Oracle(record, i).value));
  }
  return out;
}

inline FakeWorker::Next Script(std::vector<int32_t> tokens) {
  return [tokens = std::move(tokens)](const KeepRecord&, int32_t index) {
    return TokenId{tokens[static_cast<size_t>(index) % tokens.size()]};
  };
}

inline std::string TextOf(const std::vector<uint32_t>& tokens) {
  std::string text;
  for (const uint32_t token : tokens) text += static_cast<char>('a' + token);
  return text;
}

inline v1::GenerateRequest Asks(uint32_t prompt, uint32_t max_tokens) {
  v1::GenerateRequest request;
  request.mutable_tokens()->add_ids(prompt);
  request.mutable_sampling()->set_seed(5);
  request.mutable_limits()->set_max_tokens(max_tokens);
  return request;
}

// One choice as a client puts it together. Reading it checks that nothing is missing or repeated.
struct ClientChoice {
  uint32_t next_index = 0;
  std::vector<uint32_t> tokens;
  std::vector<v1::TokenLogprob> logprobs;
  std::string text;  // With the tail that came with `finished`
  uint64_t prefix_hash = 0;
  bool is_finished = false;
  v1::Finished finished;
};

struct ClientStream {
  v1::Started started;
  int num_started = 0;
  std::map<uint32_t, ClientChoice> choices;
  grpc::Status status;

  ClientChoice only() const {
    EXPECT_EQ(choices.size(), 1u) << status.error_message();
    return choices.empty() ? ClientChoice() : choices.begin()->second;
  }
};

using EventReader = std::unique_ptr<grpc::ClientReader<v1::GenerateEvent>>;

inline void Add(const v1::GenerateEvent& event, ClientStream* stream, uint32_t first_index = 0) {
  if (event.has_started()) {
    EXPECT_TRUE(stream->choices.empty()) << "`started` must come first";
    ++stream->num_started;
    stream->started = event.started();
    return;
  }
  ClientChoice& choice =
      stream->choices.try_emplace(event.choice(), ClientChoice{.next_index = first_index})
          .first->second;
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

inline ClientStream ReadAll(grpc::ClientReader<v1::GenerateEvent>* reader,
                            uint32_t first_index = 0) {
  ClientStream stream;
  v1::GenerateEvent event;
  while (reader->Read(&event)) Add(event, &stream, first_index);
  stream.status = reader->Finish();
  return stream;
}

// Until `num_tokens` of choice 0 are there.
inline ClientStream ReadTokens(uint32_t num_tokens, grpc::ClientReader<v1::GenerateEvent>* reader) {
  ClientStream stream;
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

  // Before what a derived test has made for the server goes.
  void TearDown() override {
    worker_.reset();
    server_.reset();
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

  ClientStream Generate(const v1::GenerateRequest& request) {
    grpc::ClientContext context;
    context.set_deadline(std::chrono::system_clock::now() + std::chrono::seconds(60));
    return ReadAll(stub_->Generate(&context, request).get());
  }

  ClientStream Attach(const v1::AttachRequest& request) {
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

}  // namespace shoal
