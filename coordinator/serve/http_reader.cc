#include "coordinator/serve/http_reader.h"

#include <atomic>
#include <utility>

#include "absl/strings/str_cat.h"

#include "base/check.h"
#include "coordinator/api/errors.h"

namespace shoal {
namespace {

// Server and Delivery may report at the same time, so every member but `is_writing_` is Delivery's.
class HttpReader final : public StreamReader, public HttpExchange::Listener {
 public:
  HttpReader(AnswerForm form, HttpFields fields, HttpExchange* exchange)
      : form_(form), fields_(std::move(fields)), exchange_(*exchange) {}

  void Start(Events* events) override {
    events_ = events;
    exchange_.Listen(this);
  }

  void Write(std::string message) override {
    if (form_ == AnswerForm::kWhole) {
      body_ = std::move(message);
      events_->OnWritten(true);
      return;
    }
    Begin();
    is_writing_ = true;
    exchange_.Write(std::move(message));
  }

  void Finish(const absl::Status& status) override {
    if (!status.ok() && !has_begun_) {
      exchange_.Respond(ErrorResponse(status, std::move(fields_)));
    } else if (form_ == AnswerForm::kWhole) {
      fields_.emplace_back("content-type", "application/json");
      exchange_.Respond({.status = 200, .fields = std::move(fields_), .body = std::move(body_)});
    } else if (absl::IsCancelled(status) || (!status.ok() && is_writing_)) {
      // It is gone or does not read: what it has must not look whole.
      exchange_.Abort();
    } else {
      Begin();
      exchange_.Finish("");
    }
  }

  void OnWritten(bool ok) override {
    is_writing_ = false;
    events_->OnWritten(ok);
  }

  void OnGone() override { events_->OnGone(); }

  void OnDone() override { events_->OnDone(); }

 private:
  void Begin() {
    if (std::exchange(has_begun_, true)) return;
    fields_.emplace_back("content-type", "text/event-stream; charset=utf-8");
    fields_.emplace_back("cache-control", "no-cache");
    fields_.emplace_back("x-accel-buffering", "no");
    exchange_.Begin(200, std::move(fields_), ": ping\n\n");
  }

  const AnswerForm form_;
  HttpFields fields_;
  HttpExchange& exchange_;
  Events* events_ = nullptr;
  std::string body_;
  bool has_begun_ = false;
  // Set by Delivery before a write, cleared by the server after it. Sequentially consistent, and
  // only read to choose between two ends of a connection.
  std::atomic<bool> is_writing_ = false;
};

}  // namespace

std::unique_ptr<StreamReader> MakeHttpReader(AnswerForm form,
                                             HttpFields fields,
                                             HttpExchange* exchange) {
  return std::make_unique<HttpReader>(form, std::move(fields), exchange);
}

std::string ErrorEvent(const absl::Status& status) {
  return absl::StrCat("data: ", ErrorBody(ApiErrorOf(status)), "\n\n");
}

HttpResponse ErrorResponse(const absl::Status& status, HttpFields fields) {
  CHECK(!status.ok());
  const ApiError error = ApiErrorOf(status);
  fields.emplace_back("content-type", "application/json");
  if (error.http_status == 429 || error.http_status == 503) {
    fields.emplace_back("retry-after", "1");
  }
  if (error.http_status == 401) fields.emplace_back("www-authenticate", "Bearer");
  return {.status = error.http_status, .fields = std::move(fields), .body = ErrorBody(error)};
}

}  // namespace shoal
