#include "cli/chat.h"

#include <poll.h>
#include <unistd.h>

#include <cstdio>
#include <iostream>
#include <memory>
#include <optional>
#include <string>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "cli/client.h"
#include "cli/local_fleet.h"
#include "cli/options.h"
#include "cli/signals.h"

#include "base/status_macros.h"

namespace shoal {
namespace {

struct ChatOptions {
  ClusterOptions cluster;
  std::string server;
  std::string prompt;
  std::string system;
  std::string effort;
  std::optional<uint32_t> max_tokens;
  std::optional<float> temperature;
  std::optional<int64_t> seed;
  bool hides_reasoning = false;
};

void AddOptions(CLI::App& app, ChatOptions* o) {
  app.add_option("--server", o->server, "a running server, HOST:PORT or unix:/path");
  app.add_option("--prompt", o->prompt, "ask this, print the answer and leave");
  app.add_option("--system", o->system, "instructions for the whole conversation");
  app.add_option("--effort", o->effort, "how much the model thinks")
      ->check(CLI::IsMember({"low", "medium", "high"}));
  app.add_option("--max-tokens", o->max_tokens, "of each answer, thinking included")
      ->check(CLI::Range(1u, 1u << 30));
  app.add_option("--temperature", o->temperature, "0 to 2; 0: the likeliest token");
  app.add_option("--seed", o->seed, "the same seed, the same answers");
  app.add_flag("--no-reasoning", o->hides_reasoning, "do not show what the model thinks");
  AddClusterOptions(app, &o->cluster, false);
  app.footer(
      "Without --prompt a conversation: a line is a question, an empty one or Ctrl-D ends it.\n"
      "Examples:\n"
      "  shoal chat --server 127.0.0.1:8470\n"
      "  shoal chat --model DIR --workers 4 --prompt 'What is 12 plus 30?' --effort low");
}

// Items as they come. On a terminal thinking is dimmed; elsewhere words say what is what.
class Screen {
 public:
  void Show(const v1::ChatEvent& event) {
    if (event.has_item_started()) {
      Open(event.item_started());
    } else if (event.has_delta()) {
      Print(event.delta().text());
      if (kind_ == v1::ItemStarted::TEXT) answer_ += event.delta().text();
    } else if (event.has_item_done()) {
      if (kind_ == v1::ItemStarted::TOOL_CALL) Print(")");
      Print(is_terminal_ ? "\x1b[0m\n" : "\n");
    }
  }

  // What the conversation goes on from.
  std::string TakeAnswer() { return std::exchange(answer_, ""); }

 private:
  void Open(const v1::ItemStarted& item) {
    kind_ = item.kind();
    if (kind_ == v1::ItemStarted::REASONING) {
      Print(is_terminal_ ? "\x1b[2m" : "(thinking) ");
    } else if (kind_ == v1::ItemStarted::TOOL_CALL) {
      Print(absl::StrCat("call ", item.tool_name(), "("));
    } else if (!answer_.empty()) {
      answer_ += "\n";
    }
  }

  static void Print(const std::string& text) {
    std::fwrite(text.data(), 1, text.size(), stdout);
    std::fflush(stdout);
  }

  const bool is_terminal_ = isatty(STDOUT_FILENO) == 1;
  v1::ItemStarted::Kind kind_ = v1::ItemStarted::TEXT;
  std::string answer_;
};

v1::ChatRequest FirstRequest(const ChatOptions& o) {
  v1::ChatRequest request;
  if (!o.system.empty()) {
    v1::Message* const message = request.add_messages();
    message->set_role(v1::ROLE_DEVELOPER);
    message->set_text(o.system);
  }
  v1::ReasoningOptions* const reasoning = request.mutable_reasoning();
  reasoning->set_exclude(o.hides_reasoning);
  if (o.effort == "low") reasoning->set_effort(v1::ReasoningOptions::LOW);
  if (o.effort == "medium") reasoning->set_effort(v1::ReasoningOptions::MEDIUM);
  if (o.effort == "high") reasoning->set_effort(v1::ReasoningOptions::HIGH);
  if (o.max_tokens) request.mutable_limits()->set_max_tokens(*o.max_tokens);
  if (o.temperature) request.mutable_sampling()->set_temperature(*o.temperature);
  if (o.seed) request.mutable_sampling()->set_seed(*o.seed);
  return request;
}

void AddMessage(v1::Role role, const std::string& text, v1::ChatRequest* request) {
  v1::Message* const message = request->add_messages();
  message->set_role(role);
  message->set_text(text);
}

// Asks, shows the answer, and adds both to the conversation.
absl::Status Ask(const Client& client, const std::string& question, v1::ChatRequest* conversation) {
  AddMessage(v1::ROLE_USER, question, conversation);
  Screen screen;
  bool is_cut_off = false;
  const absl::Status status =
      client.Chat(*conversation, absl::InfiniteFuture(), [&](const v1::ChatEvent& event) {
        screen.Show(event);
        is_cut_off = is_cut_off || (event.has_finished() &&
                                    event.finished().reason() == v1::ChatFinished::LENGTH);
        return !WaitForTermination(absl::ZeroDuration());
      });
  if (is_cut_off) std::fprintf(stderr, "(cut off: --max-tokens, or the context is full)\n");
  AddMessage(v1::ROLE_ASSISTANT, screen.TakeAnswer(), conversation);
  return status;
}

// nullopt: the end.
std::optional<std::string> NextQuestion() {
  if (isatty(STDIN_FILENO) == 1) std::fprintf(stderr, "> ");
  pollfd input{.fd = STDIN_FILENO, .events = POLLIN, .revents = 0};
  while (std::cin.rdbuf()->in_avail() <= 0 && poll(&input, 1, 100) == 0) {
    if (WaitForTermination(absl::ZeroDuration())) return std::nullopt;
  }
  std::string line;
  if (!std::getline(std::cin, line) || line.empty()) return std::nullopt;
  return line;
}

absl::Status Converse(const ChatOptions& options, const std::string& address) {
  const Client client(address);
  v1::ChatRequest conversation = FirstRequest(options);
  if (!options.prompt.empty()) return Ask(client, options.prompt, &conversation);
  while (const std::optional<std::string> question = NextQuestion()) {
    const absl::Status status = Ask(client, *question, &conversation);
    if (absl::IsCancelled(status)) continue;  // Ctrl-C ends an answer, not the conversation
    RETURN_IF_ERROR(status);
  }
  return absl::OkStatus();
}

absl::Status Run(const ChatOptions& options) {
  if (options.server.empty() == options.cluster.model.empty()) {
    return absl::InvalidArgumentError("give either --server HOST:PORT or --model DIR");
  }
  if (!options.server.empty()) return Converse(options, options.server);
  ASSIGN_OR_RETURN(
      const std::unique_ptr<LocalFleet> fleet,
      LocalFleet::Start({.cluster = options.cluster, .with_tokenizer = true, .is_quiet = true}));
  RETURN_IF_ERROR(fleet->WaitReady(absl::InfiniteFuture()));
  return Converse(options, fleet->address());
}

}  // namespace

int RunChat(int argc, char** argv) {
  CLI::App app(
      "A conversation in the terminal, with a running server or with a cluster started for it.",
      "shoal chat");
  ChatOptions options;
  AddOptions(app, &options);
  if (const int code = ParseOrExitCode(app, argc, argv); code >= 0) return code;
  BlockTerminationSignals();
  const absl::Status status = Run(options);
  return status.ok() ? kExitOk : Fail(status);
}

}  // namespace shoal
