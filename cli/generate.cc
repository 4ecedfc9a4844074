#include "cli/generate.h"

#include <cstdio>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "cli/client.h"
#include "cli/local_fleet.h"
#include "cli/options.h"
#include "cli/signals.h"
#include "nlohmann/json.hpp"

#include "base/status_macros.h"

namespace shoal {
namespace {

struct GenerateOptions {
  ClusterOptions cluster;
  std::string server;
  std::string prompt;
  std::string tokens;
  std::string request_id;
  std::vector<std::string> stop;
  std::vector<uint32_t> stop_token_ids;
  std::optional<int64_t> max_tokens;
  int64_t min_tokens = 0;
  std::optional<float> temperature, top_p, min_p, presence, frequency, repetition;
  std::optional<int> top_k;
  std::optional<int64_t> seed;
  std::optional<int> logprobs;
  int n = 1;
  bool ignore_eos = false;
  bool parse_special = false;
  bool json = false;
  double timeout_seconds = 0;
};

void AddOptions(CLI::App& app, GenerateOptions* o) {
  app.add_option("--server", o->server, "a running server, HOST:PORT or unix:/path");
  app.add_option("--prompt", o->prompt, "text");
  app.add_option("--tokens", o->tokens, "token ids instead of text: 1,2,3");
  app.add_option("--max-tokens", o->max_tokens, "output bound, at least 1");
  app.add_option("--min-tokens", o->min_tokens, "no stop token before so many");
  app.add_option("--temperature", o->temperature, "0 to 2; 0: the likeliest token");
  app.add_option("--top-p", o->top_p, "in (0, 1]");
  app.add_option("--top-k", o->top_k, "0: off");
  app.add_option("--min-p", o->min_p, "0 to 1");
  app.add_option("--presence-penalty", o->presence, "-2 to 2");
  app.add_option("--frequency-penalty", o->frequency, "-2 to 2");
  app.add_option("--repetition-penalty", o->repetition, "above 0");
  app.add_option("--seed", o->seed, "the same seed, the same tokens");
  app.add_option("--stop", o->stop, "a stop string; may be given again");
  app.add_option("--stop-token", o->stop_token_ids, "a stop token id; may be given again");
  app.add_flag("--ignore-eos", o->ignore_eos, "go on after end-of-sequence tokens");
  app.add_flag(
      "--parse-special", o->parse_special, "markers such as <|end|> in --prompt become their ids");
  app.add_option("-n", o->n, "choices, 1 to 8; needs --json if above 1");
  app.add_option("--logprobs", o->logprobs, "with --json: alternatives per token, 0 to 20");
  app.add_option("--request-id", o->request_id, "makes the request idempotent and re-attachable");
  app.add_option("--timeout", o->timeout_seconds, "seconds; 0: none");
  app.add_flag("--json", o->json, "one JSON object at the end instead of streamed text");
  AddClusterOptions(app, &o->cluster, false);
  app.footer(
      "Examples:\n"
      "  shoal generate --server 127.0.0.1:8470 --prompt Hello --max-tokens 32\n"
      "  shoal generate --model DIR --workers 4 --tokens 1,2,3 --max-tokens 8 --temperature 0 "
      "--json");
}

absl::StatusOr<v1::GenerateRequest> MakeRequest(const GenerateOptions& o) {
  v1::GenerateRequest request;
  if (o.tokens.empty() == o.prompt.empty()) {
    return absl::InvalidArgumentError("give either --prompt TEXT or --tokens 1,2,3, not empty");
  }
  if (!o.tokens.empty()) {
    ASSIGN_OR_RETURN(const std::vector<TokenId> tokens, ParseTokens(o.tokens));
    for (const TokenId token : tokens) {
      request.mutable_tokens()->add_ids(static_cast<uint32_t>(token.value));
    }
  } else {
    request.set_text(o.prompt);
  }
  if (o.max_tokens.has_value() && (*o.max_tokens < 1 || *o.max_tokens > INT32_MAX)) {
    return absl::InvalidArgumentError(
        absl::StrCat("--max-tokens ", *o.max_tokens, ": expected at least 1"));
  }
  if (o.min_tokens < 0 || o.min_tokens > INT32_MAX) {
    return absl::InvalidArgumentError(
        absl::StrCat("--min-tokens ", o.min_tokens, ": expected at least 0"));
  }
  if (o.n < 1) return absl::InvalidArgumentError(absl::StrCat("-n ", o.n, ": expected 1 to 8"));
  if (o.n > 1 && !o.json) {
    return absl::InvalidArgumentError(
        "-n above 1 needs --json: several texts cannot share one stream");
  }
  if (o.logprobs.has_value() && *o.logprobs < 0) {
    return absl::InvalidArgumentError(
        absl::StrCat("--logprobs ", *o.logprobs, ": expected 0 to 20"));
  }
  request.set_parse_special(o.parse_special);
  request.set_request_id(o.request_id);
  v1::SamplingParams* sampling = request.mutable_sampling();
  if (o.temperature.has_value()) sampling->set_temperature(*o.temperature);
  if (o.top_p.has_value()) sampling->set_top_p(*o.top_p);
  if (o.top_k.has_value()) sampling->set_top_k(*o.top_k);
  if (o.min_p.has_value()) sampling->set_min_p(*o.min_p);
  if (o.presence.has_value()) sampling->set_presence_penalty(*o.presence);
  if (o.frequency.has_value()) sampling->set_frequency_penalty(*o.frequency);
  if (o.repetition.has_value()) sampling->set_repetition_penalty(*o.repetition);
  if (o.seed.has_value()) sampling->set_seed(*o.seed);
  if (o.n > 1) sampling->set_n(static_cast<uint32_t>(o.n));
  v1::Limits* limits = request.mutable_limits();
  if (o.max_tokens.has_value()) limits->set_max_tokens(static_cast<uint32_t>(*o.max_tokens));
  limits->set_min_tokens(static_cast<uint32_t>(o.min_tokens));
  limits->set_ignore_eos(o.ignore_eos);
  for (const std::string& stop : o.stop) limits->add_stop(stop);
  for (const uint32_t id : o.stop_token_ids) limits->add_stop_token_ids(id);
  if (o.logprobs.has_value()) {
    request.mutable_output()->set_logprobs(static_cast<uint32_t>(*o.logprobs));
  }
  return request;
}

std::string ReasonName(v1::Finished::Reason reason) {
  switch (reason) {
    case v1::Finished::STOP:
    case v1::Finished::STOP_STRING:
      return "stop";
    case v1::Finished::LENGTH:
      return "length";
    case v1::Finished::CANCELLED:
      return "cancelled";
    case v1::Finished::DEADLINE:
      return "deadline";
    default:
      return "error";
  }
}

// What one choice has said, as --json prints it.
struct Answer {
  std::vector<uint32_t> token_ids;
  std::string text;
  nlohmann::ordered_json logprobs = nlohmann::ordered_json::array();
  v1::Finished finished;

