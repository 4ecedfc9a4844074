// The HTTP door: OpenAI's API and the operator's pages. Routes a request to its handler, having
// asked who sends it. docs/api.md describes it for its users. Next: coordinator/serve/http_call.h
#pragma once

#include <string>

#include "absl/strings/string_view.h"

#include "base/serve/http_server.h"
#include "coordinator/serve/api_keys.h"
#include "coordinator/serve/frontend.h"

namespace shoal {

class Gateway {
 public:
  // `keys` of nullptr: anyone may come in. Both outlive this.
  Gateway(ServiceContext* service, const ApiKeys* keys) : service_(*service), keys_(keys) {}

  // Thread-safe.
  void Handle(HttpRequest request, HttpExchange* exchange);
  // For requests that never get so far.
  HttpResponse Refusal(int status, absl::string_view why) const;

 private:
  std::string IdOf(const HttpRequest& request) const;

  ServiceContext& service_;
  const ApiKeys* const keys_;
};

}  // namespace shoal
