// One request at the HTTP door, known by an id and, if keys are asked for, by a tenant; and what
// its handlers need to read and to answer it. Includes no JSON: see http_json.h.
#pragma once

#include <memory>
#include <string>

#include "absl/status/status.h"

#include "base/serve/http_server.h"
#include "coordinator/serve/frontend.h"
#include "coordinator/serve/http_reader.h"
#include "coordinator/serve/transcript.h"

namespace shoal {

// Ends with the first answer.
struct HttpCall {
  ServiceContext* service;
  HttpRequest request;
  HttpExchange* exchange;
  std::string id;      // Of its answer's x-request-id
  std::string tenant;  // "" without keys

  // What the client calls its request, so that asking again means the same request; "" if nothing.
  std::string RequestedId() const { return std::string(request.Field("idempotency-key")); }

  HttpFields Fields() const { return {{"x-request-id", id}}; }

  void RespondJson(std::string body) const;
  void RespondText(int status, std::string body) const;
  void Fail(const absl::Status& status) const;

  // Starts `asked`, which answers in its own time.
  void Start(const char* method,
             AnswerForm form,
             Request asked,
             std::unique_ptr<Transcript> transcript) const;
};

// The routes' handlers: POST /v1/chat/completions, /v1/responses, /v1/completions, /tokenize,
// /detokenize; GET /v1/models and below.
void HandleChatCompletions(const HttpCall& call);
void HandleResponses(const HttpCall& call);
void HandleCompletions(const HttpCall& call);
void HandleTokenize(const HttpCall& call);
void HandleDetokenize(const HttpCall& call);
void HandleModels(const HttpCall& call);

// Names of the one model that is served: as it is, or behind an organisation's name and '/'.
absl::Status CheckModel(absl::string_view asked, const ServedModel& model);

}  // namespace shoal
