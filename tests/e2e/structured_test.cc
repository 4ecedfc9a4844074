// Structured output through real fleets: a model of made-up weights, hot enough to write anything,
// writes valid documents, and the same ones on 1 worker, on 4, with neighbours, and when workers
// die.
//
// SHOAL_STRUCTURED_SEEDS: how many documents (default 24).

#include <atomic>
#include <cstdlib>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "cli/client.h"
#include "cli/local_fleet.h"
#include "cli/signals.h"
#include "cli/synthetic_checkpoint.h"
#include "cli/synthetic_tokenizer.h"
#include "gtest/gtest.h"
#include "nlohmann/json.hpp"

#include "tests/support/temp_folder.h"

namespace shoal {
namespace {

using nlohmann::json;

constexpr absl::Duration kPatience = absl::Seconds(60);

constexpr char kSchema[] = R"({
  "type": "object",
  "properties": {
    "name": {"type": "string", "minLength": 1, "maxLength": 12},
    "count": {"type": "integer", "minimum": -5, "maximum": 250},
    "share": {"type": "number", "minimum": 0, "maximum": 1},
    "tags": {"type": "array", "items": {"enum": ["red", "green", "blue"]}, "maxItems": 3},
    "place": {"anyOf": [{"type": "null"}, {"type": "object",
        "properties": {"x": {"type": "integer"}, "y": {"type": "integer"}},
        "required": ["x", "y"], "additionalProperties": false}]},
    "ok": {"type": "boolean"}
  },
  "required": ["name", "count", "place"],
  "additionalProperties": false
})";

size_t NumSeeds() {
  size_t seeds = 24;
  if (const char* text = std::getenv("SHOAL_STRUCTURED_SEEDS"); text != nullptr) {
    EXPECT_TRUE(absl::SimpleAtoi(text, &seeds));
  }
  return seeds;
}

void ExpectInteger(const json& value, int64_t low, int64_t high, const std::string& text) {
  ASSERT_TRUE(value.is_number_integer()) << text;
  EXPECT_TRUE(value >= low && value <= high) << text;
}

// What kSchema says, said once more.
void ExpectFollowsSchema(const std::string& text) {
  const json document = json::parse(text, nullptr, false);
  ASSERT_TRUE(document.is_object()) << text;
  for (const char* name : {"name", "count", "place"}) ASSERT_TRUE(document.contains(name)) << text;
  for (const auto& [name, value] : document.items()) {
    if (name == "name") {
      ASSERT_TRUE(value.is_string() && value != "") << text;
    } else if (name == "count") {
      ExpectInteger(value, -5, 250, text);
    } else if (name == "share") {
      ASSERT_TRUE(value.is_number() && value >= 0 && value <= 1) << text;
    } else if (name == "tags") {
      ASSERT_TRUE(value.is_array() && value.size() <= 3) << text;
      for (const json& tag : value) {
        EXPECT_TRUE(tag == "red" || tag == "green" || tag == "blue") << text;
      }
    } else if (name == "place") {
      const bool is_point = value.is_object() && value.size() == 2 && value.contains("x") &&
                            value.contains("y") && value["x"].is_number_integer() &&
                            value["y"].is_number_integer();
      EXPECT_TRUE(value.is_null() || is_point) << text;
    } else {
      EXPECT_TRUE(name == "ok" && value.is_boolean()) << text;
    }
  }
}

struct Answer {
  absl::Status status;
  std::string text;
  v1::Finished finished;
};

v1::GenerateRequest Asks(size_t seed) {
  v1::GenerateRequest request;
  request.set_text(absl::StrCat("A thing, number ", seed, ":"));
  request.mutable_sampling()->set_seed(static_cast<int64_t>(seed));
  request.mutable_sampling()->set_temperature(1.5f);
  request.mutable_limits()->set_max_tokens(400);
  return request;
}

v1::GenerateRequest AsksForJson(size_t seed) {
  v1::GenerateRequest request = Asks(seed);
  request.mutable_constraint()->mutable_json_schema()->set_schema_json(kSchema);
  return request;
}

Answer Read(const Client& client,
            const v1::GenerateRequest& request,
            std::atomic<size_t>* num_tokens = nullptr) {
  Answer answer;
  answer.status =
      client.Generate(request, absl::Now() + kPatience, [&](const v1::GenerateEvent& event) {
        if (num_tokens != nullptr) {
          num_tokens->fetch_add(static_cast<size_t>(event.chunk().token_ids_size()));
        }
        answer.text += event.chunk().text() + event.finished().text();
        if (event.has_finished()) answer.finished = event.finished();
        return true;
      });
  return answer;
}

// All documents at once, each beside a free text.
std::vector<Answer> ReadAll(const Client& client,
                            size_t num_seeds,
                            std::atomic<size_t>* num_tokens) {
  std::vector<Answer> answers(num_seeds);
  std::vector<std::thread> threads;
  for (size_t seed = 0; seed < num_seeds; ++seed) {
    threads.emplace_back(
        [&, seed] { answers[seed] = Read(client, AsksForJson(seed), num_tokens); });
    threads.emplace_back([&, seed] {
      v1::GenerateRequest neighbour = Asks(seed);
      neighbour.mutable_limits()->set_max_tokens(40);
      EXPECT_TRUE(Read(client, neighbour).status.ok());
    });
  }
  for (std::thread& thread : threads) thread.join();
  return answers;
}

