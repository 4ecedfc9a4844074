#include "proto/wire.h"

#include <cmath>
#include <functional>
#include <limits>
#include <optional>
#include <string>
#include <variant>
#include <vector>

#include "absl/status/status.h"
#include "absl/strings/string_view.h"
#include "gmock/gmock.h"
#include "google/protobuf/stubs/logging.h"
#include "gtest/gtest.h"

#include "base/prng.h"

namespace shoal {
namespace {

namespace pb = fleet::v1;
using testing::HasSubstr;

// Through the bytes, as on a link.
template <typename Proto>
Proto Resent(const Proto& message) {
  Proto out;
  EXPECT_TRUE(out.ParseFromString(message.SerializeAsString()));
  return out;
}

ToWorker RoundTrip(const ToWorker& message) {
  absl::StatusOr<ToWorker> out = FromProto(Resent(ToProto(message)));
  EXPECT_TRUE(out.ok()) << out.status();
  return out.ok() ? *out : ToWorker();
}

FromWorker RoundTrip(const FromWorker& message) {
  FromWorkerReader reader;
  std::optional<FromWorker> last;
  for (const pb::FromWorker& part : ToProto(message)) {
    EXPECT_FALSE(last.has_value()) << "a value in the middle of its parts";
    absl::StatusOr<std::optional<FromWorker>> out = reader.Read(Resent(part));
    EXPECT_TRUE(out.ok()) << out.status();
    if (out.ok()) last = *std::move(out);
  }
  EXPECT_TRUE(last.has_value());
  return last.has_value() ? *last : FromWorker();
}

template <typename T>
void ExpectRoundTrip(const T& value) {
  const auto out = [&] {
    if constexpr (std::is_constructible_v<ToWorker, T>) {
      return RoundTrip(ToWorker(value));
    } else {
      return RoundTrip(FromWorker(value));
    }
  }();
  ASSERT_TRUE(std::holds_alternative<T>(out));
  EXPECT_EQ(std::get<T>(out), value);
}

SamplingSettings SomeSampling() {
  return SamplingSettings{.temperature = 0.7f,
                          .top_p = 0.9f,
                          .min_p = 0.05f,
                          .top_k = 40,
                          .presence_penalty = -0.5f,
                          .frequency_penalty = 1.5f,
                          .repetition_penalty = 1.1f,
                          .penalty_exempt_from = 199'998,
                          .seed = 0xfedcba9876543210u,
                          .logit_bias = {{TokenId{3}, -100.0f}, {TokenId{9}, 2.5f}},
                          .stop_tokens = {TokenId{0}, TokenId{200'002}},
                          .min_tokens = 4,
                          .num_top_logprobs = 20,
                          .never = {{TokenId{4}, TokenId{4}}, {TokenId{7}, TokenId{201'087}}}};
}

Configure SomeConfigure() {
  Configure m{.term = {3},
              .cell = {1},
              .epoch = {17},
              .next_step = {904},
              .rank = {1},
              .members = {{.worker = {4},
                           .incarnation = {0xffffffffffffffffu},
                           .exchange_endpoint = "unix:/tmp/a",
                           .host = "h0"},
                          {.worker = {2},
                           .incarnation = {7},
                           .exchange_endpoint = "tcp:10.0.0.1:9",
                           .host = "h1"}},
              .key = {},
              .placement_version = 5,
              .placement = {{Rank{0}}, {Rank{0}, Rank{1}}, {Rank{1}}},
              .max_rows = 512,
              .num_full_blocks = 100,
              .num_window_blocks = 20,
              .deadline_ms = 10'000};
  for (size_t i = 0; i < m.key.size(); ++i) m.key[i] = static_cast<uint8_t>(255 - i);
  return m;
}

KeepRecord SomeRecord() {
  return KeepRecord{.term = {1},
                    .sequence = {0xffffffffffffffffu},
                    .index = 0,
                    .tokens = {TokenId{0}, TokenId{201'087}},
                    .prompt_length = 2,
                    .sampling = SomeSampling(),
                    .envelope = std::string("\xff\x00sealed", 8)};
}

StepPlan SomePlan() {
  return StepPlan{.term = {1},
                  .cell = {0},
                  .epoch = {2},
                  .step = {3},
                  .deadline_ms = 500,
                  .most_rows = 14,
                  .most_positions = 141,
                  .entries = {{.sequence = {11},
                               .first_position = 128,
                               .num_positions = 13,
                               .first_block = 8,
                               .full_blocks = {BlockId{5}, BlockId{0}},
                               .window_blocks = {kNoBlock, BlockId{3}},
                               .wants_sample = true,
                               .mask = {.runs = {0, 3, 200'000, 1}},
                               .wants_logits = false},
                              {.sequence = {12},
                               .first_position = 0,
                               .num_positions = 1,
                               .first_block = 0,
                               .full_blocks = {},
                               .window_blocks = {},
                               .wants_sample = false,
                               .mask = {},
                               .wants_logits = true}},
                  .forget = {SequenceId{9}, SequenceId{10}}};
}

StepResult SomeResult() {
  StepResult m;
  m.term = {1};
  m.cell = {2};
  m.epoch = {3};
  m.step = {4};
  m.status = absl::UnavailableError("rank 2 closed \xff");
  m.suspects = {Rank{2}, Rank{0}};
  m.tokens = {{.sequence = {5},
               .position = 6,
               .token = {7},
               .logprob = -0.25f,
               .top = {{.token = {7}, .logprob = -0.25f}, {.token = {8}, .logprob = -3.0f}}},
              {.sequence = {6}, .position = 0, .token = {-1}, .logprob = 0.0f, .top = {}}};
  m.compute_us = 1234;
  m.wait_us = 56;
  return m;
}

TEST(WireTest, EveryMessageToAWorkerComesBackEqual) {
  ExpectRoundTrip(Welcome{.term = {9}, .coordinator = {0x8000000000000000u}});
  ExpectRoundTrip(Dismiss{.term = {9}, .reason = absl::FailedPreconditionError("other digest")});
  ExpectRoundTrip(LoadExperts{
      .term = {9}, .cell = {1}, .placement_version = 3, .experts = {ExpertId{0}, ExpertId{127}}});
  ExpectRoundTrip(SomeConfigure());
  ExpectRoundTrip(Abort{.term = {9}, .cell = {1}, .epoch = {2}});
  ExpectRoundTrip(SomeRecord());
  ExpectRoundTrip(KeepRecord{.term = {1}, .sequence = {2}, .index = 7, .tokens = {TokenId{5}}});
  ExpectRoundTrip(SomePlan());
}

TEST(WireTest, EveryMessageFromAWorkerComesBackEqual) {
  ExpectRoundTrip(Enrol{.worker = {3},
                        .incarnation = {0xdeadbeefcafebabeu},
                        .numerics = {.version = "0.1.0",
                                     .checkpoint_digest = "ab12",
                                     .backend = "cpu",
                                     .numerics_version = 1},
                        .host = "h",
                        .exchange_endpoint = "tcp:127.0.0.1:5",
                        .process = "pid 12",
                        .highest_term = {4},
                        .memory_bytes = int64_t{1} << 40,
                        .dense_bytes = 3,
                        .expert_bytes = 13'000'000,
                        .num_experts = 128,
                        .num_layers = 36});
  ExpectRoundTrip(Beat{.highest_term = {4},
                       .phase = "loading",
                       .load_done_bytes = 1,
                       .load_total_bytes = 2,
                       .kv_full_blocks_used = 3,
                       .resident_bytes = 4});
  const FromWorker loaded =
      RoundTrip(FromWorker(ExpertsLoaded{.cell = {1},
                                         .placement_version = 2,
                                         .status = absl::ResourceExhaustedError("no memory"),
                                         .num_full_blocks = 7,
                                         .num_window_blocks = 8}));
  EXPECT_EQ(std::get<ExpertsLoaded>(loaded).status, absl::ResourceExhaustedError("no memory"));
  EXPECT_EQ(std::get<ExpertsLoaded>(loaded).num_window_blocks, 8);
  ExpectRoundTrip(Ready{
      .term = {1}, .cell = {2}, .epoch = {3}, .status = absl::OkStatus(), .suspects = {Rank{1}}});
  const Bootstrap bootstrap{
      .term = {1}, .cell = {2}, .epoch = {3}, .id = std::string("\0\xff id", 5)};
  EXPECT_EQ(std::get<Bootstrap>(RoundTrip(FromWorker(bootstrap))), bootstrap);
  EXPECT_EQ(std::get<Bootstrap>(RoundTrip(ToWorker(bootstrap))), bootstrap);
  ExpectRoundTrip(Refusal{.term = {1},
                          .cell = {2},
                          .epoch = {3},
                          .step = {4},
                          .reason = absl::AbortedError("epoch 2 is over")});
}

TEST(WireTest, AStepResultComesBackEqual) {
  const StepResult sent = SomeResult();
  const StepResult got = std::get<StepResult>(RoundTrip(FromWorker(sent)));

  EXPECT_EQ(got.status, sent.status);
  EXPECT_EQ(got.suspects, sent.suspects);
  EXPECT_EQ(got.tokens, sent.tokens);
  EXPECT_EQ(got.step, sent.step);
  EXPECT_EQ(got.compute_us, sent.compute_us);
  EXPECT_EQ(got.wait_us, sent.wait_us);
  EXPECT_TRUE(got.logits.empty());
}

TEST(WireTest, LogitsTravelInPartsOfAtMost4MiBAndComeBackWhole) {
  constexpr int32_t kVocab = 201'088;
  StepResult sent = SomeResult();
  for (const uint64_t sequence : {1u, 2u}) {
    LogitRows rows{
        .sequence = {sequence}, .first_position = 100, .num_positions = 12, .values = {}};
    rows.values.resize(size_t{12} * kVocab);
    for (size_t i = 0; i < rows.values.size(); ++i) {
      rows.values[i] = static_cast<float>(i * sequence);
    }
    sent.logits.push_back(std::move(rows));
  }

  const std::vector<pb::FromWorker> parts = ToProto(FromWorker(sent));
  const StepResult got = std::get<StepResult>(RoundTrip(FromWorker(sent)));

  EXPECT_EQ(parts.size(), 2 * 3 + 1u);  // Five rows fit into 4 MiB.
  for (const pb::FromWorker& part : parts) EXPECT_LT(part.ByteSizeLong(), 4u << 20);
  EXPECT_EQ(got.logits, sent.logits);
}

TEST(WireTest, LogitsOfOneStepDoNotEndUpInAnother) {
  StepResult sent = SomeResult();
  sent.logits = {{.sequence = {1}, .first_position = 0, .num_positions = 1, .values = {1, 2}}};
  std::vector<pb::FromWorker> parts = ToProto(FromWorker(sent));
  parts[1].mutable_step_result()->set_step(5);

  FromWorkerReader reader;
  ASSERT_TRUE(reader.Read(parts[0]).ok());
  const auto result = reader.Read(parts[1]);

  EXPECT_TRUE(absl::IsInvalidArgument(result.status()));
  EXPECT_THAT(std::string(result.status().message()), HasSubstr("step"));
}

TEST(WireTest, RefusesToWorkerValuesThatCannotBeAndNamesThem) {
  struct Case {
    const char* name;
    std::function<void(pb::ToWorker*)> break_it;
    ToWorker message;
  };

  const std::vector<Case> cases = {
      {"dismiss.reason",
       [](auto* m) { m->mutable_dismiss()->mutable_reason()->set_code(0); },
       Dismiss{.term = {1}, .reason = absl::AbortedError("x")}},
      {"dismiss.reason.code",
       [](auto* m) { m->mutable_dismiss()->mutable_reason()->set_code(17); },
       Dismiss{.term = {1}, .reason = absl::AbortedError("x")}},
      {"load_experts.experts",
       [](auto* m) { m->mutable_load_experts()->add_experts(0); },
       LoadExperts{.experts = {ExpertId{0}}}},
      {"configure.rank", [](auto* m) { m->mutable_configure()->set_rank(2); }, SomeConfigure()},
      {"configure.rank", [](auto* m) { m->mutable_configure()->set_rank(-1); }, SomeConfigure()},
      {"configure.key", [](auto* m) { m->mutable_configure()->set_key("short"); }, SomeConfigure()},
      {"configure.placement",
       [](auto* m) { m->mutable_configure()->mutable_placement(0)->clear_ranks(); },
       SomeConfigure()},
      {"configure.placement",
       [](auto* m) { m->mutable_configure()->mutable_placement(1)->set_ranks(1, 2); },
       SomeConfigure()},
      {"configure.placement",
       [](auto* m) { m->mutable_configure()->mutable_placement(1)->set_ranks(1, 0); },
       SomeConfigure()},
      {"configure.max_rows",
       [](auto* m) { m->mutable_configure()->set_max_rows(-1); },
       SomeConfigure()},
      {"keep_record.index", [](auto* m) { m->mutable_keep_record()->set_index(-1); }, SomeRecord()},
      {"keep_record.tokens",
       [](auto* m) { m->mutable_keep_record()->set_tokens(0, -1); },
       SomeRecord()},
      {"keep_record.sampling",
       [](auto* m) {
         m->mutable_keep_record()->mutable_sampling()->set_temperature(
             std::numeric_limits<float>::quiet_NaN());
       },
       SomeRecord()},
      {"logit_bias",
       [](auto* m) {
         m->mutable_keep_record()->mutable_sampling()->mutable_logit_bias(1)->set_token(3);
       },
       SomeRecord()},
      {"stop_tokens",
       [](auto* m) { m->mutable_keep_record()->mutable_sampling()->add_stop_tokens(1); },
       SomeRecord()},
      {"num_positions",
       [](auto* m) { m->mutable_step_plan()->mutable_entries(0)->set_num_positions(0); },
       SomePlan()},
      {"num_positions",
       [](auto* m) { m->mutable_step_plan()->mutable_entries(0)->set_num_positions(0x7fffffff); },
       SomePlan()},
      {"window_blocks",
       [](auto* m) { m->mutable_step_plan()->mutable_entries(0)->add_window_blocks(1); },
       SomePlan()},
      {"full_blocks",
       [](auto* m) { m->mutable_step_plan()->mutable_entries(0)->set_full_blocks(0, -1); },
       SomePlan()},
      {"mask run",
       [](auto* m) { m->mutable_step_plan()->mutable_entries(0)->set_mask(2, 0); },
       SomePlan()},
      {"mask of ids",
       [](auto* m) { m->mutable_step_plan()->mutable_entries(0)->set_mask(2, 0x7fffffff); },
       SomePlan()},
      {"mask.size",
       [](auto* m) { m->mutable_step_plan()->mutable_entries(1)->add_mask(1); },
       SomePlan()},
      {"never.first",
       [](auto* m) {
         m->mutable_keep_record()->mutable_sampling()->mutable_never(1)->set_first(4);
       },
       SomeRecord()},
      {"never.last",
       [](auto* m) { m->mutable_keep_record()->mutable_sampling()->mutable_never(0)->set_last(3); },
       SomeRecord()},
      {"without content", [](auto* m) { m->Clear(); }, SomePlan()},
  };
  for (const Case& c : cases) {
    pb::ToWorker message = ToProto(c.message);
    ASSERT_TRUE(FromProto(message).ok()) << c.name;
    c.break_it(&message);
    const absl::Status status = FromProto(message).status();
    EXPECT_TRUE(absl::IsInvalidArgument(status)) << c.name << ": " << status;
    EXPECT_THAT(std::string(status.message()), HasSubstr(c.name));
  }
}

TEST(WireTest, RefusesFromWorkerValuesThatCannotBeAndNamesThem) {
  struct Case {
    const char* name;
    std::function<void(pb::FromWorker*)> make;
  };

  const std::vector<Case> cases = {
      {"enrol.incarnation", [](auto* m) { m->mutable_enrol(); }},
      {"enrol",
       [](auto* m) {
         m->mutable_enrol()->set_incarnation(1);
         m->mutable_enrol()->set_host(std::string(5000, 'h'));
       }},
      {"beat.load_done_bytes", [](auto* m) { m->mutable_beat()->set_load_done_bytes(-1); }},
      {"experts_loaded.num_full_blocks",
       [](auto* m) { m->mutable_experts_loaded()->set_num_full_blocks(-1); }},
      {"ready.suspects", [](auto* m) { m->mutable_ready()->add_suspects(-2); }},
      {"refusal.reason", [](auto* m) { m->mutable_refusal(); }},
      {"step_result.tokens.token",
       [](auto* m) { m->mutable_step_result()->add_tokens()->set_token(-2); }},
      {"step_result.tokens.position",
       [](auto* m) { m->mutable_step_result()->add_tokens()->set_position(-1); }},
      {"logits.num_positions", [](auto* m) { m->mutable_logits()->set_num_positions(0); }},
      {"logits.values",
       [](auto* m) {
         m->mutable_logits()->set_num_positions(2);
         m->mutable_logits()->add_values(1.0f);
       }},
      {"without content", [](auto* m) { m->Clear(); }},
  };
  for (const Case& c : cases) {
    pb::FromWorker message;
    c.make(&message);
    FromWorkerReader reader;
    const absl::Status status = reader.Read(message).status();
    EXPECT_TRUE(absl::IsInvalidArgument(status)) << c.name << ": " << status;
    EXPECT_THAT(std::string(status.message()), HasSubstr(c.name));
  }
}

TEST(WireTest, NamesThatAreNotUtf8DoNotBreakTheLink) {
  const FromWorker got = RoundTrip(
      FromWorker(Enrol{.worker = {1}, .incarnation = {1}, .host = "h\xff\xfe", .process = "p"}));

  EXPECT_EQ(std::get<Enrol>(got).host, "h??");
}

// Bytes at random, and messages of ours with bytes changed, cut or doubled: each is refused or
// read, and what was read can be written and read again.
TEST(WireTest, HostileBytesNeverCrash) {
  const google::protobuf::LogSilencer silencer;  // It tells each text that is not UTF-8.
  Prng prng(20'261'123);
  std::vector<std::string> seeds;
  for (const ToWorker& message :
       {ToWorker(SomeConfigure()), ToWorker(SomeRecord()), ToWorker(SomePlan())}) {
    seeds.push_back(ToProto(message).SerializeAsString());
  }
  StepResult result = SomeResult();
  result.logits = {{.sequence = {1}, .first_position = 0, .num_positions = 2, .values = {1, 2}}};
  for (const pb::FromWorker& part : ToProto(FromWorker(result))) {
    seeds.push_back(part.SerializeAsString());
  }
  int num_read = 0;
  FromWorkerReader reader;

  for (int round = 0; round < 20'000; ++round) {
    std::string bytes = seeds[prng.Below(seeds.size())];
    for (uint64_t i = 0; i < 1 + prng.Below(4); ++i) {
      const size_t at = prng.Below(bytes.size() + 1);
      switch (prng.Below(4)) {
        case 0:
          if (at < bytes.size()) bytes[at] = static_cast<char>(prng.Next());
          break;
        case 1:
          bytes.resize(at);
          break;
        case 2:
          bytes.insert(at, 1, static_cast<char>(prng.Next()));
          break;
        default:
          bytes += bytes.substr(at);
      }
    }
    pb::ToWorker to;
    if (to.ParseFromString(bytes)) {
      const absl::StatusOr<ToWorker> value = FromProto(to);
      num_read += value.ok();
      if (value.ok()) {
        EXPECT_TRUE(FromProto(ToProto(*value)).ok());
      }
    }
    pb::FromWorker from;
    if (from.ParseFromString(bytes)) num_read += reader.Read(from).ok();
  }

  EXPECT_GT(num_read, 1000) << "the mutations leave nothing to read, so they test nothing";
}

}  // namespace
}  // namespace shoal
