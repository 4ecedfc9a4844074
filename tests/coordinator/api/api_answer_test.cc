// What clients see of an answer: items, stop strings, logprobs, usage, and the two APIs' frames
// around them. The recorded outputs are in tests/cli/harmony_command_test.cc.
#include <memory>
#include <string>
#include <variant>
#include <vector>

#include "absl/strings/str_cat.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "nlohmann/json.hpp"

#include "coordinator/api/answer_items.h"
#include "coordinator/api/chat_writer.h"
#include "coordinator/api/responses_writer.h"
#include "tests/coordinator/text/harmony_streams.h"

namespace shoal {
namespace {

using nlohmann::json;
using testing::ElementsAre;

constexpr char kAnswer[] =
    "<|channel|>analysis<|message|>abc<|end|><|start|>assistant<|channel|>final<|message|>xyz"
    "<|return|>";

class AnswerTest : public testing::Test {
 protected:
  AnswerTest() : tokenizer_(MakeHarmonyTokenizer()) {
    tokens_ = *HarmonyTokens::Find(tokenizer_.get());
  }

  // One line an event: "text", "reasoning", "call f", "preamble"; "+delta"; "end", "cut";
  // "!repair".
  std::vector<std::string> Items(absl::string_view text, std::vector<std::string> stop) {
    reader_ = std::make_unique<ItemReader>(&tokens_, &functions_, std::move(stop));
    std::vector<ItemEvent> events;
    float logprob = 0;
    for (const TokenId id : HarmonyIds(*tokenizer_, text)) {
      reader_->Push({id, logprob -= 1, {}}, &events);
    }
    reader_->Finish(&events);
    std::vector<std::string> lines;
    for (const ItemEvent& event : events) {
      if (const auto* start = std::get_if<ItemStart>(&event)) {
        lines.push_back(start->kind == ItemKind::kReasoning ? "reasoning"
                        : start->kind == ItemKind::kCall    ? "call " + start->function
                        : start->is_preamble                ? "preamble"
                                                            : "text");
      } else if (const auto* delta = std::get_if<ItemDelta>(&event)) {
        std::string line = "+" + delta->text;
        for (const ScoredToken& token : delta->tokens) {
          absl::StrAppend(&line, " ", static_cast<int>(token.logprob));
        }
        lines.push_back(std::move(line));
      } else if (const auto* end = std::get_if<ItemEnd>(&event)) {
        lines.push_back(end->is_complete ? "end" : "cut");
      } else {
        lines.push_back(absl::StrCat("!", RepairName(std::get<Repair>(event))));
      }
    }
    return lines;
  }

  std::vector<std::string> Items(absl::string_view text) { return Items(text, {}); }

