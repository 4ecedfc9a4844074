// /tokenize, /detokenize and /v1/models: what the vocabulary and the model are, without asking the
// model anything.
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/string_view.h"
#include "absl/time/time.h"
#include "nlohmann/json.hpp"

#include "base/status_macros.h"
#include "coordinator/api/errors.h"
#include "coordinator/api/json_fields.h"
#include "coordinator/serve/chat_request.h"
#include "coordinator/serve/http_call.h"
#include "coordinator/text/json_text.h"

namespace shoal {
namespace {

using nlohmann::ordered_json;

std::string Dump(const ordered_json& json) {
  return json.dump(-1, ' ', false, ordered_json::error_handler_t::replace);
}

// {prompt} or {messages, tools, ...}: a chat counts as its usage.prompt_tokens would.
absl::StatusOr<std::vector<TokenId>> Tokens(const HttpCall& call, const JsonFields& body) {
  const ServedModel& model = call.service->model;
  if (body.Find("messages") != nullptr) return ChatPrompt(call.request.body, model);
  ASSIGN_OR_RETURN(const std::optional<std::string> name, body.Text("model"));
  RETURN_IF_ERROR(CheckModel(name.value_or(""), model));
  ASSIGN_OR_RETURN(const std::string prompt, body.NeededText("prompt"));
  ASSIGN_OR_RETURN(const std::optional<bool> parse_special, body.Flag("parse_special"));
  return EncodeText(prompt, parse_special.value_or(false), model);
}

absl::Status Tokenize(const HttpCall& call) {
  const ServedModel& model = call.service->model;
  ASSIGN_OR_RETURN(const ordered_json json, ParseJson(call.request.body));
  ASSIGN_OR_RETURN(const JsonFields body, JsonFields::Of(json, ""));
  ASSIGN_OR_RETURN(const std::vector<TokenId> tokens, Tokens(call, body));
  ordered_json out = {{"count", tokens.size()},
                      {"max_model_len", model.config.max_positions},
                      {"tokens", ordered_json::array()}};
  for (const TokenId token : tokens) out["tokens"].push_back(token.value);
  ASSIGN_OR_RETURN(const std::optional<bool> with_strings, body.Flag("return_token_strs"));
  if (with_strings.value_or(false)) {
    ordered_json& strings = out["token_strs"] = ordered_json::array();
    for (const TokenId token : tokens) {
      strings.push_back(std::string(model.tokenizer->Bytes(token).value_or("")));
    }
  }
  call.RespondJson(Dump(out));
  return absl::OkStatus();
}

absl::Status Detokenize(const HttpCall& call) {
  const ServedModel& model = call.service->model;
  ASSIGN_OR_RETURN(const ordered_json json, ParseJson(call.request.body));
  ASSIGN_OR_RETURN(const JsonFields body, JsonFields::Of(json, ""));
  ASSIGN_OR_RETURN(const ordered_json* ids, body.List("tokens"));
  if (ids == nullptr) return body.Bad("tokens", "a list of token ids");
  v1::DetokenizeRequest request;
  for (const ordered_json& id : *ids) {
    if (!id.is_number_unsigned() || id.get<uint64_t>() > 0x7fffffffu) {
      return body.Bad("tokens", "a list of token ids");
    }
    request.add_token_ids(id.get<uint32_t>());
  }
  v1::DetokenizeResponse text;
  RETURN_IF_ERROR(DetokenizeIds(request, model, &text));
  call.RespondJson(Dump({{"prompt", text.text()}}));
  return absl::OkStatus();
}

ordered_json ModelJson(const ServiceContext& service) {
  return {{"id", service.model.name},
          {"object", "model"},
          {"created", absl::ToUnixSeconds(service.started)},
          {"owned_by", "shoal"},
          {"max_model_len", service.model.config.max_positions}};
}

}  // namespace

void HandleTokenize(const HttpCall& call) {
  if (const absl::Status status = Tokenize(call); !status.ok()) call.Fail(status);
}

void HandleDetokenize(const HttpCall& call) {
  if (const absl::Status status = Detokenize(call); !status.ok()) call.Fail(status);
}

void HandleModels(const HttpCall& call) {
  constexpr absl::string_view kPath = "/v1/models";
  const absl::string_view path = call.request.path;
  if (path == kPath) {
    return call.RespondJson(
        Dump({{"object", "list"}, {"data", ordered_json::array({ModelJson(*call.service)})}}));
  }
  const absl::string_view name = path.substr(kPath.size() + 1);
  if (const absl::Status status = CheckModel(name, call.service->model); !status.ok()) {
    return call.Fail(status);
  }
  call.RespondJson(Dump(ModelJson(*call.service)));
}

}  // namespace shoal
