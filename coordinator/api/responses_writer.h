// POST /v1/responses: the answer, as a stream of events or as one object. A value; pure: ids and
// times come in.
//
// Begin(), Write() for each token's items, then End() or Fail(). A stream sends every event as
// "event: <type>\ndata: <data>\n\n", and nothing after the last; otherwise Body() is the answer.
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "coordinator/api/answer_items.h"
#include "coordinator/api/chat_writer.h"
#include "coordinator/api/errors.h"
#include "coordinator/text/tokenizer.h"

namespace shoal {

struct ResponsesAnswerArgs {
  std::string id;          // "resp_..."
  std::string model;       // As the request named it
  int64_t created_at = 0;  // Seconds since 1970
  std::string echo;        // ResponsesRequest::echo
  // Item n has the id <kind>_<item_ids>n, and a call's call_id likewise: 24 random characters.
  std::string item_ids;
  const Tokenizer* logprobs = nullptr;  // Spells the tokens; null: none were asked for
};

struct ResponsesEvent {
  std::string type;  // "response.output_text.delta"
  std::string data;  // One JSON object; has the type, too, and the sequence number
};

class ResponsesWriter {
 public:
  explicit ResponsesWriter(ResponsesAnswerArgs args) : args_(std::move(args)) {}

  void Begin(std::vector<ResponsesEvent>* events);
  void Write(std::span<const ItemEvent> items, std::vector<ResponsesEvent>* events);
  void End(AnswerEnd end, const ApiUsage& usage, std::vector<ResponsesEvent>* events);
  // Instead of End(), when the answer cannot be had.
  void Fail(const ApiError& error, std::vector<ResponsesEvent>* events);

  // The response object. After End() or Fail().
  const std::string& Body() const { return body_; }

 private:
  struct Sink;  // Knows JSON
  friend struct Sink;

  ResponsesAnswerArgs args_;
  int64_t num_events_ = 0;
  std::vector<std::string> items_;  // Those that are done, as JSON
  ItemStart item_;                  // The open one
  std::string text_;                // Of it so far
  std::vector<ScoredToken> tokens_;
  std::string body_;
};

}  // namespace shoal