  std::unique_ptr<Tokenizer> tokenizer_;
  HarmonyTokens tokens_;
  FunctionNames functions_ = {"f"};
  std::unique_ptr<ItemReader> reader_;
};

TEST_F(AnswerTest, MessagesBecomeItemsByChannelAndRecipient) {
  EXPECT_THAT(Items("<|message|>x<|end|>"), ElementsAre("text", "+x -2", "end"));
  EXPECT_THAT(Items("<|channel|>commentary<|message|>x<|end|>"),
              ElementsAre("preamble", testing::StartsWith("+x"), "end"));
  EXPECT_THAT(Items("<|channel|>analysis to=python code<|message|>x<|call|>"),
              ElementsAre("reasoning", "+x", "end"));
  EXPECT_THAT(Items("<|channel|>commentary to=container.exec<|message|>x<|call|>"),
              ElementsAre("reasoning", "+x", "end"));
  EXPECT_THAT(Items("<|channel|>analysis to=functions.f<|message|>{}<|call|>"),
              ElementsAre("call f", "+{", "+}", "end"));
  EXPECT_THAT(Items("<|end|><|start|>user<|message|>x<|end|>"), ElementsAre("!hidden_message"));
  // An answer to the user by name is an answer.
  EXPECT_THAT(Items("<|end|><|start|>assistant<|channel|>final to=user<|message|>x<|return|>"),
              ElementsAre("text", testing::StartsWith("+x"), "end"));
}

TEST_F(AnswerTest, ACallsArgumentsAreItsFirstJsonValue) {
  EXPECT_THAT(
      Items("<|channel|>commentary to=functions.f<|message|>[\"]\\\"\"]] x<|call|>"),
      ElementsAre(
          "call f", "+[", "+\"", "+]", "+\\", "+\"", "+\"", "+]", "!text_after_arguments", "end"));
  EXPECT_THAT(Items("<|channel|>commentary to=functions.f<|message|><|call|>"),
              ElementsAre("call f", "+{}", "end"));
  EXPECT_THAT(Items("<|channel|>commentary to=functions.f<|message|>"),
              ElementsAre("call f", "cut"));
  EXPECT_TRUE(reader_->has_called());
  EXPECT_FALSE(reader_->has_unanswered_call());
  Items("<|channel|>commentary to=functions.f<|message|>{}<|end|>");
  EXPECT_TRUE(reader_->has_unanswered_call());
}

TEST_F(AnswerTest, StopStringsAreFoundInVisibleTextOnly) {
  EXPECT_THAT(Items(kAnswer, {"b"}),
              ElementsAre("reasoning",
                          "+a",
                          "+b",
                          "+c",
                          "end",
                          "text",
                          testing::StartsWith("+x"),
                          testing::StartsWith("+y"),
                          testing::StartsWith("+z"),
                          "end"));
  EXPECT_EQ(reader_->found_stop(), std::nullopt);
  EXPECT_THAT(Items("<|message|>abcdef<|return|>", {"cd"}),
              ElementsAre("text", "+a -2", "+b -3", "end"));
  EXPECT_EQ(reader_->found_stop(), "cd");
  EXPECT_THAT(Items("<|message|>abce<|end|>", {"bcd", "ce"}),
              ElementsAre("text", "+a -2", "+b -3", "end"));
  // Held back, and shown after all.
  EXPECT_THAT(Items("<|message|>abc<|return|>", {"bcd"}),
              ElementsAre("text", "+a -2", "+bc -3 -4", "end"));
  // One stop string does not reach over two items.
  EXPECT_THAT(
      Items("<|message|>a<|end|><|start|>assistant<|message|>b<|return|>", {"ab", "a\nb"}),
      ElementsAre(
          "text", testing::StartsWith("+a"), "end", "text", testing::StartsWith("+b"), "end"));
}

TEST_F(AnswerTest, LogprobsGoOutWithTheTextThatTheyComplete) {
  // The three bytes of a character are three tokens here.
  EXPECT_THAT(Items("<|message|>\u20ACx<|return|>"),
              ElementsAre("text", "+\u20AC -2 -3 -4", "+x -5", "end"));
}

TEST_F(AnswerTest, ReasoningTokensAreThoseOfReasoningText) {
  Items(kAnswer);
  EXPECT_EQ(reader_->num_reasoning_tokens(), 3);
  Items("<|channel|>final<|message|>xyz<|return|>");
  EXPECT_EQ(reader_->num_reasoning_tokens(), 0);
}

// The frames of chat, from one answer.
struct ChatFrames {
  std::vector<json> chunks;
  json body;
};

class ChatTest : public AnswerTest {
 protected:
  ChatFrames Chat(const ChatAnswerArgs& args, absl::string_view text, AnswerEnd end) {
    ItemReader reader(&tokens_, &functions_, {});
    std::vector<ItemEvent> events;
    for (const TokenId id : HarmonyIds(*tokenizer_, text)) {
      reader.Push({id, -0.5f, {{id, -0.5f}, {TokenId{0xE2}, -1e30f}}}, &events);
    }
    reader.Finish(&events);
    ChatStreamWriter writer(&args, 2, "call_r");
    std::vector<std::string> chunks = {writer.Begin()};
    writer.Write(events, &chunks);
    chunks.push_back(writer.End(end));
    chunks.push_back(ChatUsageChunk(args, kUsage));
    std::vector<ChatChoice> choices(1, ChatChoice("call_r"));
    choices[0].Write(events);
    choices[0].End(end);
    ChatFrames frames;
    for (const std::string& chunk : chunks) frames.chunks.push_back(json::parse(chunk));
    frames.body = json::parse(ChatCompletionBody(args, choices, kUsage));
    return frames;
  }