  void Add(const v1::TokenChunk& chunk) {
    token_ids.insert(token_ids.end(), chunk.token_ids().begin(), chunk.token_ids().end());
    text += chunk.text();
    for (const v1::TokenLogprob& token : chunk.logprobs()) {
      nlohmann::ordered_json top = nlohmann::ordered_json::array();
      for (const v1::TopLogprob& other : token.top()) {
        top.push_back({{"id", other.token_id()}, {"logprob", other.logprob()}});
      }
      logprobs.push_back({{"id", token.token_id()}, {"logprob", token.logprob()}, {"top", top}});
    }
  }

  nlohmann::ordered_json Json(bool with_logprobs) const {
    nlohmann::ordered_json json;
    json["token_ids"] = token_ids;
    json["text"] = text;
    json["finish_reason"] = ReasonName(finished.reason());
    if (finished.has_stop_token_id()) json["stop_token_id"] = finished.stop_token_id();
    if (!finished.stop_string().empty()) json["stop_string"] = finished.stop_string();
    json["usage"] = {{"prompt_tokens", finished.usage().prompt_tokens()},
                     {"cached_tokens", finished.usage().cached_tokens()},
                     {"completion_tokens", finished.usage().completion_tokens()}};
    json["timings"] = {{"queue_us", finished.timings().queue_us()},
                       {"first_token_us", finished.timings().first_token_us()},
                       {"decode_us", finished.timings().decode_us()},
                       {"preemptions", finished.timings().preemptions()},
                       {"epochs", finished.timings().epochs()}};
    if (with_logprobs) json["logprobs"] = logprobs;
    return json;
  }
};

// Prints text as it comes; where the model has no tokenizer, ids.
void PrintChunk(const v1::TokenChunk& chunk, bool has_text) {
  if (has_text) {
    std::fwrite(chunk.text().data(), 1, chunk.text().size(), stdout);
  } else {
    for (const uint32_t id : chunk.token_ids()) std::printf("%u ", id);
  }
  std::fflush(stdout);
}

absl::Status Generate(const GenerateOptions& options,
                      const v1::GenerateRequest& request,
                      const std::string& address,
                      bool has_text) {
  const Client client(address);
  const absl::Time deadline = options.timeout_seconds > 0
                                  ? absl::Now() + absl::Seconds(options.timeout_seconds)
                                  : absl::InfiniteFuture();
  std::vector<Answer> answers(static_cast<size_t>(options.n));
  RETURN_IF_ERROR(client.Generate(request, deadline, [&](const v1::GenerateEvent& event) {
    if (event.choice() >= answers.size()) return true;
    Answer& answer = answers[event.choice()];
    if (event.has_chunk()) {
      answer.Add(event.chunk());
      if (!options.json) PrintChunk(event.chunk(), has_text);
    } else if (event.has_finished()) {
      answer.finished = event.finished();
      answer.text += event.finished().text();
      if (!options.json) std::printf("%s\n", event.finished().text().c_str());
    }
    return !WaitForTermination(absl::ZeroDuration());
  }));
  if (!options.json) return absl::OkStatus();
  nlohmann::ordered_json json = answers[0].Json(options.logprobs.has_value());
  if (options.n > 1) {
    json["choices"] = nlohmann::ordered_json::array();
    for (const Answer& answer : answers) {
      json["choices"].push_back(answer.Json(options.logprobs.has_value()));
    }
  }
  const std::string text =
      json.dump(-1, ' ', false, nlohmann::ordered_json::error_handler_t::replace);
  std::printf("%s\n", text.c_str());
  return absl::OkStatus();
}

absl::Status Run(const GenerateOptions& options) {
  if (options.server.empty() == options.cluster.model.empty()) {
    return absl::InvalidArgumentError("give either --server HOST:PORT or --model DIR");
  }
  ASSIGN_OR_RETURN(const v1::GenerateRequest request, MakeRequest(options));
  if (!options.server.empty()) return Generate(options, request, options.server, true);
  ASSIGN_OR_RETURN(
      const std::unique_ptr<LocalFleet> fleet,
      LocalFleet::Start({.cluster = options.cluster, .with_tokenizer = true, .is_quiet = true}));
  RETURN_IF_ERROR(fleet->WaitReady(absl::InfiniteFuture()));
  return Generate(options, request, fleet->address(), fleet->has_tokenizer());
}

}  // namespace

int RunGenerate(int argc, char** argv) {
  CLI::App app("One answer, from a running server or from a cluster started for it.",
               "shoal generate");
  GenerateOptions options;
  AddOptions(app, &options);
  if (const int code = ParseOrExitCode(app, argc, argv); code >= 0) return code;
  BlockTerminationSignals();
  const absl::Status status = Run(options);
  return status.ok() ? kExitOk : Fail(status);
}

}  // namespace shoal
