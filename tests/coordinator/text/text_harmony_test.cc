// Harmony on a small vocabulary of its own: what holds for any vocabulary, any text and any tokens.
// The recorded vectors are in tests/cli/harmony_command_test.cc.
#include <cstdlib>
#include <iostream>
#include <memory>
#include <string>
#include <variant>
#include <vector>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"

#include "coordinator/text/harmony.h"
#include "coordinator/text/harmony_reader.h"
#include "coordinator/text/harmony_writer.h"
#include "tests/coordinator/text/harmony_streams.h"
#include "tests/coordinator/text/tokenizer_json.h"

namespace shoal {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;
using testing::IsEmpty;
using testing::Not;

class HarmonyTest : public testing::Test {
 protected:
  HarmonyTest() : tokenizer_(MakeHarmonyTokenizer()) {
    tokens_ = *HarmonyTokens::Find(tokenizer_.get());
  }

  std::vector<TokenId> Ids(absl::string_view text) const { return HarmonyIds(*tokenizer_, text); }

  std::vector<HarmonyEvent> Read(absl::string_view text) const {
    HarmonyReader reader(&tokens_, &functions_, Role::kAssistant);
    std::vector<HarmonyEvent> events;
    for (const TokenId id : Ids(text)) reader.Push(id, &events);
    reader.Finish(&events);
    return events;
  }

  std::vector<Repair> RepairsOf(absl::string_view text) const {
    std::vector<Repair> repairs;
    for (const HarmonyEvent& event : Read(text)) {
      if (const auto* repair = std::get_if<Repair>(&event)) repairs.push_back(*repair);
    }
    return repairs;
  }

  std::string Render(const std::vector<HarmonyMessage>& messages) const {
    const auto ids = RenderHarmony(messages, tokens_, {});
    if (!ids.ok()) return std::string(ids.status().message());
    return HarmonyText(*ids, *tokenizer_);
  }

  std::unique_ptr<Tokenizer> tokenizer_;
  HarmonyTokens tokens_;
  FunctionNames functions_ = {"get_weather"};
};

// Every text field of a conversation, each with the same text.
std::vector<HarmonyMessage> MessagesOfTextEverywhere(const std::string& text) {
  Conversation conversation;
  conversation.current_date = text;
  conversation.instructions = text;
  // A schema's keys and values; quoted as JSON, whose escapes leave markers as they are.
  const std::string schema = absl::StrCat(R"({"type":"object","description":")",
                                          text,
                                          R"(","properties":{")",
                                          text,
                                          R"(":{"type":"string","title":")",
                                          text,
                                          R"(","enum":[")",
                                          text,
                                          R"("],"default":")",
                                          text,
                                          R"(","examples":[")",
                                          text,
                                          R"("]}}})");
  conversation.functions = {{text, text, schema}};
  conversation.response_format = ResponseFormat{text, text, schema};
  conversation.history = {UserMessage(text),
                          AssistantMessage(kAnalysisChannel, text),
                          AssistantMessage(kCommentaryChannel, text),
                          CallMessage(text, text),
                          ResultMessage(text, text),
                          DeveloperMessage(text)};
  std::vector<HarmonyMessage> messages = MessagesOf(conversation);
  HarmonyMessage named = UserMessage(text);
  named.name = text;
  named.recipient = text;
  named.channel = text;
  named.content_type = "x" + text;
  messages.push_back(named);
  return messages;
}

TEST_F(HarmonyTest, NoTextOfAClientBecomesAMarker) {
  const auto num_markers = [this](const std::string& text) {
    const auto ids = RenderHarmony(MessagesOfTextEverywhere(text), tokens_, {});
    EXPECT_TRUE(ids.ok()) << ids.status();
    std::vector<TokenId> markers;
    for (const TokenId id : *ids) {
      if (tokenizer_->IsSpecial(id)) markers.push_back(id);
    }
    return markers;
  };
  const std::vector<TokenId> of_plain_text = num_markers("plain");

  for (int32_t id = tokenizer_->FirstSpecial().value; id < tokenizer_->size(); ++id) {
    const std::string marker(*tokenizer_->Bytes(TokenId{id}));
    EXPECT_EQ(num_markers(marker), of_plain_text) << marker;
    EXPECT_EQ(num_markers("a" + marker + marker + "b"), of_plain_text) << marker;
  }
}