  static constexpr ApiUsage kUsage = {
      .prompt_tokens = 10, .cached_tokens = 4, .completion_tokens = 7, .reasoning_tokens = 3};
};

TEST_F(ChatTest, EveryChunkSaysWhoseItIs) {
  ChatAnswerArgs args;
  args.id = "chatcmpl-1";
  args.model = "m";
  args.created = 5;
  args.system_fingerprint = "fp";
  args.includes_usage = true;
  const ChatFrames frames = Chat(args, kAnswer, AnswerEnd::kStopToken);
  for (const json& chunk : frames.chunks) {
    EXPECT_EQ(chunk["id"], "chatcmpl-1");
    EXPECT_EQ(chunk["object"], "chat.completion.chunk");
    EXPECT_EQ(chunk["model"], "m");
    EXPECT_EQ(chunk["created"], 5);
    EXPECT_EQ(chunk["system_fingerprint"], "fp");
    if (chunk == frames.chunks.back()) break;
    EXPECT_EQ(chunk["choices"][0]["index"], 2);
    EXPECT_TRUE(chunk.at("usage").is_null());
  }
  EXPECT_EQ(frames.chunks[0]["choices"][0]["delta"],
            json({{"role", "assistant"}, {"content", ""}}));
  EXPECT_EQ(frames.chunks[1]["choices"][0]["delta"],
            json({{"reasoning", "a"}, {"reasoning_content", "a"}}));
  const json& last = frames.chunks[frames.chunks.size() - 2]["choices"][0];
  EXPECT_EQ(last["delta"], json::object());
  EXPECT_EQ(last["finish_reason"], "stop");
  EXPECT_EQ(frames.chunks.back()["choices"], json::array());
  EXPECT_EQ(frames.chunks.back()["usage"], frames.body["usage"]);
  EXPECT_EQ(frames.body["usage"],
            json::parse(R"({"prompt_tokens":10,"completion_tokens":7,"total_tokens":17,)"
                        R"("prompt_tokens_details":{"cached_tokens":4},)"
                        R"("completion_tokens_details":{"reasoning_tokens":3}})"));
  EXPECT_EQ(frames.body["object"], "chat.completion");
  EXPECT_EQ(frames.body["choices"][0]["message"]["reasoning_content"], "abc");
}

TEST_F(ChatTest, ReasoningCanBeHidden) {
  ChatAnswerArgs args;
  args.includes_reasoning = false;
  const ChatFrames frames = Chat(args, kAnswer, AnswerEnd::kStopToken);
  for (const json& chunk : frames.chunks) {
    if (chunk["choices"].empty()) continue;
    EXPECT_FALSE(chunk["choices"][0]["delta"].contains("reasoning"));
    EXPECT_FALSE(chunk.contains("usage"));  // Nobody asked
  }
  EXPECT_FALSE(frames.body["choices"][0]["message"].contains("reasoning"));
  EXPECT_EQ(frames.body["choices"][0]["message"]["content"], "xyz");
}

TEST_F(ChatTest, LogprobsSpellBytesExactly) {
  ChatAnswerArgs args;
  args.logprobs = tokenizer_.get();
  const ChatFrames frames =
      Chat(args, "<|channel|>final<|message|>\u20AC<|return|>", AnswerEnd::kStopToken);
  const json& entries = frames.body["choices"][0]["logprobs"]["content"];
  ASSERT_EQ(entries.size(), 3u);
  EXPECT_EQ(entries[0]["token"], "\uFFFD");
  EXPECT_EQ(entries[0]["bytes"], json({0xE2}));
  EXPECT_EQ(entries[0]["logprob"], -0.5);
  EXPECT_EQ(entries[2]["bytes"], json({0xAC}));
  EXPECT_EQ(entries[0]["top_logprobs"].size(), 2u);
  EXPECT_EQ(entries[0]["top_logprobs"][1]["logprob"], -9999.0);
  EXPECT_EQ(frames.chunks[1]["choices"][0]["logprobs"], frames.body["choices"][0]["logprobs"]);
}

TEST_F(ChatTest, FinishReasonsFollowTheEndAndTheCalls) {
  EXPECT_EQ(ChatFinishReason(AnswerEnd::kLength, true), "length");
  EXPECT_EQ(ChatFinishReason(AnswerEnd::kStopToken, true), "tool_calls");
  EXPECT_EQ(ChatFinishReason(AnswerEnd::kStopString, false), "stop");
  const ChatFrames frames =
      Chat({}, "<|channel|>commentary to=functions.f<|message|>{}<|call|>", AnswerEnd::kStopToken);
  const json& choice = frames.body["choices"][0];
  EXPECT_EQ(choice["finish_reason"], "tool_calls");
  EXPECT_TRUE(choice["message"]["content"].is_null());
  EXPECT_EQ(choice["message"]["tool_calls"][0]["id"], "call_r0");
  EXPECT_EQ(frames.chunks[1]["choices"][0]["delta"]["tool_calls"][0]["id"], "call_r0");
}

class ResponsesTest : public AnswerTest {
 protected:
  std::vector<json> Events(absl::string_view text, AnswerEnd end) {
    ItemReader reader(&tokens_, &functions_, {});
    std::vector<ItemEvent> items;
    for (const TokenId id : HarmonyIds(*tokenizer_, text)) reader.Push({id, 0, {}}, &items);
    reader.Finish(&items);
    ResponsesAnswerArgs args;
    args.id = "resp_1";
    args.model = "m";
    args.created_at = 5;
    args.item_ids = "r";
    args.echo = R"({"store":false,"tools":[]})";
    ResponsesWriter writer(std::move(args));
    std::vector<ResponsesEvent> events;
    writer.Begin(&events);
    writer.Write(items, &events);
    writer.End(end, {.prompt_tokens = 10, .completion_tokens = 7}, &events);
    body_ = json::parse(writer.Body());
    std::vector<json> parsed;
    for (const ResponsesEvent& event : events) {
      parsed.push_back(json::parse(event.data));
      EXPECT_EQ(parsed.back()["type"], event.type);
      EXPECT_EQ(parsed.back()["sequence_number"], parsed.size() - 1);
    }
    return parsed;
  }

