#include "tests/coordinator/text/harmony_streams.h"

#include <algorithm>
#include <optional>
#include <utility>
#include <variant>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "nlohmann/json.hpp"

#include "base/check.h"
#include "coordinator/api/answer_items.h"
#include "coordinator/api/chat_writer.h"
#include "coordinator/api/responses_writer.h"
#include "coordinator/text/detokenizer.h"
#include "coordinator/text/harmony_reader.h"
#include "coordinator/text/utf8.h"
#include "tests/coordinator/text/tokenizer_json.h"

namespace shoal {
namespace {

using nlohmann::json;

const char* const kWords[] = {"assistant",
                              "analysis",
                              "final",
                              "comment",
                              "user",
                              "system",
                              " to",
                              "function",
                              "get_weather",
                              "json",
                              " code"};

struct Reading {
  std::vector<HarmonyEvent> events;
  std::vector<std::string> contents;  // What a Detokenizer makes of each message's content tokens
};

// Reads `ids`; at every `copy_every`th token with a copy of the reader, whose original is dropped.
Reading Read(const HarmonyTokens& tokens,
             const FunctionNames& functions,
             std::span<const TokenId> ids,
             size_t copy_every) {
  Reading out;
  auto reader = std::make_unique<HarmonyReader>(&tokens, &functions, Role::kAssistant);
  std::optional<Detokenizer> detokenizer;
  std::string content;
  const auto close = [&] {
    if (detokenizer) out.contents.push_back(content + detokenizer->Flush());
    detokenizer.reset();
    content.clear();
  };
  for (size_t i = 0; i < ids.size(); ++i) {
    if (copy_every > 0 && i % copy_every == 0) reader = std::make_unique<HarmonyReader>(*reader);
    const bool was_content = reader->state() == HarmonyReader::State::kContent;
    std::vector<HarmonyEvent> events;
    reader->Push(ids[i], &events);
    if (was_content && tokens.Text(ids[i])) content += detokenizer->Push(ids[i]).value();
    for (const HarmonyEvent& event : events) {
      if (std::holds_alternative<MessageStart>(event)) detokenizer.emplace(tokens.tokenizer);
      // Text that stood in a header, not in content.
      if (const auto* delta = std::get_if<MessageDelta>(&event); delta && !was_content) {
        content += delta->text;
      }
      if (std::holds_alternative<MessageEnd>(event)) close();
    }
    std::move(events.begin(), events.end(), std::back_inserter(out.events));
  }
  const bool was_content = reader->state() == HarmonyReader::State::kContent;
  std::vector<HarmonyEvent> events;
  reader->Finish(&events);
  for (const HarmonyEvent& event : events) {
    if (std::holds_alternative<MessageStart>(event)) detokenizer.emplace(tokens.tokenizer);
    if (const auto* delta = std::get_if<MessageDelta>(&event); delta && !was_content) {
      content += delta->text;
    }
    if (std::holds_alternative<MessageEnd>(event)) close();
  }
  std::move(events.begin(), events.end(), std::back_inserter(out.events));
  return out;
}

bool IsText(absl::string_view text) {
  return ValidUtf8Prefix(text) == text.size();
}

std::string MessageFaults(const Reading& reading) {
  bool is_open = false;
  std::string text;
  size_t num_messages = 0;
  for (const HarmonyEvent& event : reading.events) {
    if (const auto* start = std::get_if<MessageStart>(&event)) {
      if (is_open) return "a message starts within another";
      for (const auto& field : {start->header.name,
                                start->header.recipient,
                                start->header.channel,
                                start->header.content_type}) {
        if (field && (field->empty() || !IsText(*field))) return "a header field is no text";
      }
      is_open = true;
      text.clear();
    } else if (const auto* delta = std::get_if<MessageDelta>(&event)) {
      if (!is_open) return "text outside of a message";
      if (delta->text.empty() || !IsText(delta->text)) return "a delta is no text";
      text += delta->text;
    } else if (std::holds_alternative<MessageEnd>(event)) {
      if (!is_open) return "a message ends that did not start";
      is_open = false;
      if (num_messages >= reading.contents.size()) return "a message without content";
      if (text != reading.contents[num_messages]) {
        return absl::StrCat(
            "text \"", text, "\" of tokens \"", reading.contents[num_messages], "\"");
      }
      ++num_messages;
    }
  }
  return is_open ? "a message does not end" : "";
}

struct Items {
  std::vector<std::vector<ItemEvent>> batches;
  int32_t num_reasoning_tokens = 0;
};

Items ReadItems(const HarmonyTokens& tokens,
                const FunctionNames& functions,
                std::span<const TokenId> ids) {
  ItemReader reader(&tokens, &functions, {});
  Items items;
  for (const TokenId id : ids) reader.Push({id, -1.0f, {}}, &items.batches.emplace_back());
  reader.Finish(&items.batches.emplace_back());
  items.num_reasoning_tokens = reader.num_reasoning_tokens();
  return items;
}

// The chat message that chunks add up to.
json MessageOfChunks(const std::vector<std::string>& chunks) {
  json message = {{"content", ""}, {"reasoning", ""}, {"tool_calls", json::array()}};
  for (const std::string& chunk : chunks) {
    const json delta = json::parse(chunk)["choices"][0]["delta"];
    for (const char* const key : {"content", "reasoning"}) {
      if (delta.contains(key)) {
        message[key] = message[key].get<std::string>() + delta[key].get<std::string>();
      }
    }
    for (const json& call : delta.value("tool_calls", json::array())) {
      if (call.contains("id")) {
        message["tool_calls"].push_back({call["id"], call["function"]["name"], ""});
      } else {
        json& arguments = message["tool_calls"].at(call["index"].get<size_t>())[2];
        arguments = arguments.get<std::string>() + call["function"]["arguments"].get<std::string>();
      }
    }
  }
  return message;
}

std::string ChatFaults(const HarmonyTokens& tokens, const Items& items, json* message) {
  ChatAnswerArgs args;
  args.logprobs = tokens.tokenizer;
  ChatStreamWriter writer(&args, 0, "call_");
  std::vector<ChatChoice> choices(1, ChatChoice("call_"));
  std::vector<std::string> chunks = {writer.Begin()};
  for (const std::vector<ItemEvent>& batch : items.batches) {
    writer.Write(batch, &chunks);
    choices[0].Write(batch);
  }
  *message = json::parse(ChatCompletionBody(args, choices, {}))["choices"][0]["message"];
  json body = {{"content", (*message)["content"].is_null() ? json("") : (*message)["content"]},
               {"reasoning", message->value("reasoning", "")},
               {"tool_calls", json::array()}};
  for (const json& call : message->value("tool_calls", json::array())) {
    body["tool_calls"].push_back(
        {call["id"], call["function"]["name"], call["function"]["arguments"]});
  }
  const json streamed = MessageOfChunks(chunks);
  if (streamed == body) return "";
  return absl::StrCat("the stream gives ", streamed.dump(), ", the body ", body.dump());
}

// Items and chat must have the same text: items are joined by newlines there.
std::string ResponsesFaults(const Items& items, const json& message) {
  ResponsesAnswerArgs args;
  args.echo = "{}";
  ResponsesWriter writer(std::move(args));
  std::vector<ResponsesEvent> events;
  writer.Begin(&events);
  for (const std::vector<ItemEvent>& batch : items.batches) writer.Write(batch, &events);
  writer.End(AnswerEnd::kStopToken, {}, &events);
  for (size_t i = 0; i < events.size(); ++i) {
    if (json::parse(events[i].data)["sequence_number"] != i) return "a sequence number is wrong";
  }
  std::string content;
  size_t num_calls = 0;
  const json response = json::parse(writer.Body());
  for (const json& item : response["output"]) {
    if (item["type"] == "function_call") ++num_calls;
    if (item["type"] != "message") continue;
    const std::string text = item["content"][0]["text"];
    if (!content.empty() && !text.empty()) content += "\n";
    content += text;
  }
  const std::string chat = message["content"].is_null() ? "" : message["content"];
  if (content != chat) return absl::StrCat("Responses has \"", content, "\", chat \"", chat, "\"");
  if (num_calls != message.value("tool_calls", json::array()).size()) return "calls differ";
  return "";
}

}  // namespace

std::unique_ptr<Tokenizer> MakeHarmonyTokenizer() {
  std::vector<std::pair<std::string, std::string>> merges;
  for (const std::string word : kWords) {
    for (size_t size = 1; size < word.size(); ++size) {
      const std::pair<std::string, std::string> merge(word.substr(0, size), word.substr(size, 1));
      if (std::find(merges.begin(), merges.end(), merge) == merges.end()) merges.push_back(merge);
    }
  }
  const TestVocabulary vocabulary = MakeTestVocabulary(std::move(merges),
                                                       {"<|return|>",
                                                        "<|call|>",
                                                        "<|reserved_1|>",
                                                        "<|message|>",
                                                        "<|channel|>",
                                                        "<|end|>",
                                                        "<|endoftext|>",
                                                        "<|constrain|>",
                                                        "<|start|>"});
  auto tokenizer = Tokenizer::Parse(TokenizerText(vocabulary, PairForm::kList));
  CHECK(tokenizer.ok());
  return *std::move(tokenizer);
}

std::vector<TokenId> HarmonyIds(const Tokenizer& tokenizer, absl::string_view text) {
  auto ids = tokenizer.Encode(text, {SpecialTokens::Mode::kAll, {}});
  CHECK(ids.ok());
  return *std::move(ids);
}

std::vector<TokenId> RandomStream(const HarmonyTokens& tokens, Prng* prng) {
  const Tokenizer& tokenizer = *tokens.tokenizer;
  const auto any_token = [&]() -> TokenId {
    // Beyond both ends of the vocabulary, too; markers are its last ids.
    const int32_t first_special = tokenizer.FirstSpecial().value;
    const uint64_t num_markers = static_cast<uint64_t>(tokenizer.size() - first_special);
    if (prng->Chance(35)) {
      return TokenId{first_special + static_cast<int32_t>(prng->Below(num_markers))};
    }
    if (prng->Chance(2)) return TokenId{tokenizer.size() + static_cast<int32_t>(prng->Below(3))};
    return TokenId{static_cast<int32_t>(prng->Below(static_cast<uint64_t>(first_special)))};
  };
  const auto any_piece = [&]() -> std::vector<TokenId> {
    static const char* const kPieces[] = {"assistant",
                                          "analysis",
                                          "final",
                                          "commentary",
                                          " to=functions.get_weather",
                                          " to=",
                                          "functions.",
                                          "json",
                                          " code",
                                          "{\"a\": [1]}",
                                          "user",
                                          "<|constrain|>",
                                          "\u00A0",
                                          "<|start|>",
                                          "<|channel|>analysis<|message|>",
                                          "x",
                                          " ",
                                          "\n",
                                          "get_weather",
                                          "<|channel|>final<|message|>"};
    if (prng->Chance(50)) return {any_token()};
    return HarmonyIds(tokenizer, kPieces[prng->Below(std::size(kPieces))]);
  };
  std::vector<TokenId> ids;
  if (prng->Chance(50)) {
    for (uint64_t n = prng->Below(24); n > 0; --n) {
      for (const TokenId id : any_piece()) ids.push_back(id);
    }
    return ids;
  }
  ids = HarmonyIds(
      tokenizer,
      "<|channel|>analysis<|message|>Thinking \u20AC.<|end|><|start|>assistant<|channel|>"
      "commentary to=functions.get_weather <|constrain|>json<|message|>{\"a\":1}<|end|>"
      "<|start|>assistant<|channel|>final<|message|>It is \U0001F600 sunny.<|return|>");
  for (uint64_t n = 1 + prng->Below(6); n > 0 && !ids.empty(); --n) {
    const auto at = ids.begin() + static_cast<ptrdiff_t>(prng->Below(ids.size()));
    switch (prng->Below(5)) {
      case 0:
        ids.erase(at);
        break;
      case 1:
        ids.insert(at, *at);
        break;
      case 2:
        std::iter_swap(at, ids.begin() + static_cast<ptrdiff_t>(prng->Below(ids.size())));
        break;
      case 3:
        *at = any_token();
        break;
      case 4:
        ids.erase(at, ids.end());
        break;
    }
  }
  return ids;
}

std::string ReaderFaults(const HarmonyTokens& tokens,
                         const FunctionNames& functions,
                         std::span<const TokenId> ids) {
  const Reading reading = Read(tokens, functions, ids, 0);
  if (std::string faults = MessageFaults(reading); !faults.empty()) return faults;
  for (const size_t copy_every : {size_t{1}, size_t{3}}) {
    if (Read(tokens, functions, ids, copy_every).events != reading.events) {
      return "a copy reads on differently";
    }
  }
  return "";
}

std::string ApiFaults(const HarmonyTokens& tokens,
                      const FunctionNames& functions,
                      std::span<const TokenId> ids) {
  const Items items = ReadItems(tokens, functions, ids);
  if (items.num_reasoning_tokens > std::ssize(ids)) return "more reasoning tokens than tokens";
  json message;
  if (std::string faults = ChatFaults(tokens, items, &message); !faults.empty()) return faults;
  return ResponsesFaults(items, message);
}

}  // namespace shoal