TEST_F(HarmonyTest, WhatIsWrittenIsReadAgain) {
  const std::vector<HarmonyMessage> messages = {AssistantMessage(kAnalysisChannel, "Thinking."),
                                                AssistantMessage(kCommentaryChannel, "A moment."),
                                                CallMessage("get_weather", R"({"place":"Rome"})"),
                                                AssistantMessage(kFinalChannel, "Sunny \u2600.")};
  const auto ids = RenderHarmony(messages, tokens_, {.ending = RenderOptions::Ending::kNothing});
  ASSERT_TRUE(ids.ok()) << ids.status();

  HarmonyReader reader(&tokens_, &functions_, std::nullopt);
  std::vector<HarmonyEvent> events;
  for (const TokenId id : *ids) reader.Push(id, &events);

  std::vector<HarmonyMessage> read;
  for (const HarmonyEvent& event : events) {
    ASSERT_FALSE(std::holds_alternative<Repair>(event));
    if (const auto* start = std::get_if<MessageStart>(&event)) {
      const MessageHeader& h = start->header;
      read.push_back({h.role, h.name, h.recipient, h.channel, h.content_type, {std::string()}});
    } else if (const auto* delta = std::get_if<MessageDelta>(&event)) {
      std::get<std::string>(read.back().content[0]) += delta->text;
    }
  }
  EXPECT_EQ(read, messages);
}

TEST_F(HarmonyTest, ATokenizerWithoutTheMarkersIsRefusedByName) {
  const auto plain =
      Tokenizer::Parse(TokenizerText(MakeTestVocabulary({}, {"<|start|>"}), PairForm::kList));
  ASSERT_TRUE(plain.ok()) << plain.status();
  const absl::Status status = HarmonyTokens::Find(plain->get()).status();
  EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(std::string(status.message()), HasSubstr("<|message|>"));
  EXPECT_THAT(std::string(status.message()), Not(HasSubstr("<|start|>")));
}

TEST_F(HarmonyTest, AToolsDescriptionMayHaveManyLines) {
  Conversation conversation;
  conversation.functions = {{"f", "One.\r\nTwo.\n\nFour.\n", std::nullopt}};
  EXPECT_THAT(Render(MessagesOf(conversation)),
              HasSubstr("namespace functions {\n\n// One.\n// Two.\n// \n// Four.\n"
                        "type f = () => any;\n\n} // namespace functions<|end|>"));
}

TEST_F(HarmonyTest, RefusalsSayWhichMessageIsWrong) {
  HarmonyMessage nameless = UserMessage("x");
  nameless.role = Role::kTool;
  EXPECT_EQ(Render({UserMessage("x"), nameless}),
            "messages[1]: a tool message needs a name, the tool's");
  HarmonyMessage misplaced = UserMessage("x");
  misplaced.content = {SystemContent{}};
  EXPECT_THAT(Render({misplaced}), HasSubstr("system_content belongs into a system message"));
  Conversation broken;
  broken.functions = {{"f", "", "{\"type\": nonsense}"}};
  EXPECT_THAT(Render(MessagesOf(broken)),
              HasSubstr("the parameters of f: not valid JSON in UTF-8 at byte 10"));
  EXPECT_EQ(Render({UserMessage("\xFF")}), "invalid UTF-8 at byte 0");
}

TEST_F(HarmonyTest, APromptThatCannotFitIsNotEncoded) {
  const auto ids =
      RenderHarmony({{UserMessage(std::string(1000, 'x'))}}, tokens_, {.max_text_bytes = 999});
  EXPECT_EQ(ids.status().code(), absl::StatusCode::kOutOfRange);
  EXPECT_THAT(std::string(ids.status().message()), HasSubstr("1013 bytes of text; at most 999"));
}

TEST_F(HarmonyTest, AHeaderOfManyShortTokensIsStillAHeader) {
  // In this vocabulary the name alone takes 64 tokens.
  const std::string name(64, 'q');
  const auto events = Read(absl::StrCat(
      "<|channel|>commentary to=functions.", name, " <|constrain|>json<|message|>{}<|call|>"));
  ASSERT_FALSE(events.empty());
  const auto* start = std::get_if<MessageStart>(&events[0]);
  ASSERT_NE(start, nullptr);
  EXPECT_EQ(start->header.CalledFunction(), name);
}

