#include "cli/harmony.h"

#include <cstdint>
#include <iostream>
#include <limits>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <variant>
#include <vector>

#include "CLI/CLI.hpp"
#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "absl/time/time.h"
#include "cli/harmony_messages.h"
#include "cli/json_lines.h"
#include "cli/options.h"
#include "cli/tokenize.h"

#include "base/status_macros.h"
#include "coordinator/api/answer_items.h"
#include "coordinator/api/chat_completions.h"
#include "coordinator/api/chat_writer.h"
#include "coordinator/api/errors.h"
#include "coordinator/api/responses.h"
#include "coordinator/api/responses_writer.h"
#include "coordinator/text/harmony.h"
#include "coordinator/text/harmony_reader.h"
#include "coordinator/text/harmony_writer.h"
#include "coordinator/text/json_text.h"
#include "coordinator/text/typescript.h"

namespace shoal {
namespace {

using nlohmann::ordered_json;

// What a line is converted with.
struct Engine {
  std::unique_ptr<Tokenizer> tokenizer;  // Null for `types`
  HarmonyTokens tokens;
};

// ---- Fields of a line

absl::StatusOr<const ordered_json*> Needed(const ordered_json& row, const char* key) {
  const auto at = row.find(key);
  if (at != row.end()) return &*at;
  return absl::InvalidArgumentError(absl::StrCat("the field \"", key, "\" is missing"));
}

bool FlagOr(const ordered_json& row, const char* key, bool fallback) {
  const auto at = row.find(key);
  return at != row.end() && at->is_boolean() ? at->get<bool>() : fallback;
}

absl::StatusOr<std::vector<TokenId>> IdsOf(const ordered_json& row) {
  ASSIGN_OR_RETURN(const ordered_json* list, Needed(row, "ids"));
  if (!list->is_array()) return absl::InvalidArgumentError("ids must be a list of token ids");
  std::vector<TokenId> ids;
  for (const ordered_json& id : *list) {
    constexpr int64_t kMaxId = std::numeric_limits<int32_t>::max();
    if (!id.is_number_integer() || id < 0 || id > kMaxId) {
      return absl::InvalidArgumentError(
          absl::StrCat("ids[", ids.size(), "] is not a token id: ", id.dump()));
    }
    ids.push_back(TokenId{id.get<int32_t>()});
  }
  return ids;
}

absl::StatusOr<FunctionNames> FunctionsOf(const ordered_json& row) {
  FunctionNames functions;
  const auto list = row.find("functions");
  if (list == row.end() || list->is_null()) return functions;
  if (!list->is_array()) return absl::InvalidArgumentError("functions must be a list of names");
  for (const ordered_json& name : *list) {
    if (!name.is_string()) {
      return absl::InvalidArgumentError(
          absl::StrCat("functions holds what is no name: ", CompactJson(name)));
    }
    functions.insert(name.get<std::string>());
  }
  return functions;
}

ordered_json IdList(const std::vector<TokenId>& ids) {
  ordered_json list = ordered_json::array();
  for (const TokenId id : ids) list.push_back(id.value);
  return list;
}

ordered_json OrNull(const std::optional<std::string>& text) {
  return text ? ordered_json(*text) : ordered_json();
}

// ---- render, types

// {"messages", "auto_drop", "completion", "training"} -> {"ids", "text"}
absl::StatusOr<ordered_json> RenderRow(const Engine& engine, const ordered_json& row) {
  using Ending = RenderOptions::Ending;
  RETURN_IF_ERROR(Needed(row, "messages").status());
  ASSIGN_OR_RETURN(const std::vector<HarmonyMessage> messages, ReadMessages(row));
  RenderOptions options;
  options.drops_analysis = FlagOr(row, "auto_drop", true);
  options.ending = FlagOr(row, "training", false)    ? Ending::kTraining
                   : FlagOr(row, "completion", true) ? Ending::kPrompt
                                                     : Ending::kNothing;
  ASSIGN_OR_RETURN(const std::vector<TokenId> ids, RenderHarmony(messages, engine.tokens, options));
  return ordered_json{{"ids", IdList(ids)}, {"text", HarmonyText(ids, *engine.tokenizer)}};
}

// {"schema"} -> {"ts"}
absl::StatusOr<ordered_json> TypesRow(const Engine&, const ordered_json& row) {
  ASSIGN_OR_RETURN(const ordered_json* schema, Needed(row, "schema"));
  ASSIGN_OR_RETURN(std::string type, TypeScriptType(CompactJson(*schema)));
  return ordered_json{{"ts", std::move(type)}};
}

// ---- parse

ordered_json HeaderTree(const MessageHeader& header) {
  ordered_json tree = {{"role", std::string(RoleName(header.role))},
                       {"recipient", OrNull(header.recipient)},
                       {"channel", OrNull(header.channel)},
                       {"content_type", OrNull(header.content_type)}};
  if (header.name) tree["name"] = *header.name;
  return tree;
}

// Events as lists, and the messages that they make.
struct EventWriter {
  ordered_json events = ordered_json::array();
  ordered_json messages = ordered_json::array();
  ordered_json repairs = ordered_json::array();
  std::string text;  // Of the message at hand

