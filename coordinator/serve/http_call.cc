#include "coordinator/serve/http_call.h"

#include <utility>

#include "coordinator/api/errors.h"

namespace shoal {

void HttpCall::RespondJson(std::string body) const {
  HttpFields fields = Fields();
  fields.emplace_back("content-type", "application/json");
  exchange->Respond({.status = 200, .fields = std::move(fields), .body = std::move(body)});
}

void HttpCall::RespondText(int status, std::string body) const {
  HttpFields fields = Fields();
  fields.emplace_back("content-type", "text/plain; charset=utf-8");
  exchange->Respond({.status = status, .fields = std::move(fields), .body = std::move(body)});
}

void HttpCall::Fail(const absl::Status& status) const {
  exchange->Respond(ErrorResponse(status, Fields()));
}

void HttpCall::Start(const char* method,
                     AnswerForm form,
                     Request asked,
                     std::unique_ptr<Transcript> transcript) const {
  StartRequest(service,
               method,
               std::move(asked),
               std::move(transcript),
               MakeHttpReader(form, Fields(), exchange));
}

absl::Status CheckModel(absl::string_view asked, const ServedModel& model) {
  if (asked.empty() || asked == model.name) return absl::OkStatus();
  const size_t slash = asked.rfind('/');
  if (slash != absl::string_view::npos && asked.substr(slash + 1) == model.name) {
    return absl::OkStatus();
  }
  return ModelNotFound(asked, model.name);
}

}  // namespace shoal