TEST_F(HarmonyTest, AHeaderWithoutEndBecomesTextSoon) {
  std::string words;
  for (int i = 0; i < 400; ++i) words += " w";
  HarmonyReader reader(&tokens_, &functions_, Role::kAssistant);
  std::vector<HarmonyEvent> events;
  for (const TokenId id : Ids("<|channel|>final" + words)) reader.Push(id, &events);
  EXPECT_EQ(reader.state(), HarmonyReader::State::kContent);
  EXPECT_EQ(events[0], HarmonyEvent(Repair::kMissingMessage));
}

TEST_F(HarmonyTest, TheStateSaysWhereAGrammarStands) {
  HarmonyReader reader(&tokens_, &functions_, Role::kAssistant);
  std::vector<HarmonyEvent> events;
  const auto push = [&](absl::string_view text) {
    for (const TokenId id : Ids(text)) reader.Push(id, &events);
  };
  EXPECT_EQ(reader.state(), HarmonyReader::State::kHeader);
  EXPECT_EQ(reader.header_text().segment, HeaderSegment::kRole);
  push("<|channel|>comment");
  EXPECT_EQ(reader.header_text().segment, HeaderSegment::kChannel);
  EXPECT_EQ(reader.header_text().channel, "comment");
  push("ary to=functions.get_weather");
  EXPECT_EQ(reader.HeaderSoFar().channel, kCommentaryChannel);
  EXPECT_EQ(reader.HeaderSoFar().CalledFunction(), "get_weather");
  push(" <|constrain|>");
  EXPECT_EQ(reader.header_text().segment, HeaderSegment::kConstrain);
  push("json<|message|>");
  EXPECT_EQ(reader.state(), HarmonyReader::State::kContent);
  EXPECT_EQ(reader.header().content_type, "<|constrain|>json");
  push("{}<|call|>");
  EXPECT_EQ(reader.state(), HarmonyReader::State::kBetween);
}

TEST_F(HarmonyTest, RepairsAreNamed) {
  EXPECT_THAT(RepairsOf("<|channel|>final<|message|>x<|return|>"), IsEmpty());
  EXPECT_THAT(RepairsOf("<|channel|>final<|message|>x<|reserved_1|><|return|>"),
              ElementsAre(Repair::kMarkerInContent));
  EXPECT_THAT(RepairsOf("<|channel|>finalx<|message|>x<|return|>"),
              ElementsAre(Repair::kDirtyChannel));
  EXPECT_THAT(RepairsOf("<|channel|>final to=functions.get_weatherjson<|message|>{}<|call|>"),
              ElementsAre(Repair::kGluedRecipient, Repair::kCallOnFinal));
  for (int i = 0; i < kNumRepairs; ++i) {
    EXPECT_FALSE(RepairName(static_cast<Repair>(i)).empty()) << i;
  }
  EXPECT_EQ(RepairName(Repair::kCallOnFinal), "call_on_final");
  EXPECT_EQ(RepairName(Repair::kTextAfterArguments), "text_after_arguments");
  EXPECT_EQ(RepairName(Repair::kUnknownRole), "unknown_role");
}

// SHOAL_HARMONY_STREAMS: how many; SHOAL_SEED: the first of their seeds.
TEST_F(HarmonyTest, AnyTokensGiveValidEvents) {
  const auto number_of = [](const char* variable, uint64_t fallback) {
    uint64_t number = fallback;
    const char* const text = std::getenv(variable);
    EXPECT_TRUE(text == nullptr || absl::SimpleAtoi(text, &number)) << variable;
    return number;
  };
  const uint64_t num_streams = number_of("SHOAL_HARMONY_STREAMS", 10'000);
  const uint64_t first_seed = number_of("SHOAL_SEED", 1);
  for (uint64_t seed = first_seed; seed < first_seed + num_streams; ++seed) {
    Prng prng(seed);
    const std::vector<TokenId> ids = RandomStream(tokens_, &prng);
    std::string faults = ReaderFaults(tokens_, functions_, ids);
    // JSON is a hundred times as slow as the reader.
    if (seed % 20 == 0) faults += ApiFaults(tokens_, functions_, ids);
    ASSERT_EQ(faults, "") << "SHOAL_SEED=" << seed << ": " << HarmonyText(ids, *tokenizer_);
  }
  std::cerr << num_streams << " streams from seed " << first_seed << "\n";
}

}  // namespace
}  // namespace shoal