  void operator()(const MessageStart& start) {
    events.push_back({"start", HeaderTree(start.header)});
    messages.push_back(HeaderTree(start.header));
    text.clear();
  }

  void operator()(const MessageDelta& delta) {
    events.push_back({"delta", delta.text});
    text += delta.text;
  }

  void operator()(const MessageEnd& end) {
    const ordered_json stop = end.stop ? ordered_json(end.stop->value) : ordered_json();
    events.push_back({"end", stop});
    messages.back()["text"] = text;
    messages.back()["stop"] = stop;
  }

  void operator()(Repair repair) { repairs.push_back(std::string(RepairName(repair))); }
};

absl::StatusOr<std::optional<Role>> RoleOf(const ordered_json& row) {
  const auto at = row.find("role");
  if (at == row.end()) return Role::kAssistant;
  if (at->is_null()) return std::nullopt;
  const std::optional<Role> role =
      at->is_string() ? ParseRole(at->get_ref<const std::string&>()) : std::nullopt;
  if (role) return role;
  return absl::InvalidArgumentError(absl::StrCat(
      "role must be system, developer, user, assistant, tool or null, not ", CompactJson(*at)));
}

// {"ids", "role", "functions"} -> {"events", "messages", "repairs"}
absl::StatusOr<ordered_json> ParseRow(const Engine& engine, const ordered_json& row) {
  ASSIGN_OR_RETURN(const std::vector<TokenId> ids, IdsOf(row));
  ASSIGN_OR_RETURN(const FunctionNames functions, FunctionsOf(row));
  ASSIGN_OR_RETURN(const std::optional<Role> role, RoleOf(row));
  HarmonyReader reader(&engine.tokens, &functions, role);
  std::vector<HarmonyEvent> events;
  for (const TokenId id : ids) reader.Push(id, &events);
  reader.Finish(&events);
  EventWriter writer;
  for (const HarmonyEvent& event : events) std::visit(writer, event);
  return ordered_json{{"events", std::move(writer.events)},
                      {"messages", std::move(writer.messages)},
                      {"repairs", std::move(writer.repairs)}};
}

// ---- request

std::string Today() {
  return absl::FormatTime("%Y-%m-%d", absl::Now(), absl::UTCTimeZone());
}

absl::StatusOr<ApiRequest> ParseApiRequest(const ordered_json& row, const ordered_json& request) {
  const ordered_json api =
      row.value("api", ordered_json(request.contains("input") ? "responses" : "chat"));
  const ordered_json date = row.value("today", ordered_json(Today()));
  std::optional<std::string> today;
  if (date.is_string()) today = date.get<std::string>();
  const std::string body = CompactJson(request);
  if (api == "chat") return ParseChatRequest(body, today);
  if (api != "responses") {
    return absl::InvalidArgumentError(
        absl::StrCat("api must be chat or responses, not ", CompactJson(api)));
  }
  ASSIGN_OR_RETURN(ResponsesRequest responses, ParseResponsesRequest(body, today));
  return std::move(responses.request);
}

// {"request", "api", "today"} -> {"messages", "ids", "text"}, or {"http_status", "error"}: what a
// server answers to a request that it refuses. The body alone will do, too.
absl::StatusOr<ordered_json> RequestRow(const Engine& engine, const ordered_json& row) {
  const auto body = row.find("request");
  const absl::StatusOr<ApiRequest> request = body == row.end()
                                                 ? ParseApiRequest(ordered_json::object(), row)
                                                 : ParseApiRequest(row, *body);
  if (!request.ok()) {
    const ApiError error = ApiErrorOf(request.status());
    ordered_json answer = ordered_json::parse(ErrorBody(error));
    answer["http_status"] = error.http_status;
    return answer;
  }
  const std::vector<HarmonyMessage> messages = MessagesOf(request->conversation);
  ASSIGN_OR_RETURN(const std::vector<TokenId> ids, RenderHarmony(messages, engine.tokens, {}));
  return ordered_json{{"messages", WriteMessages(messages)},
                      {"ids", IdList(ids)},
                      {"text", HarmonyText(ids, *engine.tokenizer)}};
}

// ---- output

// Items, token by token; then the rest.
using ItemBatches = std::vector<std::vector<ItemEvent>>;

ItemBatches ItemsOf(const Engine& engine,
                    const FunctionNames& functions,
                    const std::vector<TokenId>& ids) {
  ItemReader reader(&engine.tokens, &functions, {});
  ItemBatches batches;
  for (const TokenId id : ids) reader.Push({id, 0, {}}, &batches.emplace_back());
  reader.Finish(&batches.emplace_back());
  return batches;
}

ChatAnswerArgs PlainChatArgs() {
  ChatAnswerArgs args;
  args.repeats_reasoning_content = false;
  return args;
}

void AddChatStream(const ItemBatches& items, AnswerEnd end, ordered_json* out) {
  const ChatAnswerArgs args = PlainChatArgs();
  ChatStreamWriter writer(&args, 0, "call_");
  std::vector<std::string> chunks = {writer.Begin()};
  for (const std::vector<ItemEvent>& batch : items) writer.Write(batch, &chunks);
  ordered_json deltas = ordered_json::array();
  for (const std::string& chunk : chunks) {
    deltas.push_back(ordered_json::parse(chunk)["choices"][0]["delta"]);
  }
  (*out)["chat_deltas"] = std::move(deltas);
  (*out)["finish_reason"] = ordered_json::parse(writer.End(end))["choices"][0]["finish_reason"];
}

void AddChatMessage(const ItemBatches& items, AnswerEnd end, ordered_json* out) {
  std::vector<ChatChoice> choices(1, ChatChoice("call_"));
  for (const std::vector<ItemEvent>& batch : items) choices[0].Write(batch);
  choices[0].End(end);
  ordered_json body = ordered_json::parse(ChatCompletionBody(PlainChatArgs(), choices, {}));
  ordered_json& message = body["choices"][0]["message"];
  message.erase("refusal");
  (*out)["chat_message"] = std::move(message);
}

// Without sequence numbers, and of response objects only what the items decide.
void AddResponsesEvents(const ItemBatches& items, AnswerEnd end, ordered_json* out) {
  ResponsesAnswerArgs args;
  args.echo = "{}";
  ResponsesWriter writer(std::move(args));
  std::vector<ResponsesEvent> events;
  writer.Begin(&events);
  for (const std::vector<ItemEvent>& batch : items) writer.Write(batch, &events);
  writer.End(end, {}, &events);
  ordered_json list = ordered_json::array();
  for (const ResponsesEvent& event : events) {
    ordered_json data = ordered_json::parse(event.data);
    data.erase("type");
    data.erase("sequence_number");
    if (data.contains("response")) {
      const ordered_json response = std::move(data["response"]);
      data = ordered_json::object();
      for (const char* const key : {"status", "output", "incomplete_details"}) {
        if (response["status"] != "in_progress") data[key] = response[key];
      }
    }
    list.push_back({{"event", event.type}, {"data", std::move(data)}});
  }
  (*out)["responses_events"] = std::move(list);
}

// {"ids", "functions"} -> {"chat_deltas", "finish_reason", "chat_message", "responses_events"}
absl::StatusOr<ordered_json> OutputRow(const Engine& engine, const ordered_json& row) {
  ASSIGN_OR_RETURN(const std::vector<TokenId> ids, IdsOf(row));
  ASSIGN_OR_RETURN(const FunctionNames functions, FunctionsOf(row));
  const bool is_whole = !ids.empty() && engine.tokens.EndsGeneration(ids.back());
  const AnswerEnd end = is_whole ? AnswerEnd::kStopToken : AnswerEnd::kLength;
  const ItemBatches items = ItemsOf(engine, functions, ids);
  ordered_json out;
  AddChatStream(items, end, &out);
  AddChatMessage(items, end, &out);
  AddResponsesEvents(items, end, &out);
  return out;
}

// ---- The command

struct Conversion {
  const char* name;
  absl::StatusOr<ordered_json> (*convert)(const Engine&, const ordered_json& row);
  bool needs_tokenizer;
  const char* fields;
};

constexpr Conversion kConversions[] = {
    {"render", RenderRow, true, "messages, auto_drop, completion, training -> ids, text"},
    {"parse", ParseRow, true, "ids, role, functions -> events, messages, repairs"},
    {"types", TypesRow, false, "schema -> ts"},
    {"request", RequestRow, true, "request, api, today -> messages, ids, text"},
    {"output",
     OutputRow,
     true,
     "ids, functions -> chat_deltas, chat_message, finish_reason, responses_events"},
};

absl::StatusOr<Engine> LoadEngine(const Conversion& conversion, const std::string& model) {
  Engine engine;
  if (!conversion.needs_tokenizer) return engine;
  ASSIGN_OR_RETURN(engine.tokenizer, LoadTokenizer(model));
  ASSIGN_OR_RETURN(engine.tokens, HarmonyTokens::Find(engine.tokenizer.get()));
  return engine;
}

absl::StatusOr<ordered_json> Convert(const Conversion& conversion,
                                     const Engine& engine,
                                     const std::string& text) {
  ASSIGN_OR_RETURN(const ordered_json row, ParseJson(text));
  if (!row.is_object()) return absl::InvalidArgumentError("the input is not a JSON object");
  return conversion.convert(engine, row);
}

int Run(const Conversion& conversion, const std::string& model, bool is_jsonl) {
  const absl::StatusOr<Engine> engine = LoadEngine(conversion, model);
  if (!engine.ok()) return Fail(engine.status());
  if (is_jsonl) {
    return RunJsonLines([&](const std::string& line) -> absl::StatusOr<std::string> {
      ASSIGN_OR_RETURN(const ordered_json result, Convert(conversion, *engine, line));
      return result.dump(-1, ' ', true);  // ASCII: some readers take U+2028 for the end of a line
    });
  }
  const auto result = Convert(conversion, *engine, ReadStandardInput());
  if (!result.ok()) return Fail(result.status());
  // A prompt is for reading; the rest, for looking things up.
  const auto text = result->find("text");
  std::cout << (text == result->end() ? result->dump(1) : text->get<std::string>()) << "\n";
  return result->contains("http_status") ? kExitFailed : kExitOk;
}

}  // namespace

int RunHarmony(int argc, char** argv) {
  CLI::App app("What the model reads and writes, from JSON on standard input", "shoal harmony");
  app.require_subcommand(1);
  std::string model;
  bool is_jsonl = false;
  for (const Conversion& conversion : kConversions) {
    CLI::App* const command = app.add_subcommand(conversion.name, conversion.fields);
    command->add_option("--model", model, "Folder that holds tokenizer.json")
        ->required(conversion.needs_tokenizer);
    command->add_flag("--jsonl", is_jsonl, "A JSON object on each line in, one on each line out");
  }
  if (const int code = ParseOrExitCode(app, argc, argv); code >= 0) return code;
  for (const Conversion& conversion : kConversions) {
    if (app.got_subcommand(conversion.name)) return Run(conversion, model, is_jsonl);
  }
  return kExitUsage;
}

}  // namespace shoal
