#include "coordinator/serve/gateway.h"

#include <algorithm>
#include <utility>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/strip.h"

#include "base/prng.h"
#include "base/serve/log.h"
#include "coordinator/api/errors.h"
#include "coordinator/serve/http_call.h"

namespace shoal {
namespace {

// Alive: the core's thread answers.
void HandleHealth(const HttpCall& call) {
  const bool is_alive = call.service->loop->Status().ok();
  call.RespondText(is_alive ? 200 : 503, is_alive ? "ok\n" : "the core does not answer\n");
}

void HandleReady(const HttpCall& call) {
  const absl::StatusOr<FleetStatus> fleet = call.service->loop->Status();
  if (call.service->is_draining) return call.RespondText(503, "stopping\n");
  if (!fleet.ok()) return call.RespondText(503, "the core does not answer\n");
  if (!fleet->is_ready) return call.RespondText(503, "loading, or too few workers\n");
  call.RespondText(200, "ready\n");
}

void HandleVersion(const HttpCall& call) {
  call.RespondJson(absl::StrFormat(R"({"version":"%s"})", call.service->version));
}

void HandleMetrics(const HttpCall& call) {
  const absl::StatusOr<FleetStatus> fleet = call.service->loop->Status();
  if (!fleet.ok()) return call.Fail(fleet.status());
  const Delivery::Counters counters = call.service->delivery->counters();
  const HttpServer* const http = call.service->http;
  HttpFields fields = call.Fields();
  fields.emplace_back("content-type", "text/plain; version=0.0.4; charset=utf-8");
  call.exchange->Respond(
      {.status = 200,
       .fields = std::move(fields),
       .body = call.service->metrics.Text(
           *fleet,
           {.open = counters.readers,
            .parked = counters.parked,
            .http_connections = http == nullptr ? 0 : http->counters().connections})});
}

enum class Guard : uint8_t { kOpen, kKey };

struct Route {
  absl::string_view method;
  absl::string_view path;
  Guard guard;
  void (*handle)(const HttpCall& call);
  bool takes_subpaths = false;
};

constexpr Route kRoutes[] = {
    {"POST", "/v1/chat/completions", Guard::kKey, HandleChatCompletions},
    {"POST", "/v1/responses", Guard::kKey, HandleResponses},
    {"POST", "/v1/completions", Guard::kKey, HandleCompletions},
    {"GET", "/v1/models", Guard::kKey, HandleModels, true},
    {"POST", "/tokenize", Guard::kKey, HandleTokenize},
    {"POST", "/detokenize", Guard::kKey, HandleDetokenize},
    {"GET", "/metrics", Guard::kKey, HandleMetrics},
    {"GET", "/version", Guard::kKey, HandleVersion},
    {"GET", "/health", Guard::kOpen, HandleHealth},
    {"GET", "/ping", Guard::kOpen, HandleHealth},
    {"GET", "/livez", Guard::kOpen, HandleHealth},
    {"GET", "/ready", Guard::kOpen, HandleReady},
    {"GET", "/readyz", Guard::kOpen, HandleReady},
};

bool Fits(const Route& route, absl::string_view path) {
  if (path == route.path) return true;
  return route.takes_subpaths && absl::ConsumePrefix(&path, route.path) &&
         absl::StartsWith(path, "/") && path.size() > 1;
}

const Route* Find(absl::string_view method, absl::string_view path) {
  for (const Route& route : kRoutes) {
    const bool fits_method = route.method == method || (route.method == "GET" && method == "HEAD");
    if (fits_method && Fits(route, path)) return &route;
  }
  return nullptr;
}

// What is at the path, if it has to be asked for by another method.
const Route* FindAnyMethod(absl::string_view path) {
  for (const Route& route : kRoutes) {
    if (Fits(route, path)) return &route;
  }
  return nullptr;
}

HttpResponse Refused(int status, absl::string_view why, HttpFields fields) {
  fields.emplace_back("content-type", "application/json");
  const bool is_server = status >= 500;
  return {.status = status,
          .fields = std::move(fields),
          .body = ErrorBody({.http_status = status,
                             .type = is_server ? "overloaded_error" : "invalid_request_error",
                             .code = std::nullopt,
                             .param = std::nullopt,
                             .message = std::string(why)})};
}

bool HasJsonBody(const HttpRequest& request) {
  const absl::string_view type = request.Field("content-type");
  return type.empty() || absl::StartsWithIgnoreCase(type, "application/json");
}

}  // namespace

HttpResponse Gateway::Refusal(int status, absl::string_view why) const {
  HttpFields fields = {{"x-request-id", IdOf({})}};
  if (status == 503) fields.emplace_back("retry-after", "1");
  return Refused(status, why, std::move(fields));
}

// The client's, if it is fit for a log line.
std::string Gateway::IdOf(const HttpRequest& request) const {
  const absl::string_view id = request.Field("x-request-id");
  if (CheckRequestId(id).ok()) return std::string(id);
  return absl::StrFormat("req_%016x", Mix64(service_.NextEntropy()));
}

void Gateway::Handle(HttpRequest request, HttpExchange* exchange) {
  std::string id = IdOf(request);
  HttpCall call{.service = &service_,
                .request = std::move(request),
                .exchange = exchange,
                .id = std::move(id),
                .tenant = ""};
  const HttpRequest& asked = call.request;
  const Route* const route = Find(asked.method, asked.path);
  // Who has no key is not told what there is.
  if (keys_ != nullptr && (route == nullptr || route->guard == Guard::kKey)) {
    absl::StatusOr<std::string> tenant = keys_->TenantOf(asked.Field("authorization"));
    if (!tenant.ok()) return call.Fail(tenant.status());
    call.tenant = *std::move(tenant);
  }
  if (route == nullptr) {
    if (const Route* const other = FindAnyMethod(asked.path)) {
      HttpFields fields = call.Fields();
      fields.emplace_back("allow", std::string(other->method));
      return exchange->Respond(
          Refused(405, absl::StrCat(asked.path, " is asked for by ", other->method), fields));
    }
    return call.Fail(
        absl::NotFoundError(absl::StrCat("there is nothing at ", asked.path.substr(0, 256))));
  }
  if (asked.method != "POST") return route->handle(call);
  if (!HasJsonBody(asked)) {
    return exchange->Respond(
        Refused(415, "the body must be JSON: send content-type: application/json", call.Fields()));
  }
  if (service_.is_draining) return call.Fail(Draining());
  route->handle(call);
}

}  // namespace shoal