  json body_;
};

TEST_F(ResponsesTest, TheLastEventHasTheWholeResponse) {
  const std::vector<json> events = Events(kAnswer, AnswerEnd::kStopToken);
  EXPECT_EQ(events[0]["type"], "response.created");
  EXPECT_EQ(events[0]["response"]["status"], "in_progress");
  EXPECT_EQ(events[1]["type"], "response.in_progress");
  EXPECT_EQ(events.back()["type"], "response.completed");
  EXPECT_EQ(events.back()["response"], body_);
  EXPECT_EQ(body_["id"], "resp_1");
  EXPECT_EQ(body_["object"], "response");
  EXPECT_EQ(body_["store"], false);
  EXPECT_EQ(body_["output"][1]["id"], "msg_r1");
  EXPECT_EQ(body_["usage"]["total_tokens"], 17);
  EXPECT_EQ(Events(kAnswer, AnswerEnd::kLength).back()["type"], "response.incomplete");
  EXPECT_EQ(body_["incomplete_details"]["reason"], "max_output_tokens");
}

TEST_F(ResponsesTest, AFailureKeepsWhatWasThere) {
  ResponsesAnswerArgs args;
  args.echo = "{}";
  ResponsesWriter writer(std::move(args));
  std::vector<ResponsesEvent> events;
  writer.Begin(&events);
  writer.Fail({.code = "c", .message = "gone"}, &events);
  EXPECT_EQ(events.back().type, "response.failed");
  EXPECT_EQ(json::parse(writer.Body())["error"], json({{"code", "c"}, {"message", "gone"}}));
}

}  // namespace
}  // namespace shoal