class StructuredTest : public testing::Test {
 protected:
  static void SetUpTestSuite() { BlockTerminationSignals(); }

  std::unique_ptr<LocalFleet> StartFleet(int workers) {
    if (!is_written_) {
      ModelConfig config = ModelConfig::Tiny();
      config.vocab = 512;  // Every byte has a token
      config.eos_token_ids = SyntheticEosIds(config.vocab);
      const absl::Status written =
          WriteSyntheticCheckpoint({.dir = Folder(), .config = config}, {});
      EXPECT_TRUE(written.ok()) << written;
      is_written_ = true;
    }
    LocalFleetOptions options{.program = SHOAL_BINARY_DIR "/cli/shoal", .is_quiet = true};
    options.cluster.model = Folder();
    options.cluster.workers = workers;
    options.cluster.kv_tokens = 8192;
    options.cluster.max_rows = 256;
    options.cluster.chunk = 128;
    auto fleet = LocalFleet::Start(options);
    EXPECT_TRUE(fleet.ok()) << fleet.status();
    if (!fleet.ok()) return nullptr;
    const absl::Status ready = (*fleet)->WaitReady(absl::Now() + kPatience);
    EXPECT_TRUE(ready.ok()) << ready;
    return ready.ok() ? *std::move(fleet) : nullptr;
  }

  std::string Folder() const { return folder_.path() + "/model"; }

  TempFolder folder_;
  bool is_written_ = false;
};

TEST_F(StructuredTest, DocumentsAreValidAndTheSameOnAnyFleet) {
  const size_t num_seeds = NumSeeds();
  std::vector<std::string> alone;
  {
    const std::unique_ptr<LocalFleet> one = StartFleet(1);
    ASSERT_NE(one, nullptr);
    const Client client(one->address());
    for (size_t seed = 0; seed < num_seeds; ++seed) {
      const Answer answer = Read(client, AsksForJson(seed));
      ASSERT_TRUE(answer.status.ok()) << answer.status;
      ASSERT_EQ(answer.finished.reason(), v1::Finished::STOP) << answer.text;
      ExpectFollowsSchema(answer.text);
      alone.push_back(answer.text);
    }
  }
  const std::unique_ptr<LocalFleet> four = StartFleet(4);
  ASSERT_NE(four, nullptr);
  const Client client(four->address());

  std::atomic<size_t> num_tokens = 0;
  const std::vector<Answer> together = ReadAll(client, num_seeds, &num_tokens);
  const size_t half = num_tokens / 2;
  num_tokens = 0;
  std::thread killer([&] {
    while (num_tokens < half) absl::SleepFor(absl::Milliseconds(1));
    EXPECT_TRUE(four->KillWorker(1));
  });
  const std::vector<Answer> disturbed = ReadAll(client, num_seeds, &num_tokens);
  killer.join();

  for (size_t seed = 0; seed < num_seeds; ++seed) {
    ASSERT_TRUE(together[seed].status.ok()) << together[seed].status;
    EXPECT_EQ(together[seed].text, alone[seed]);
    ASSERT_TRUE(disturbed[seed].status.ok()) << disturbed[seed].status;
    EXPECT_EQ(disturbed[seed].text, alone[seed]);
  }
  for (size_t seed = 0; seed < 3; ++seed) std::printf("%s\n", alone[seed].c_str());
}

TEST_F(StructuredTest, WhatCannotBePromisedIsRefused) {
  const std::unique_ptr<LocalFleet> fleet = StartFleet(1);
  ASSERT_NE(fleet, nullptr);
  const Client client(fleet->address());
  v1::GenerateRequest unsupported = AsksForJson(1);
  unsupported.mutable_constraint()->mutable_json_schema()->set_schema_json(
      R"({"properties":{"a":{"not":{}}}})");
  v1::GenerateRequest endless = AsksForJson(1);
  endless.mutable_limits()->set_ignore_eos(true);
  v1::GenerateRequest any_object = AsksForJson(1);
  any_object.mutable_constraint()->mutable_json_object();

  const Answer by_name = Read(client, unsupported);
  EXPECT_EQ(by_name.status.code(), absl::StatusCode::kInvalidArgument);
  EXPECT_NE(by_name.status.message().find("#/properties/a: `not`"), std::string::npos)
      << by_name.status;
  EXPECT_EQ(Read(client, endless).status.code(), absl::StatusCode::kInvalidArgument);
  // Cut off by max_tokens or whole, it begins as an object.
  const Answer any = Read(client, any_object);
  ASSERT_TRUE(any.status.ok()) << any.status;
  EXPECT_EQ(any.text.substr(0, 1), "{");
  if (any.finished.reason() == v1::Finished::STOP) {
    EXPECT_TRUE(json::accept(any.text)) << any.text;
  }
}

}  // namespace
}  // namespace shoal
